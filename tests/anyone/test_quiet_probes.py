"""Trying sizes that a network does not take is no error, and prints nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import bcos_fx
from bcos_fx.tracing.modules import silence_graph_modules


class FixedPositions(nn.Module):
    """A vision transformer with one position per patch of an 8 x 8 image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(tokens.mean(1))


class FixedWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().flatten(1))


class FixedView(FixedWidth):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().view(-1, 144))


class FixedWindows(nn.Module):
    """Cuts the image into windows, as MaxViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).reshape(x.shape[0], 4, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5)
        return self.head(y.mean((1, 2, 4, 5)))


class FixedTable(nn.Module):
    """Multiplies by a table of the size of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)
        self.register_buffer("table", torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) * self.table).mean((2, 3)))


class Asserting(FixedTable):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == 8, "takes 8 pixels")
        return super().forward(x)


@pytest.mark.parametrize("kind", [FixedPositions, FixedWidth, FixedView, FixedWindows, FixedTable, Asserting])
@pytest.mark.parametrize("as_graph", [False, True], ids=["module", "graph module"])
def test_a_network_of_one_size_converts_without_a_word(
    kind: type[nn.Module], as_graph: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    module, x = kind().eval(), torch.rand(2, 3, 8, 8)
    given = fx.symbolic_trace(module) if as_graph else module
    network = bcos_fx.bcosify(given, example_inputs=x)
    assert network(x).shape == (2, 3)
    assert capfd.readouterr() == ("", "")
    assert any("size" in row["name"] for row in _rows(network)) or "left out" in str(_figures(network)["detail"])


def _figures(network: bcos_fx.BcosNetwork) -> dict[str, object]:
    verification = network.report.figures.verification
    assert verification is not None
    return verification


def _rows(network: bcos_fx.BcosNetwork) -> list[dict[str, str]]:
    rows = _figures(network)["comparisons"]
    assert isinstance(rows, list)
    return rows


def test_silence_is_that_of_the_copy_alone(capfd: pytest.CaptureFixture[str]) -> None:
    graph = fx.symbolic_trace(FixedView())
    twin = silence_graph_modules(copy.deepcopy(graph))
    for network, printed in ((twin, False), (graph, True)):
        with pytest.raises(RuntimeError):
            network(torch.rand(1, 3, 9, 9))
        assert bool(capfd.readouterr().err) is printed
