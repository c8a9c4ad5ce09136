"""Files that explain without this package: their numbers, what they refuse, and what a wrong one meets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import BcosFxError, TraceError, UsageError, VerificationError
from bcos_fx.exporting import graphs
from tests.small_networks import MEAN, STD, images

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")

SIZE = 12


class Cnn(nn.Module):
    """A strided convolution, batch norm, max pooling, a depthwise layer, a gate as in SE networks, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.depthwise = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6), nn.Hardswish())
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1))
        self.pool, self.head = nn.AvgPool2d(2, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.depthwise(x)
        y = y * torch.sigmoid(self.squeeze(y)) + x
        return self.head(self.pool(y).mean((2, 3)))


class Vit(nn.Module):
    """Patches, a class token, positions, one block of attention and MLP, the token's classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 10, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        return self.head(self.norm(self.block(tokens))[:, 0])


def converted(kind: Callable[[], nn.Module], recipe: str = "equivalent") -> bcos_fx.BcosNetwork:
    torch.manual_seed(0)
    network = kind()
    with torch.no_grad():
        for _ in range(20):  # statistics of some data, so that norms shift
            network.train()(images(8, size=SIZE) - 0.4)
    return bcos_fx.bcosify(network.eval(), example_inputs=images(size=SIZE), recipe=recipe, mean=MEAN, std=STD)


@pytest.fixture(scope="module")
def cnn() -> bcos_fx.BcosNetwork:
    return converted(Cnn)


@pytest.fixture(scope="module")
def explaining_cnn(cnn: bcos_fx.BcosNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "cnn.onnx"
    bcos_fx.export(cnn, path, explanation=True)
    return path


def assert_explains(path: Path, network: nn.Module, x: Tensor, target: Tensor) -> None:
    """Compare what a file gives with explain(), to 1e-5 of the largest number; and add its numbers up."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        found = session.run(None, dict(zip(names, (x.numpy(), target.numpy()), strict=True)))
    else:
        found = [value.numpy() for value in torch.export.load(path).module()(x, target)]
    logits, contributions, constants, weights = found
    expected = bcos_fx.explain(network, x, target)
    columns = [expected.constants.get(name, torch.zeros(len(x))) for name in facts(path)["constants"]]
    wanted = (expected.scores, expected.contributions, torch.stack(columns, 1), expected.weights)
    for actual, reference in zip(found, wanted, strict=True):
        assert actual.dtype == np.float32
        assert np.abs(actual - reference.numpy()).max() <= 1e-5 * float(reference.abs().max())
    sums = contributions.reshape(len(x), -1).sum(1) + constants.sum(1)
    assert np.abs(sums - logits[np.arange(len(x)), target]).max() <= 1e-5 * np.abs(constants).sum(1).max()
    assert weights.shape == expected.weights.shape


def facts(path: Path) -> dict[str, Any]:
    """What a file holds about itself."""
    if path.suffix == ".onnx":
        (entry,) = onnx.load(path).metadata_props
        return dict(json.loads(entry.value))
    extra = {"bcos_fx": ""}
    torch.export.load(path, extra_files=extra)
    return dict(json.loads(extra["bcos_fx"]))


# ---------------------------------------------------------------- what a file computes


@pytest.mark.parametrize("count", [1, 3])
def test_onnxruntime_explains_any_target_of_any_number_of_images(
    cnn: bcos_fx.BcosNetwork, explaining_cnn: Path, count: int
) -> None:
    assert_explains(explaining_cnn, cnn, images(7, size=SIZE)[-count:], torch.tensor([4, 0, 2])[:count])


@pytest.mark.slow
def test_a_transformer_after_raised_b_explains(tmp_path: Path) -> None:
    network = converted(Vit, "matched")
    found = bcos_fx.export(network, tmp_path / "vit.onnx", explanation=True)
    assert found.why_one is None
    assert_explains(tmp_path / "vit.onnx", network, images(5, size=SIZE)[2:], torch.tensor([1, 3, 0]))


def test_a_program_of_torch_export_explains(cnn: bcos_fx.BcosNetwork, tmp_path: Path) -> None:
    found = bcos_fx.export(cnn, tmp_path / "cnn.pt2", images(3, size=SIZE), explanation=True)
    assert (found.kind, found.check.completeness) == ("explanation", "complete")
    assert found.check.difference < 1e-5
    assert_explains(tmp_path / "cnn.pt2", cnn, images(3, size=SIZE), torch.tensor([4, 0, 2]))


def test_the_network_itself(cnn: bcos_fx.BcosNetwork, tmp_path: Path) -> None:
    found = bcos_fx.export(cnn, tmp_path / "network.onnx")
    assert (found.outputs, found.check.completeness) == (("output",), None)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert (entry.name, entry.shape) == ("x", ["N", 3, SIZE, SIZE])
    x = images(5, size=SIZE)
    (actual,) = session.run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), cnn(x).detach(), rtol=1e-5, atol=1e-6)


def test_a_file_names_what_it_takes_and_gives_and_no_machine(explaining_cnn: Path, cnn: bcos_fx.BcosNetwork) -> None:
    model = onnx.load(explaining_cnn)
    assert [each.name for each in model.graph.input] == ["x", "target"]
    assert [each.name for each in model.graph.output] == ["logits", "contributions", "constants", "weights"]
    assert {node.domain for node in model.graph.node} == {""}
    content = explaining_cnn.read_bytes()
    assert str(Path(bcos_fx.__file__).parent).encode() not in content
    assert b".py" not in content
    assert "head.bias" in facts(explaining_cnn)["constants"]


