"""What a forward reads from its network's precision follows that precision in the graph; what it fixes stays."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.tracing import trace


class Reading(nn.Module):
    """Casts to what its weights have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(4, dtype=torch.int64).to(torch.float32).sqrt()
        return self.conv(x).mean((2, 3)) + places.to(self.conv.weight.dtype)


class Making(Reading):
    """Makes a constant in its own precision, which float32 rounds."""

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.arange(4, dtype=x.dtype, device=x.device) / 3
        return self.conv(x).mean((2, 3)) + angles.sin()


class Keeping(Reading):
    """Computes in float32 whatever its precision, and comes back to it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y.to(torch.float32).mean((2, 3)) * math.pi).to(y.dtype)


class Fixing(Reading):
    """Makes a constant in float32 and divides sizes by it there, whatever its precision."""

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(1, 5, dtype=torch.float32) / 3
        places = torch.ones(x.shape[2], 4).cumsum(0, dtype=torch.float32) / steps
        return self.conv(x).mean((2, 3)) + places.mean(0).to(x.dtype)


class Remembering(Making):
    """Keeps a size of its input as an attribute, and reads it at the next call before it sets it again."""

    def __init__(self) -> None:
        super().__init__()
        self.side = 99

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < self.side:
            self.side = x.shape[-1]
        return super().forward(x) * (self.side // 8)


def images() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", [Reading, Making, Keeping, Fixing, Remembering])
@pytest.mark.parametrize("traced_in", [torch.float32, torch.float64])
@pytest.mark.parametrize("moved_to", [torch.float32, torch.float64, torch.bfloat16])
def test_a_graph_computes_in_every_precision_what_the_module_does(kind: Any, traced_in: Any, moved_to: Any) -> None:
    module = kind().eval().to(traced_in)
    graph_module = trace(module, images().to(traced_in)).graph_module.to(moved_to)
    expected = copy.deepcopy(module).to(moved_to)(images().to(moved_to))
    found = graph_module(images().to(moved_to))
    assert found.dtype == expected.dtype == moved_to
    # Below float64 a constant that is kept is the exact one, rounded; the module's own went through roundings.
    assert (found - expected).abs().max() <= {torch.float64: 0, torch.float32: 1e-7, torch.bfloat16: 0.02}[moved_to]


def test_a_literal_of_the_authors_own_stays() -> None:
    graph = trace(Keeping().eval(), images()).graph_module.graph
    casts = [node.args[1] for node in graph.nodes if node.target == "to"]
    assert casts[0] is torch.float32
    assert casts[1].target is getattr  # type: ignore[union-attr]


def test_nothing_is_added_where_nothing_follows() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), images()).graph_module.graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_module", "call_module", "output"]


@pytest.mark.parametrize("kind", [Reading, Making, Fixing])
def test_such_networks_convert_and_are_proven_equal(kind: Any) -> None:
    network = bcos_fx.bcosify(kind().eval(), example_inputs=images(), recipe="equivalent")
    verification = network.report.figures.verification
    assert verification is not None
    assert verification["ok"], verification["detail"]
    assert verification["error"] <= 1e-12


class OnePrecision(Reading):
    """Runs in float32 alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) @ torch.eye(4, dtype=torch.float32)


def test_a_module_of_one_precision_is_traced_in_that() -> None:
    module = OnePrecision().eval()
    assert torch.equal(trace(module, images()).graph_module(images()), module(images()))


@pytest.mark.parametrize("kind", [Reading, Making, Keeping, Fixing])
def test_what_is_read_of_precision_needs_no_copy_of_large_parameters(
    kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network, x = kind().eval(), torch.rand(2, 3, 8, 8)
    expected = trace(network, x).graph_module
    copied: list[int] = []
    whole = nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        copied.append(sum(p.untyped_storage().nbytes() for p in module.parameters()))
        return whole(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr("bcos_fx.tracing.precision._LARGE", 1)
    found = trace(network, x).graph_module
    assert copied == [8 * len(list(network.parameters()))]  # one number for each
    assert str(found.graph) == str(expected.graph)
    assert torch.equal(found.double()(x.double()), expected.double()(x.double()))
