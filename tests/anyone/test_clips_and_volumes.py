"""Mean and std of clips (N, C, T, H, W), volumes (N, C, D, H, W) and signals (N, C, T)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
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


def normalised(x: Tensor) -> Tensor:
    channels = x.shape[1]
    sizes = [channels, *[1] * (x.dim() - 2)]
    mean, std = (torch.tensor(v[:channels], dtype=x.dtype).reshape(sizes) for v in (MEAN, STD))
    return (x - mean) / std


@pytest.mark.parametrize("input", ["normalised", "folded"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "flattened"])
def test_they_are_encoded_and_explained(name: str, input: str) -> None:
    make, shape = CASES[name]
    network, x = make(), torch.rand(shape, dtype=torch.float64)
    statistics = {"mean": MEAN[: shape[1]], "std": STD[: shape[1]]}
    made = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", input=input, **statistics)
    assert made.record.inputs[0].encoded
    leaf = x.clone().requires_grad_()
    expected = network(normalised(leaf))
    with torch.no_grad():
        torch.testing.assert_close(made(x), expected, rtol=1e-9, atol=1e-9)
    expected[:, 1].sum().backward()
    found = bcos_fx.explain(made, x, 1)
    assert found.complete
    assert found.encoded.shape[1] == 2 * shape[1]
    torch.testing.assert_close(found.input_weights, leaf.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.contributions.flatten(1).sum(1) + found.constants.total(), found.output)
    assert found.contributions.shape == (shape[0], *shape[2:])
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


class FramesFirst(nn.Module):
    """(N, T, C, H, W), frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x.flatten(0, 1)).relu().mean((2, 3)).unflatten(0, (-1, x.shape[1])).mean(1))


def test_frames_before_channels_are_refused_by_name() -> None:
    for shape in ((2, 4, 3, 8, 8), (2, 3, 3, 8, 8)):
        with pytest.raises(UsageError, match="mean and std were given") as caught:
            bcos_fx.bcosify(FramesFirst().eval(), example_inputs=torch.rand(shape), mean=MEAN, std=STD)
        assert "channels are dimension 2" in (caught.value.where or "")


def test_sequences_of_features_are_refused_by_name() -> None:
    network = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2)).eval()
    with pytest.raises(UsageError) as caught:
        bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 3), mean=MEAN, std=STD)
    assert "channels are dimension 2" in (caught.value.where or "")
    without = bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 3), recipe="equivalent")
    assert not without.record.inputs[0].encoded


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
