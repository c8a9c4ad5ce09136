"""Mean and std of clips, volumes, signals and sequences, the channels in whatever dimension."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.nn import InputDecoding
from tests import golden

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def ended(*layers: nn.Module, pool: nn.Module, width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*layers, nn.ReLU(), pool, nn.Flatten(), nn.Linear(width, 4)).double().eval()


class Factorised(nn.Module):
    """A convolution over space and one over time, with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.space, self.time = (
            nn.Conv3d(3, 8, (1, 3, 3), padding=(0, 1, 1)),
            nn.Conv3d(8, 8, (3, 1, 1), padding=(1, 0, 0)),
        )
        self.norm, self.fc = nn.BatchNorm3d(8), nn.Linear(8, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.space(x)).relu()
        return self.fc((h + self.time(h)).mean((2, 3, 4)))


class PoolsFirst(nn.Module):
    """Padding, resampling and pooling before the first layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv3d(3, 8, 3), nn.Linear(8, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(nn.functional.avg_pool3d(x, 2), (1, 1, 1, 1, 1, 1))
        return self.fc(self.conv(x).relu().amax((2, 3, 4)))


class Parts(nn.Module):
    """Layers, and what is computed of them."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.body = nn.ModuleList(parts), body
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.parts, x)


def by_frame(m: Any, x: Tensor) -> Tensor:
    b, t, c, h, w = x.shape
    return m[0](x.view(b * t, c, h, w)).relu().mean((2, 3)).view(b, t, -1).mean(1)


def step_by_step(m: Any, x: Tensor) -> Tensor:
    return torch.stack([m[0](x[:, t]).relu().amax((2, 3)) for t in range(x.shape[1])], 1).mean(1)


def patches_last(m: Any, x: Tensor) -> Tensor:
    cut = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3)
    return m[0](cut.flatten(3).flatten(1, 2)).relu().mean(1)


def scaled_last(m: Any, x: Tensor) -> Tensor:
    return m[0](nn.functional.pad(x - 0.1, (0, 0, 1, 1)).permute(0, 3, 1, 2)).relu().mean((2, 3))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "clip": (lambda: ended(nn.Conv3d(3, 8, 3, padding=1), pool=nn.AdaptiveAvgPool3d(1)), (2, 3, 6, 12, 12)),
    "tubelets": (
        lambda: ended(nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)), pool=nn.AdaptiveMaxPool3d(1)),
        (2, 3, 4, 12, 12),
    ),
    "factorised": (Factorised, (2, 3, 5, 8, 8)),
    "pooled first": (PoolsFirst, (2, 3, 6, 8, 8)),
    "volume of one channel": (lambda: ended(nn.Conv3d(1, 8, 3), pool=nn.AdaptiveAvgPool3d(1)), (2, 1, 7, 9, 8)),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 4 * 4, 4)).double().eval(), (2, 2, 3, 4, 4)),
    "signal": (lambda: ended(nn.Conv1d(2, 8, 5, stride=2), pool=nn.AdaptiveAvgPool1d(1)), (2, 2, 40)),
    "waveform": (lambda: ended(nn.Conv1d(1, 8, 16, stride=4), pool=nn.AdaptiveAvgPool1d(1)), (2, 1, 80)),
}


