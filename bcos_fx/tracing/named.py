"""float32 named in a forward: the graph's own dtypes follow the network's precision, the original cannot.

``x.float()`` before layers in float64 raises, as ``torch.eye(6)`` or a state of zeros beside values in float64 does.
Such a network has one precision, and nothing about it can be proved in another. Its graph can do better: what depends
on the input or on parameters is computed in their precision, and what does not (a table, a state of zeros) stays the
float32 number that it is until it meets such a value. In float32 that is the original, operation by operation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate

from bcos_fx.errors import FORWARD_ERRORS
from bcos_fx.tracing.arguments import exchange, leaves_of, tensors
from bcos_fx.tracing.precision import cast, precision_node
from bcos_fx.tracing.program import attribute, run_node


@dataclass
class _Named:
    """What has to change where a node is run in another precision."""

    literals: list[int] = field(default_factory=list)
    sources: list[Node] = field(default_factory=list)
    after: bool = False


def follow_named(
    graph_module: GraphModule, inputs: Mapping[str, Tensor], recorded: torch.dtype, other: torch.dtype
) -> tuple[str, ...]:
    """Let the dtypes that a graph names follow the precision of its tensors, in place.

    Args:
        graph_module: recorded in the precision `recorded`.
        inputs: of the example run.
        recorded: a floating-point dtype.
        other: the one in which the graph is run to find where `recorded` is named.

    Returns:
        The lines that name it; none, and nothing is changed, where the graph does not run in `other` even then.
    """
    changes = _DtypeSearch(graph_module, recorded, other).run(inputs)
    if not changes:
        return ()
    dtype = precision_node(graph_module, recorded)
    for node, named in changes.items():
        _edit(node, named, dtype)
    graph_module.graph.lint()
    graph_module.recompile()
    return tuple(dict.fromkeys(node.meta["source"] for node in changes))


class _DtypeSearch:
    def __init__(self, graph_module: GraphModule, recorded: torch.dtype, other: torch.dtype) -> None:
        self._graph, self._own, self._other = graph_module.graph, recorded, other
        self._twin = copy.deepcopy(graph_module).to(other)
        self._values: dict[Node, Any] = {}
        self._dependent: set[Node] = set()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[Node, _Named]:
        changes: dict[Node, _Named] = {}
        try:
            for node in self._graph.nodes:
                if node.op == "placeholder":
                    value = inputs[str(node.target)]
                    self._values[node] = value.to(self._other) if value.is_floating_point() else value
                    self._dependent.add(node)
                elif node.op == "get_attr":
                    self._values[node] = attribute(self._twin, str(node.target))
                elif node.op != "output" and (named := self._step(node)) is not None:
                    changes[node] = named
        except FORWARD_ERRORS:  # something in it has one precision after all
            return {}
        return changes

    def _step(self, node: Node) -> _Named | None:
        sources = node.all_input_nodes
        read = {source: tensors(self._values[source]) for source in sources}
        # Reads neither the input nor a value of the other precision (a table, a state of zeros): it stays as it is.
        if not any(node in self._dependent for node in sources if read[node]) and not any(
            tensor.dtype == self._other for values in read.values() for tensor in values
        ):
            self._values[node] = self._run(node, _Named())
            return None
        self._dependent.add(node)
        try:
            value = self._run(node, _Named())
        except FORWARD_ERRORS:
            value = None
        if value is not None and not self._is_own(value):
            self._values[node] = value
            return None
        # The call raised, or fell back to the graph's own precision: exchange the dtypes it names, cast what it reads.
        literals = [i for i, leaf in enumerate(leaves_of(node)) if leaf == self._own and isinstance(leaf, torch.dtype)]
        named = _Named(literals, [source for source in sources if self._is_own(self._values[source])])
        value = self._run(node, named)
        # Still the own precision, as .float() and torch.zeros() give it: then the result is cast as well.
        named.after = self._is_own(value)
        self._values[node] = value.to(self._other) if isinstance(value, Tensor) and named.after else value
        return named

    def _run(self, node: Node, named: _Named) -> Any:
        def value_of(leaf: object) -> Any:
            if isinstance(leaf, Node):
                value = self._values[leaf]
                return value.to(self._other) if leaf in named.sources and isinstance(value, Tensor) else value
            return self._other if named.literals and isinstance(leaf, torch.dtype) and leaf == self._own else leaf

        args, kwargs = map_aggregate((node.args, dict(node.kwargs)), value_of)
        return run_node(node, self._twin, args, kwargs)

    def _is_own(self, value: object) -> bool:
        return any(tensor.dtype == self._own for tensor in tensors(value))


def _edit(node: Node, named: _Named, dtype: Node) -> None:
    graph = node.graph
    for index in named.literals:
        exchange(node, index, dtype)
    for source in named.sources:
        with graph.inserting_before(node):
            converted = graph.call_method("to", (source, dtype))
        converted.meta = dict(source.meta) | {"origin": converted.name}
        node.replace_input_with(source, converted)
    if named.after and node.op == "call_method" and node.target == "float":
        node.target, node.args, node.kwargs = "to", (node.args[0], dtype), {}
    elif named.after:
        cast(node, dtype)
