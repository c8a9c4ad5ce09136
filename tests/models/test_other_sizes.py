"""Other sizes than that of the example: graphs of their own over one set of parameters, or a refusal."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.testing import randomise_


def images(side: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(side)).double()


def swin() -> nn.Module:
    """Swin V2 with windows of 4: whether they are shifted, and how they are padded, follows the size of the map."""
    models = pytest.importorskip("torchvision.models.swin_transformer")
    return models.SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=5, block=models.SwinTransformerBlockV2)


def swin_v2_t() -> nn.Module:
    """The published size: traced at 224 pixels, its shifts of windows are wrong at 448."""
    module: nn.Module = pytest.importorskip("torchvision.models").swin_v2_t()
    return module


def dino() -> nn.Module:
    """A vision transformer that interpolates its position embeddings to the size of its input."""
    transformers = pytest.importorskip("transformers")
    configuration = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
    )
    return transformers.Dinov2Model(configuration)


class Branching(nn.Module):
    """Another layer for large images, a constant as large as the map, a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.large, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.pool = nn.AvgPool2d(2)
        self.register_buffer("shift", torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.shift
        if x.shape[-1] > 8:
            x = self.large(self.pool(x))
        ramp = torch.linspace(0, 1, int(x.shape[-1]), dtype=x.dtype, device=x.device)
        return self.fc((x * ramp).mean((2, 3)))


SUBJECTS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "swin_v2": (swin, (32, 16, 48, 36), {}),
    "swin_v2_t": (swin_v2_t, (224, 448), {}),
    "interpolated positions": (dino, (32, 48, 24), {"output_key": "pooler_output"}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "swin_v2_t" else ()) for n in SUBJECTS]
)
def test_it_is_right_at_every_size_and_shares_its_parameters(name: str) -> None:
    make, sides, options = SUBJECTS[name]
    torch.manual_seed(0)
    original = randomise_(make()).double().eval()
    network = bcos_fx.bcosify(
        original, example_inputs=images(sides[0]), recipe="equivalent", keep_source=True, **options
    )
    before = set(network.state_dict())
    with torch.no_grad():
        for side in (*sides, sides[0]):
            expected = original(images(side))
            expected = expected if isinstance(expected, Tensor) else expected.pooler_output
            torch.testing.assert_close(network(images(side)), expected, rtol=1e-9, atol=1e-9)
        for parameter in network.parameters():
            parameter.mul_(1.5)
        moved = [network(images(side)) for side in sides]
        assert all(not torch.allclose(a, b) for a, b in itertools.pairwise(moved))
    assert set(network.state_dict()) == before
    certification = bcos_fx.certify(network, images(sides[1]))
    assert certification.ok, certification.to_text()
    assert certification.completeness is not None
    assert certification.completeness.worst <= 1e-9
    found = bcos_fx.explain(network, images(sides[1]), 0)
    torch.testing.assert_close(found.output, moved[1][:, 0], rtol=1e-9, atol=1e-9)
    assert found.contributions.shape == (2, sides[1], sides[1])


def branching(size: int, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    original = Branching().double().eval()
    return original, bcos_fx.bcosify(original, example_inputs=images(size), recipe="equivalent", **options)


def test_without_the_source_it_is_refused() -> None:
    _, network = branching(12)
    with pytest.raises(UsageError, match="may be wrong for") as caught:
        network(images(8))
    assert "keep_source=True" in str(caught.value.hint)


def test_a_graph_of_its_own_follows_what_becomes_of_the_network() -> None:
    """Precision, mode, buffers that are replaced, copies; and a single sample is as good as two."""
    source, network = branching(12, keep_source=True)
    original, twin = copy.deepcopy(source), copy.deepcopy(network)
    torch.testing.assert_close(network(images(8, 1)), original(images(8, 1)))
    network.float()
    torch.testing.assert_close(network(images(8).float()), original.float()(images(8).float()))
    network.shift = torch.zeros_like(network.shift)
    original.shift = torch.zeros_like(original.shift)
    torch.testing.assert_close(network(images(8).float()), original(images(8).float()))
    network.train()
    assert network.of_size([images(8).float()]).training
    network.eval()
    torch.testing.assert_close(twin(images(8)), source(images(8)))  # the copy has its own parameters


def test_a_layer_that_only_the_other_size_has_is_missed() -> None:
    _, network = branching(8, keep_source=True)
    with pytest.raises(UsageError, match="needs the parameters of 'large'") as caught:
        network(images(12))
    assert "convert the original again" in str(caught.value.hint)


def test_a_size_that_the_source_does_not_take_is_refused() -> None:
    torch.manual_seed(0)
    original = nn.Sequential(swin(), nn.Linear(5, 3)).double().eval()
    network = bcos_fx.bcosify(original, example_inputs=images(32), recipe="equivalent", keep_source=True)
    with pytest.raises(UsageError, match="does not run on the example inputs"):
        network(images(2))


def test_a_file_holds_the_first_graph(tmp_path: Any) -> None:
    _, network = branching(12, keep_source=True)
    path = bcos_fx.save(network, tmp_path / "first.safetensors")
    network(images(8))
    assert bcos_fx.save(network, tmp_path / "second.safetensors").read_bytes() == path.read_bytes()
    loaded = bcos_fx.load(path)
    torch.testing.assert_close(loaded(images(12)), network(images(12)))
    with pytest.raises(UsageError, match="may be wrong for"):
        loaded(images(8))
