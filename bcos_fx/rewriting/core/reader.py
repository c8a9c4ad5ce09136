"""A graph as rules see it: calls of canonical ops, where values flow, what else uses a parameter."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import Any

from torch import fx, nn

from bcos_fx.rewriting.core.flow import Flow, analyze
from bcos_fx.rewriting.core.ops import BOUNDARY, Call, Vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.stored import follows_from_stored, stored_value
from bcos_fx.tracing.program import Walk, attribute


class GraphReader:
    """Reads a graph for matching; it never changes one.

    What is derived from the whole graph (flow, users of parameters) is computed once; :meth:`refresh` drops it.
    """

    def __init__(self, graph_module: fx.GraphModule, vocabulary: Vocabulary, options: Options) -> None:
        self.graph_module = graph_module
        self.vocabulary = vocabulary
        self.options = options

    def refresh(self) -> None:
        """Forget what was derived from the graph before an edit."""
        for derived in ("flow", "callers", "owners", "stored_below", "called_below", "has_peer_layers"):
            self.__dict__.pop(derived, None)

    def op(self, node: fx.Node) -> str | None:
        """Return the canonical name of a node's op, or None where no entry knows it."""
        op = self.vocabulary.of(node, self.graph_module)
        return None if op is None else op.name

    def call(self, node: fx.Node) -> Call | None:
        """Return a node as a call of a canonical op."""
        return self.vocabulary.call(node, self.graph_module)

    @cached_property
    def flow(self) -> Flow:
        """Where values flow in the graph."""
        return analyze(self.graph_module, self.vocabulary)

    @cached_property
    def callers(self) -> dict[int, list[fx.Node]]:
        """Module id -> nodes that call it."""
        callers: dict[int, list[fx.Node]] = defaultdict(list)
        for node in self.graph_module.graph.nodes:
            if node.op == "call_module":
                callers[id(self.graph_module.get_submodule(str(node.target)))].append(node)
        return callers

    @cached_property
    def owners(self) -> dict[int, set[str]]:
        """Parameter id -> the modules and nodes of the graph that use it, by name."""
        owners: dict[int, set[str]] = defaultdict(set)
        for node in self.graph_module.graph.nodes:
            if node.op == "call_module":
                module = self.graph_module.get_submodule(str(node.target))
                for parameter in module.parameters():
                    owners[id(parameter)].add(f"module {id(module)}")
            elif node.op == "get_attr":
                tensor = attribute(self.graph_module, str(node.target))
                if isinstance(tensor, nn.Parameter):
                    owners[id(tensor)].add(f"node {node.name}")
        return owners

    @cached_property
    def stored_below(self) -> dict[str, list[fx.Node]]:
        """Module path -> nodes that read a tensor stored below it."""
        return self._below("get_attr")

    @cached_property
    def called_below(self) -> dict[str, list[fx.Node]]:
        """Module path -> nodes that call a module below it, itself left out."""
        return self._below("call_module")

    def _below(self, kind: str) -> dict[str, list[fx.Node]]:
        below: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self.graph_module.graph.nodes:
            if node.op == kind:
                parts = str(node.target).split(".")
                for length in range(1, len(parts)):
                    below[".".join(parts[:length])].append(node)
        return below

    def follows_from_stored(self, node: fx.Node) -> bool:
        """Return whether a node's value is computed from stored tensors alone, and not at random."""
        return follows_from_stored(node)

    def stored_value(self, node: fx.Node) -> Any:
        """Compute the value of a node that follows from stored tensors."""
        return stored_value(node, self.graph_module)

    def origins(self, node: fx.Node) -> list[fx.Node]:
        """Return the stored tensors and inputs whose numbers a node's value is computed from, in graph order."""
        walk = Walk([node])
        for source in walk:
            if source.meta.get("type") not in ("size", "other"):
                call = self.call(source)
                walk.go_on(source.all_input_nodes if call is None else call.read)
        return [
            n for n in sorted(walk.reached) if n.op in ("placeholder", "get_attr") and n.meta.get("type") != "other"
        ]

    def was_peer(self, node: fx.Node) -> bool:
        """Return whether the node called another package's layer when the network was traced."""
        origin = self.vocabulary.ops.get(str(node.meta.get("was")))
        return origin is not None and bool(origin.peers)

    @cached_property
    def has_peer_layers(self) -> bool:
        """Whether the network came as a B-cos network: a B-cos layer of another package is, or was, in it."""
        return any(
            self.was_peer(node) and str(node.meta["was"]).startswith("peer_bcos_")
            for node in self.graph_module.graph.nodes
        )

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Return the shape that a node's value had in the example run, if known."""
        shape = node.meta.get("shape")
        return tuple(shape) if shape is not None else None


def is_boundary(op: str) -> bool:
    """Return whether an op is the graph's input, output or a parameter."""
    return any(op == boundary.name for boundary in BOUNDARY.values())