@pytest.mark.slow
def test_the_same_network_gives_the_same_bytes(cnn: bcos_fx.BcosNetwork, explaining_cnn: Path, tmp_path: Path) -> None:
    bcos_fx.export(cnn, tmp_path / "again.onnx", explanation=True)
    assert (tmp_path / "again.onnx").read_bytes() == explaining_cnn.read_bytes()


def test_every_activation_that_is_a_ratio(tmp_path: Path) -> None:
    torch.manual_seed(0)
    kinds = (nn.SiLU, nn.Mish, nn.ELU, nn.GELU, nn.Tanh, nn.Softsign, nn.Hardtanh, nn.ReLU6, nn.SELU, nn.LeakyReLU)
    network = nn.Sequential(*(part for kind in kinds for part in (nn.Linear(6, 6), kind()))).eval()
    x = torch.randn(3, 6)
    bcos_fx.export(network, tmp_path / "activations.onnx", x, explanation=True)
    assert_explains(tmp_path / "activations.onnx", network, x, torch.tensor([5, 0, 2]))


class PositionsFirst(nn.Module):
    """Puts positions before samples, so that a constant is added to rows whose samples cannot be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.layer(x.transpose(0, 1).reshape(-1, 6))
        return torch.relu(rows).view(4, -1, 6).transpose(0, 1).mean(1)


def test_samples_that_cannot_be_told_apart_are_explained_one_at_a_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = PositionsFirst().eval(), torch.randn(3, 4, 6)
    found = bcos_fx.export(network, tmp_path / "one.pt2", x, explanation=True)
    assert found.why_one is not None
    assert "told apart" in found.why_one
    assert found.inputs == {"x": "(1, 4, 6) float32", "target": "(1) int64"}
    assert_explains(tmp_path / "one.pt2", network, x[:1], torch.tensor([5]))


# ---------------------------------------------------------------- what a wrong file meets


def broken(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """The decompositions, with that of a convolution's backward pass changed."""
    table = graphs.decompositions()
    operation = torch.ops.aten.convolution_backward.default
    right = table[operation]
    return lambda: table | {operation: lambda *given: (change(right(*given)[0]), None, None)}


@pytest.mark.parametrize(
    "change", [lambda gradient: gradient * 1.01, lambda gradient: gradient.flip(3)], ids=["scaled", "flipped"]
)
def test_a_file_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    monkeypatch.setattr(graphs, "decompositions", broken(change))
    path = tmp_path / "wrong.pt2"
    path.write_bytes(b"what was there")
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten()).eval()
    with pytest.raises(VerificationError, match="contributions differ"):
        bcos_fx.export(network, path, images(size=5), explanation=True, overwrite=True)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("wrong.pt2", b"what was there")]


def test_sums_are_those_of_the_file_and_not_of_the_view(
    cnn: bcos_fx.BcosNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers that were found equal to the view's are added up all the same."""
    from bcos_fx.exporting import subjects

    subject = subjects.ExplanationOfOutputs(cnn, [images(2, size=SIZE)], None, None)
    right = list(subject.graph(*subject.arguments(slice(None))))
    assert subject.check(lambda given: right, 2).completeness == "complete"
    monkeypatch.setattr(subjects, "_compared", lambda wanted, found: 0.0)
    with pytest.raises(VerificationError, match="do not add up"):
        subject.check(lambda given: [right[0], right[1], 0.5 * right[2], right[3]], 2)


# ---------------------------------------------------------------- what cannot be exported


def refused(error: type[BcosFxError], *arguments: Any, **options: Any) -> str:
    with pytest.raises(error) as found:
        bcos_fx.export(*arguments, **options)
    assert found.value.hint
    return str(found.value)


def test_refusals_say_what_and_where_and_what_to_do(cnn: bcos_fx.BcosNetwork, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    assert ".onnx" in refused(UsageError, cnn, tmp_path / "net.onx")
    assert "explanation=True" in refused(UsageError, cnn, out, source="first.0")
    assert "inputs=" in refused(UsageError, nn.Linear(4, 3).eval(), out)
    assert "train mode" in refused(UsageError, nn.Linear(4, 3), out, torch.rand(2, 4))
    assert "no layer named 'headd'" in refused(UsageError, cnn, out, explanation=True, output="headd")
    squared = nn.Sequential(nn.Linear(4, 4), nn.Softmax(1)).eval()
    assert 'output="logits"' in refused(VerificationError, squared, out, torch.rand(2, 4), explanation=True)
    (tmp_path / "there.onnx").touch()
    assert "there already" in refused(UsageError, cnn, tmp_path / "there.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["there.onnx"]


class Grid(nn.Module):
    """Reads its input at places that a fixed grid names, by an operation whose transpose ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", torch.rand(1, 3, 3, 2) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.grid_sample(x, self.grid.expand(x.shape[0], -1, -1, -1), align_corners=False).flatten(1)


def test_an_operation_that_onnx_does_not_have_is_named(tmp_path: Path) -> None:
    message = refused(TraceError, Grid().eval(), tmp_path / "out.onnx", torch.rand(2, 3, 5, 5), explanation=True)
    assert "aten.grid_sampler_2d_backward" in message
    assert ".pt2" in message
    assert not list(tmp_path.iterdir())
