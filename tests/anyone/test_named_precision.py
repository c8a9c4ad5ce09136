"""float32 named in a forward: the network converts, and is proved in float64 and in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.tracing import trace
from bcos_fx.verification import verify
from bcos_fx.verification.widening import Widened


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.table = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 6), torch.rand(6, 6)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))


class Applying(Base):
    def __init__(self, function: Callable[[Base, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.function(self, x))


def zeros_as_state(m: Base, x: Tensor) -> Tensor:
    state = torch.zeros(x.shape[0], 6)
    for _ in range(2):
        state = F.linear(state, m.linear.weight).tanh() + m.features(x)
    return state


def asserting(m: Base, x: Tensor) -> Tensor:
    assert x.dtype == torch.float32
    return m.features(x) @ torch.eye(6, dtype=x.dtype)


FORWARDS: dict[str, Callable[[Base, Tensor], Tensor]] = {
    "float": lambda m, x: m.features(x.float()),
    "to": lambda m, x: m.features(x).to(torch.float32),
    "to by name": lambda m, x: m.features(x.to(dtype=torch.float32)),
    "type": lambda m, x: m.features(x).type(torch.FloatTensor),
    "type as text": lambda m, x: m.features(x).type("torch.FloatTensor"),
    "eye": lambda m, x: m.features(x) @ torch.eye(6),
    "attribute": lambda m, x: m.features(x) @ m.table,
    "numpy": lambda m, x: m.features(x) @ torch.from_numpy(np.eye(6, dtype=np.float32) * 0.7),
    "numbers": lambda m, x: m.features(x) @ torch.tensor([[0.1 * i - 0.2 * j for i in range(6)] for j in range(6)]),
    "computed table": lambda m, x: m.features(x) @ (torch.arange(36).float().view(6, 6) / 7).sin(),
    "table of a size": lambda m, x: F.linear(m.features(x), torch.linspace(0, 1, x.shape[2])[:6].repeat(6, 1) + 0.3),
    "zeros": lambda m, x: torch.bmm(m.features(x).unsqueeze(1), torch.zeros(x.shape[0], 6, 6) + 0.1).squeeze(1),
    "zeros of a dtype": lambda m, x: (
        F.linear(torch.zeros(x.shape[0], 6, dtype=torch.float32), m.linear.weight) + m.features(x)
    ),
    "state": zeros_as_state,
    "softmax": lambda m, x: F.linear(m.features(x).softmax(1, dtype=torch.float32), m.linear.weight),
    "assertion": asserting,
    "mask": lambda m, x: m.features(x) @ ((x > 0.5).float().mean((0, 2, 3)).repeat(2).diag() + 1),
}


def figures(network: bcos_fx.BcosNetwork) -> dict[str, Any]:
    verification = network.report.figures.verification
    assert verification is not None
    return verification


@pytest.mark.parametrize("name", FORWARDS)
def test_a_network_that_names_float32_is_proved_in_both_precisions(name: str) -> None:
    module, x = Applying(FORWARDS[name]).eval(), torch.rand(2, 3, 8, 8)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    found = figures(network)
    assert found["ok"]
    assert found["dtype"] == "float64"
    rows = {row["name"]: row for row in found["comparisons"]}
    assert {"eval, batch 1", "eval, batch 2", "input gradient"} <= set(rows)
    assert all(row["relative"] < 1e-12 for name, row in rows.items() if not name.startswith("float32"))
    assert not {"float32: eval, batch 1", "float32: eval, batch 2"} - set(rows) or "softmax" in name or "state" in name
    torch.testing.assert_close(network(x), module(x))


@pytest.mark.parametrize("name", ["float", "to", "type as text", "softmax", "mask", "state"])
def test_the_graph_is_the_original_in_float32_bit_by_bit_and_runs_in_float64(name: str) -> None:
    module, x = Applying(FORWARDS[name]).eval(), torch.rand(2, 3, 8, 8)
    graph = trace(module, x).graph_module
    for size in (8, 10):
        other = torch.rand(3, 3, size, size)
        assert torch.equal(graph(other), module(other))
    with pytest.raises(RuntimeError):
        module.double()(x.double())
    wide = graph.double()(x.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), module.float()(x))


def test_the_report_says_so() -> None:
    network = bcos_fx.bcosify(Applying(FORWARDS["float"]), example_inputs=torch.rand(2, 3, 8, 8))
    note = next(note for note in network.report.notes if "float32 is named" in note)
    assert "bit by bit" in note
    assert "x.float()" in note
    assert "read as float64" in figures(network)["detail"]


class Bytes(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x.float() / 255))


class BytesDivided(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x / 255))


class BytesOfWeight(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.features(x.to(self.linear.weight.dtype) / 255))


@pytest.mark.parametrize("kind", [Bytes, BytesDivided, BytesOfWeight])
def test_bytes_are_cast_inside(kind: type[Base]) -> None:
    module, x = kind().eval(), torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    assert figures(network)["ok"]
    torch.testing.assert_close(network(x), module(x))
    assert network.double()(x).dtype == torch.float64


class Mutant(nn.Module):
    """Adds an error relative to the scale; only to one precision if asked to."""

    def __init__(self, module: nn.Module, error: float, only: torch.dtype | None = None) -> None:
        super().__init__()
        self.module, self.error, self.only = module, error, only

    def forward(self, x: Tensor) -> Tensor:
        y = self.module(x)
        return y * (1 + self.error) if self.only in (None, next(self.module.parameters()).dtype) else y


@pytest.mark.parametrize(
    ("error", "only", "caught"),
    [
        (0.0, None, False),
        (1e-7, torch.float64, True),
        (1e-2, torch.float32, True),
        (1e-7, None, True),
    ],
)
def test_errors_are_found_in_either_precision(error: float, only: torch.dtype | None, caught: bool) -> None:
    module, x = Applying(FORWARDS["float"]).eval(), torch.rand(4, 3, 8, 8)
    graph = trace(module, x).graph_module
    result = verify(module, Mutant(graph, error, only), x)
    assert result.ok is not caught
    assert any(row.verdict == "different" for row in result.comparisons) is caught


@pytest.mark.parametrize("rounding", [lambda y: y.half().float(), lambda y: y.bfloat16().float()])
def test_a_rounding_of_the_original_is_no_name_of_a_precision(rounding: Callable[[Tensor], Tensor]) -> None:
    """16 bits stay 16 bits: the proof is held to them."""
    module, x = Applying(lambda m, x: rounding(m.features(x))).eval(), torch.rand(2, 3, 8, 8)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    torch.testing.assert_close(network(x), module(x), atol=1e-2, rtol=1e-2)


def test_a_network_that_runs_in_float64_is_left_as_it_is() -> None:
    class Keeping(Base):
        def forward(self, x: Tensor) -> Tensor:
            y = self.features(x)
            return self.linear(y.float().to(y.dtype))

    result = trace(Keeping(), torch.rand(2, 3, 8, 8))
    assert not any("float32 is named" in note for note in result.notes)
    assert any(node.target == "float" for node in result.graph_module.graph.nodes)


def test_inputs_of_a_wrong_shape_are_no_matter_of_precision() -> None:
    module = Applying(FORWARDS["float"]).eval()
    with pytest.raises(UsageError, match="cannot run"):
        verify(module, module, torch.rand(2, 4, 8, 8))


def test_a_widened_run_believes_that_it_is_in_float32() -> None:
    x = torch.rand(2, 3, dtype=torch.float64)
    with Widened([x]):
        assert x.dtype == torch.float32
        y = (x.float() * torch.ones(3)).to(torch.float32)
        kept = torch.ones(3) / 3
        assert kept.dtype == torch.float32
        state = torch.zeros_like(x)
        state += kept
    assert y.dtype == state.dtype == torch.float64
    assert torch.equal(y, x)
    assert torch.equal(state, (torch.ones(3) / 3).double().expand(2, 3))


def test_sums_of_a_float64_network_with_a_step_in_float32_hold_to_float32() -> None:
    class Stepped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.first(x)).float()).double()

    torch.manual_seed(0)
    found = bcos_fx.explain(Stepped().eval(), torch.randn(3, 6, dtype=torch.float64), 1)
    assert found.complete
    assert found.residual.abs().max() > 1e-12 * found.output.abs().max(), "nothing was rounded, so nothing is tested"
    assert any("float32 on the way" in note for note in found.notes)
