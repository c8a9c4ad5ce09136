"""Scalars of foreign kinds in a forward: plain Python values in the graph, exactly, or refused by name."""

from __future__ import annotations

import decimal
import enum
import fractions
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import TraceError
from bcos_fx.tracing import trace
from bcos_fx.tracing.arguments import leaves_of
from bcos_fx.tracing.scalars import ForeignScalarError, plain_scalar


class Axis(enum.IntEnum):
    CHANNEL = 1
    ROW = 2


class Mode(enum.StrEnum):
    NEAREST = "nearest"


class Named(enum.Enum):
    HALF = 0.5


class Half(float):
    """A float that converts to something else."""

    def __float__(self) -> float:
        return 7.0


class Applying(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x)).mean((2, 3))


FORWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "operator": lambda y: y / np.sqrt(2),
    "function": lambda y: torch.div(y, np.sqrt(2)),
    "float32": lambda y: y * np.float32(1.1),
    "float16": lambda y: y - np.float16(0.3),
    "positional": lambda y: F.leaky_relu(y, np.float64(0.1)),
    "keyword": lambda y: F.leaky_relu(y, negative_slope=np.float32(0.1)),
    "infinite": lambda y: y.clamp(np.float64(-0.0), np.inf),
    "nested": lambda y: F.pad(y, (np.int64(1), np.int64(2))),
    "slice": lambda y: y[:, np.int64(1) : np.int64(3)],
    "index": lambda y: y[:, np.array([0, 2])],
    "mask": lambda y: y[:, np.array([True, False, True, False])],
    "size": lambda y: y.reshape(torch.Size([-1, 4, 8, 8])),
    "integer enum": lambda y: y.transpose(Axis.ROW, 3) + y.sum(Axis.CHANNEL, keepdim=True),
    "text enum": lambda y: F.interpolate(y, scale_factor=np.float64(2), mode=Mode.NEAREST),
    "subclass": lambda y: y * Half(0.5),
    "imaginary unit": lambda y: torch.fft.ifft(torch.fft.fft(y) * 1j * (0.5 - 0.25j)).real,
    "layout": lambda y: y + torch.ones(y.shape[2:], dtype=y.dtype, layout=y.layout, device=y.device),
    "dtype class": lambda y: (y + torch.zeros(y.shape[0], 1, 1, 1, dtype=float)).float(),  # type: ignore[arg-type]
    "size over integer": lambda y: y.reshape(y.shape[0], y.shape[1], int(y.shape[2] / np.int64(2)), -1),
    "number over size": lambda y: y * (np.float64(2) / y.shape[2]),
    "root of size": lambda y: y / np.sqrt(y.shape[1]),
    "fraction of size": lambda y: y[:, :, : int(y.shape[2] * fractions.Fraction(1, 2))],
    "decimal of size": lambda y: y[:, :, : int(decimal.Decimal("0.5") * y.shape[2])],
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_foreign_scalar_converts_and_is_stored(name: str, tmp_path: Path) -> None:
    module, x = Applying(FORWARDS[name]).eval(), torch.rand(3, 3, 8, 8)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    assert network.report.figures.verification is not None
    torch.testing.assert_close(network(x), module(x))
    foreign = [leaf for node in network.graph.nodes for leaf in leaves_of(node) if type(leaf).__module__ == "numpy"]
    assert not foreign
    bcos_fx.save(network, tmp_path / "network.safetensors")
    assert torch.equal(bcos_fx.load(tmp_path / "network.safetensors")(x), network(x))


def test_what_has_no_plain_form_is_refused_by_name() -> None:
    with pytest.raises(TraceError, match="longdouble") as caught:
        trace(Applying(lambda y: torch.mul(y, np.longdouble(1.5))), torch.rand(2, 3, 8, 8))
    assert "float(value)" in str(caught.value)


@pytest.mark.parametrize("value", [fractions.Fraction(1, 3), decimal.Decimal("0.1"), Named.HALF, object()])
def test_other_kinds_have_no_plain_form(value: Any) -> None:
    with pytest.raises(ForeignScalarError):
        plain_scalar(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float64(math.pi), math.pi),
        (np.float32(0.1), 0.10000000149011612),
        (np.bool_(True), True),
        (np.int8(-3), -3),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.array(2.5), 2.5),
        (np.complex64(1 + 2j), 1 + 2j),
        (np.str_("nearest"), "nearest"),
        (Axis.ROW, 2),
        (Mode.NEAREST, "nearest"),
        (Half(0.25), 0.25),
        (float, torch.float64),
        (bool, torch.bool),
    ],
)
def test_a_plain_value_is_exact(value: Any, plain: Any) -> None:
    found = plain_scalar(value)
    assert type(found) is type(plain)
    assert found == plain


def test_signs_and_numbers_that_are_not_finite_stay() -> None:
    assert math.copysign(1, plain_scalar(np.float64(-0.0))) == -1
    assert plain_scalar(np.float32("-inf")) == -math.inf
    assert math.isnan(plain_scalar(np.float64("nan")))


def test_nan_in_an_argument_is_the_same_in_train_mode() -> None:
    module = Applying(lambda y: torch.nan_to_num(y, nan=math.nan))
    assert trace(module, torch.rand(2, 3, 8, 8)).train_difference is None


@pytest.mark.parametrize("layer", [nn.LeakyReLU(np.float32(0.1)), nn.Dropout(np.float64(0.5)), nn.ELU(np.float64(1.5))])
def test_options_of_layers_are_plain(layer: nn.Module, tmp_path: Path) -> None:
    module, x = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Flatten(), nn.Linear(144, 2)).eval(), torch.rand(2, 3, 8, 8)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    bcos_fx.save(network, tmp_path / "network.safetensors")
    torch.testing.assert_close(bcos_fx.load(tmp_path / "network.safetensors")(x), module(x))


def test_arithmetic_of_numpy_and_sizes_follows_the_input() -> None:
    module = Applying(lambda y: y * (np.float64(2) / y.shape[2]) + np.int64(3) * y.shape[3]).eval()
    graph = trace(module, torch.rand(2, 3, 8, 8)).graph_module
    other = torch.rand(2, 3, 6, 10)
    torch.testing.assert_close(graph(other), module(other))
