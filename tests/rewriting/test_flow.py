"""Where values flow, on graphs small enough to say by hand what each node is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.rewriting.core.flow import CONSTANT, EXPLAINED, GATE, UNKNOWN, VALUE, analyze
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.tracing import trace
from tests.rewriting.graphs import node_of, reader_of

Forward = Callable[[Any, Tensor], Tensor]

KINDS: dict[str, tuple[Forward, dict[str, str]]] = {
    "a layer carries a value": (lambda m, x: m.a(x), {"linear": VALUE, "output": VALUE}),
    "a parameter is a constant": (lambda m, x: x + m.p * 2, {"mul": CONSTANT, "add": VALUE}),
    "an exponential only weights": (lambda m, x: m.a(x) * m.b(x).exp(), {"exp": GATE, "mul": VALUE}),
    "so does a comparison": (lambda m, x: m.a(x) * (x > 0), {"compare": GATE, "mul": VALUE}),
    "a rounded number is not a weighted sum": (lambda m, x: m.a(x).round(), {"rounding": UNKNOWN}),
    "a gate that is all there is": (lambda m, x: m.a(x).exp(), {"linear": VALUE, "exp": GATE}),
    "a sum of two gates is none of a value": (lambda m, x: x.exp() + x.exp(), {"add": GATE}),
    "a gate beside a value is a constant of it": (lambda m, x: x + x.exp(), {"exp": GATE, "add": VALUE}),
    "an operation that no entry knows": (lambda m, x: torch.special.i0(x), {"output": UNKNOWN}),
}


@pytest.mark.parametrize("case", KINDS)
def test_every_node_is_of_its_kind(case: str) -> None:
    forward, expected = KINDS[case]
    reader = reader_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4), p=nn.Parameter(torch.rand(4)))
    kinds = {reader.op(node): reader.flow.kinds[node.name] for node in reader.graph_module.graph.nodes}
    assert {op: kinds[op] for op in expected} == expected
    begins = {name for name, kind in reader.flow.kinds.items() if kind == UNKNOWN}
    assert set(reader.flow.reasons) <= begins
    assert bool(begins) == bool(reader.flow.reasons), "where the unknown begins there is a reason"


def test_a_layer_that_feeds_gates_alone_is_on_no_value_path() -> None:
    reader = reader_of(lambda m, x: m.a(x) * m.b(x).sigmoid(), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    value, weight = node_of(reader, "linear"), node_of(reader, "linear", 1)
    assert (value.target, weight.target) == ("a", "b")
    assert reader.flow.on_value_path(value)
    assert not reader.flow.on_value_path(weight)
    product = reader.call(node_of(reader, "mul"))
    assert product is not None
    assert [reader.flow.is_gate(product, name, product.arguments[name]) for name in ("input", "other")] == [False, True]


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_values_the_activated_one_weights_the_other(swapped: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        first, second = m.a(x), m.b(x).relu()
        return second * first if swapped else first * second

    reader = reader_of(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    choice = reader.flow.choices[node_of(reader, "mul").name]
    assert choice.gate == node_of(reader, "relu").name
    assert choice.why
    assert not reader.flow.on_value_path(node_of(reader, "linear", 1))


def test_beside_a_marked_source_everything_else_is_constant() -> None:
    reader = reader_of(lambda m, x: m.b(m.a(x)) + m.c(x), a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4))
    inner = node_of(reader, "linear")
    inner.meta[EXPLAINED] = True
    flow = analyze(reader.graph_module, vocabulary())
    assert flow.main == (inner.name,)
    assert flow.kinds[node_of(reader, "linear", 1).name] == VALUE
    assert flow.kinds[node_of(reader, "linear", 2).name] == CONSTANT
    assert flow.kinds[node_of(reader, "add").name] == VALUE


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) * self.b(y)


def test_what_another_input_gives_weights_what_the_main_input_gives() -> None:
    graph_module = trace(TwoInputs().eval(), (torch.rand(2, 4), torch.rand(2, 4))).graph_module
    flow = analyze(graph_module, vocabulary())
    assert flow.main == ("x",)
    assert flow.choices["mul"].gate == "b"
    assert flow.choices["mul"].why == "it does not depend on x"
    assert flow.value_path >= {"x", "a", "mul"}
    assert not flow.value_path & {"y", "b"}