# name -> network, shape, the dimension of the channels
ELSEWHERE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "frames, then channels": (lambda: Parts(by_frame, nn.Conv2d(3, 5, 3)), (2, 4, 3, 6, 5), 2),
    "as many frames as channels": (lambda: Parts(by_frame, nn.Conv2d(3, 5, 3)), (2, 3, 3, 6, 5), 2),
    "frames in a loop": (lambda: Parts(step_by_step, nn.Conv2d(3, 5, 3)), (2, 4, 3, 6, 5), 2),
    "turned": (
        lambda: Parts(lambda m, x: m[0](x.transpose(1, 2)).relu().mean((2, 3, 4)), nn.Conv3d(3, 5, 3)),
        (2, 4, 3, 6, 5),
        2,
    ),
    "frames stacked": (
        lambda: Parts(lambda m, x: m[0](x.flatten(1, 2)).relu().mean((2, 3)), nn.Conv2d(12, 5, 3)),
        (2, 4, 3, 6, 5),
        2,
    ),
    "flat clip": (lambda: Parts(lambda m, x: m[0](x.flatten(1)), nn.Linear(240, 5)), (2, 4, 3, 5, 4), 2),
    "sequence": (lambda: Parts(lambda m, x: m[0](x).relu().mean(1), nn.Linear(3, 5)), (2, 7, 3), 2),
    "square sequence": (lambda: Parts(lambda m, x: m[0](x).relu().mean(1), nn.Linear(3, 5)), (2, 3, 3), 2),
    "mixed over time": (
        lambda: Parts(lambda m, x: m[1](m[0](x.mT).relu().flatten(1)), nn.Linear(6, 4), nn.Linear(12, 5)),
        (2, 6, 3),
        2,
    ),
    "channels last": (
        lambda: Parts(lambda m, x: m[0](x.permute(0, 3, 1, 2)).relu().mean((2, 3)), nn.Conv2d(3, 5, 3)),
        (2, 6, 5, 3),
        3,
    ),
    "channels last, shifted and padded": (lambda: Parts(scaled_last, nn.Conv2d(3, 5, 3)), (2, 6, 5, 3), 3),
    "patches of channels last": (lambda: Parts(patches_last, nn.Linear(12, 5)), (2, 6, 4, 3), 3),
}


def normalised(x: Tensor, axis: int = 1) -> Tensor:
    mean, std = (torch.tensor(v[: x.shape[axis]], dtype=x.dtype) for v in (MEAN, STD))
    return ((x.movedim(axis, -1) - mean) / std).movedim(-1, axis)


_FOLDED = [name for place, name in enumerate([*CASES, *ELSEWHERE]) if place % 3 == 0]


@pytest.mark.parametrize(
    ("name", "input"), [*((n, "normalised") for n in (*CASES, *ELSEWHERE)), *((n, "folded") for n in _FOLDED)]
)
def test_they_are_encoded_and_explained(name: str, input: str) -> None:
    make, shape, axis = ELSEWHERE.get(name) or (*CASES[name], 1)
    torch.manual_seed(1)
    network, x = make(), torch.rand(shape, dtype=torch.float64)
    statistics = {"mean": MEAN[: shape[axis]], "std": STD[: shape[axis]]}
    made = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", input=input, **statistics)
    assert (made.record.inputs[0].encoded, made.record.inputs[0].channel_axis) == (True, axis)
    # The layers read [x', -x'] themselves, but for one that is called again and again, or that sums over time.
    left = any(isinstance(module, InputDecoding) for module in made.modules())
    assert left == (name in ("frames in a loop", "mixed over time"))
    leaf = x.clone().requires_grad_()
    expected = network(normalised(leaf, axis))
    with torch.no_grad():
        torch.testing.assert_close(made(x), expected, rtol=1e-9, atol=1e-9)
    expected[:, 1].sum().backward()
    found = bcos_fx.explain(made, x, 1)
    assert found.complete
    assert found.encoded.shape[axis] == 2 * shape[axis]
    torch.testing.assert_close(found.input_weights, leaf.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.contributions.flatten(1).sum(1) + found.constants.total(), found.output)
    if name not in ("flattened", "flat clip", "mixed over time"):  # what is summed over there are no channels
        assert found.contributions.shape == (*shape[:axis], *shape[axis + 1 :])
    torch.testing.assert_close(from_bytes(to_bytes(made))(x), made(x), rtol=0, atol=0)
    if input == "folded":
        changed = bcos_fx.explain(
            bcos_fx.bcosify(network, example_inputs=x, b=1.5, input=input, bias="keep", **statistics), x, 1
        )
        assert changed.verdict != "incomplete"


def test_what_becomes_of_a_clip_is_as_written(request: pytest.FixtureRequest) -> None:
    make, shape = CASES["pooled first"]
    made = bcos_fx.bcosify(make(), example_inputs=torch.rand(shape).double(), recipe="equivalent", mean=MEAN, std=STD)
    rows = [(row.name, row.op, ", ".join(row.inputs), " ".join(row.rules)) for row in made.report.nodes]
    text = "".join(f"{name:24} {op:24} ({inputs}) {rules}".rstrip() + "\n" for name, op, inputs, rules in rows)
    golden.compare(text, Path(__file__).parent / "golden" / "clip.txt", request)


