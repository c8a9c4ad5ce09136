"""Calibration against a slow reference of its own, over kinds of networks; and mutants that must not pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bcos_fx.calibration import calibrate, calibrate_, layers, measure_original
from bcos_fx.calibration.moments import Moments
from bcos_fx.calibration.walk import Program
from bcos_fx.convert import bcosify
from bcos_fx.network import BcosNetwork
from bcos_fx.testing import randomise_
from tests.calibration.slow_calibration import slowly


class Normed(nn.Module):
    """Batch norms, a residual, an in-place activation; (N, 3, 6, 6) to four logits."""

    norms = ("norm1", "norm2")
    order = ("norm1", "norm2", "head")
    rectified = ("norm1", "norm2")

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        x = x[:, :, 1:-1, 1:-1] + self.relu(self.norm2(self.conv2(x)))
        return self.head(torch.relu(x).amax((2, 3)))


class Inverted(nn.Module):
    """Two linear bottlenecks, whose norms no rectifier follows; (N, 3, 6, 6) to four logits."""

    norms = ("norm1", "norm2", "norm3")
    order = ("norm1", "norm2", "norm3", "head")
    rectified = ("norm2",)

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.conv3, self.norm3 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        x = self.norm3(self.conv3(nn.functional.relu6(x + x.flip(3))))
        return self.head(x.amax((2, 3)))


class Bare(nn.Module):
    """No batch norm: convolutions with and without bias, one transposed with groups; layer norm; linear layers."""

    norms = ()
    order = ("conv1", "conv2", "up", "mix", "head")
    rectified = ("conv1", "conv2", "up", "mix")

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1, bias=False)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.norm, self.mix, self.head = nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.up(torch.relu(self.conv2(torch.relu(self.conv1(x))))))
        x = self.norm(x.flatten(2).transpose(1, 2))
        return self.head((x + nn.functional.gelu(self.mix(x))).amax(1))


Made = tuple[nn.Module, BcosNetwork, Tensor]


def made(kind: Callable[[], Any], **options: Any) -> Made:
    """An original in float64, its conversion and images."""
    torch.manual_seed(0)
    original = randomise_(kind()).double().eval()
    images = torch.rand(10, 3, 6, 6, dtype=torch.float64)
    given = {"b": 2.0, "scale": "cosine", "bias": "keep", "pool": "keep", "head": "keep"} | options
    return original, bcosify(original, example_inputs=images[:2], verified=False, **given), images


def expected(kind: Any, network: BcosNetwork, images: Tensor, original: nn.Module | None) -> BcosNetwork:
    twin = copy.deepcopy(network)
    reference = None if original is None else bcosify(original, example_inputs=images[:2], recipe="equivalent")
    slowly(twin, images, kind, reference)
    return twin


def difference(first: nn.Module, second: nn.Module) -> float:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


KINDS = [
    (Normed, {}),
    (Normed, {"scale": "raw", "b": 1.5}),
    (Normed, {"bias": "strip"}),
    (Inverted, {}),
    (Inverted, {"bias": "strip"}),
    (Bare, {}),
    (Bare, {"scale": "raw", "b": 2.5}),
    (Bare, {"bias": "strip"}),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_with_the_original_it_is_the_slow_one(kind: Any, options: dict[str, Any]) -> None:
    original, network, images = made(kind, **options)
    wanted = expected(kind, network, images, original)
    found = calibrate(network, images, original, batch_size=3)
    assert difference(found, wanted) < 1e-9
    assert difference(found, network) > 1e-2
    assert [change.node for change in found.report.figures.calibration.layers] != []


@pytest.mark.parametrize("bias", ["keep", "strip"])
def test_without_the_original_statistics_alone_are_the_slow_ones(bias: str) -> None:
    _, network, images = made(Normed, bias=bias, pool="average")  # so that it is not its own original at B = 1
    found = calibrate(network, images, batch_size=4)
    assert difference(found, expected(Normed, network, images, None)) < 1e-12
    calibration = found.report.figures.calibration
    assert [change.kind for change in calibration.layers] == ["statistics", "statistics"]
    assert list(calibration.kept) == (["head"] if bias == "strip" else ["head"][: len(calibration.kept)])


def test_without_the_original_the_network_at_b_1_stands_for_it() -> None:
    original, network, images = made(Bare)
    alone, matched = calibrate(network, images), calibrate(network, images, original)
    assert difference(alone, matched) < 1e-9
    assert alone.report.figures.calibration.reference == "itself at B = 1"


@pytest.mark.parametrize("memory", [0, 5_000])
def test_what_lies_in_files_is_what_would_lie_in_memory(memory: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    original, network, images = made(Normed)
    found = calibrate(network, images, original, batch_size=2, memory=memory)
    assert difference(found, calibrate(network, images, original, batch_size=2)) == 0
    assert not list(tmp_path.iterdir())


def test_measured_once_the_original_need_not_run_again() -> None:
    original, network, images = made(Normed)
    targets = measure_original(network, images, original, batch_size=4)
    found = copy.deepcopy(network)
    for _ in range(2):
        calibrate_(found, images, targets, batch_size=4)
    assert difference(found, calibrate(calibrate(network, images, original), images, original)) < 1e-12


# ----- mutants: each is a mistake that is easily made, and must be seen in the statistics


def unordered(monkeypatch: pytest.MonkeyPatch) -> None:
    """All layers measure before any is changed."""
    real = layers.Norm.standardize
    pending: list[Any] = []

    def later(self: Any, measured: Moments, target: Any, live: Tensor) -> Any:
        pending.append((self, measured, target, live))
        if self.node.name == "norm2":
            return [real(*arguments) for arguments in pending][-1]
        return torch.ones_like(measured.mean), torch.zeros_like(measured.mean)

    monkeypatch.setattr(layers.Norm, "standardize", later)


def biased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Moments, "variance", property(lambda self: self._squares / self.count))


def mean_left(monkeypatch: pytest.MonkeyPatch) -> None:
    real = layers.Norm.standardize

    def without(self: Any, measured: Moments, target: Any, live: Tensor) -> Any:
        before = self.module.running_mean.clone()
        result = real(self, measured, target, live)
        self.module.running_mean.copy_(before)
        return result

    monkeypatch.setattr(layers.Norm, "standardize", without)


def last_batch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Moments.add

    def again(self: Moments, values: Tensor) -> None:
        Moments.__init__(self, self._dim)
        real(self, values)

    monkeypatch.setattr(Moments, "add", again)


def output_for_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Program, "input_of", lambda self, node, values: self.value(node, values))


@pytest.mark.parametrize("mutant", [unordered, biased, mean_left, last_batch_only, output_for_input])
def test_mutants_are_caught(mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    _, network, images = made(Normed, pool="average", bias="keep")
    wanted = expected(Normed, network, images, None)
    mutant(monkeypatch)
    found = copy.deepcopy(network)
    calibrate_(found, images, batch_size=4)
    norms = {name for name in wanted.state_dict() if "running" in name}
    assert max(float((found.state_dict()[n] - wanted.state_dict()[n]).abs().max()) for n in norms) > 1e-4


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
@settings(max_examples=60)
def test_moments_of_batches_are_those_of_all(sizes: list[int], middle: float, spread: float) -> None:
    torch.manual_seed(0)
    values = middle + spread * torch.randn(sum(sizes), 3, 2, dtype=torch.float64)
    moments = Moments(1)
    for part in values.split(sizes):
        moments.add(part)
    flat = values.movedim(1, 0).flatten(1)
    torch.testing.assert_close(moments.mean, flat.mean(1), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(moments.variance, flat.var(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(moments.power, flat.square().mean(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(moments.rectified_power, flat.clamp(min=0).square().mean(1), rtol=1e-9, atol=1e-12)