def test_images_of_channels_last_have_colors() -> None:
    last, second = (
        Parts(body, nn.Conv2d(3, 5, 3))
        for body in (
            lambda m, x: m[0](x.permute(0, 3, 1, 2)).relu().mean((2, 3)),
            lambda m, x: m[0](x).relu().mean((2, 3)),
        )
    )
    second.load_state_dict(last.state_dict())
    x = torch.rand(2, 3, 8, 7, dtype=torch.float64)
    given = {last: x.movedim(1, -1), second: x}
    shown = []
    for network, images in given.items():
        made = bcos_fx.bcosify(network, example_inputs=images, recipe="equivalent", mean=MEAN, std=STD)
        shown.append(bcos_fx.explain(made, images, 1))
    assert all(found.colors for found in shown)
    pairs = zip(*(found.image() for found in shown), strict=True)
    assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_samples_may_be_another_dimension() -> None:
    network = Parts(lambda m, x: m[0](x).relu().mean(0), nn.Linear(3, 5))
    x = torch.rand(6, 2, 3, dtype=torch.float64)
    made = bcos_fx.bcosify(network, example_inputs=x, batch_axis=1, recipe="equivalent", mean=MEAN, std=STD)
    found = bcos_fx.explain(made, x, 1, batch_axis=1)
    leaf = x.clone().requires_grad_()
    network(normalised(leaf, 2))[:, 1].sum().backward()
    torch.testing.assert_close(found.input_weights, leaf.grad.movedim(1, 0))
    with pytest.raises(UsageError, match="with the samples in dimension 1, and batch_axis is 2"):
        bcos_fx.explain(made, x, 1, batch_axis=2)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((2, 3, 3, 4, 4), "which of them holds the channels is not known"), ((2, 4, 5, 2), "values and the input has")],
)
def test_channels_that_are_not_known_are_refused_by_name(shape: tuple[int, ...], reason: str) -> None:
    count = torch.Size(shape[1:]).numel()
    with pytest.raises(UsageError, match="mean and std were given") as caught:
        bcos_fx.bcosify(
            nn.Sequential(nn.Flatten(), nn.Linear(count, 4)).eval(),
            example_inputs=torch.rand(shape),
            mean=MEAN,
            std=STD,
        )
    assert reason in (caught.value.where or "")


def test_a_file_names_a_dimension_that_there_is() -> None:
    make, shape, _ = ELSEWHERE["sequence"]
    made = bcos_fx.bcosify(make(), example_inputs=torch.rand(shape).double(), recipe="equivalent", mean=MEAN, std=STD)
    (spec,) = made.record.inputs
    for axis in (3, -1):
        made.record = dataclasses.replace(made.record, inputs=(dataclasses.replace(spec, channel_axis=axis),))
        with pytest.raises(ArtifactError, match="has no dimension"):
            from_bytes(to_bytes(made))


def test_the_command_line_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from bcos_fx.cli import app

    monkeypatch.chdir(tmp_path)
    Path("clip.py").write_text(
        "from tests.anyone.test_clips_and_volumes import Factorised\ndef build():\n    return Factorised().float()\n"
    )
    statistics = ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
    words = ["convert", "--arch", "clip.py:build", *statistics, "--input-shape", "3,5,8,8", "--recipe", "equivalent"]
    done = CliRunner().invoke(app, [*words, "-o", "clip.safetensors", "--json"])
    assert done.exit_code == 0, done.output
    assert "encoded inside" in json.loads(done.stdout)["report"]["inputs"]["x"]
    checked = CliRunner().invoke(app, ["check", "clip.safetensors", "--json"])
    assert json.loads(checked.stdout)["certificate"]["completeness"]["verdict"] == "complete"
    x = torch.rand(2, 3, 5, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(bcos_fx.load("clip.safetensors")(x), Factorised().float()(normalised(x)))
