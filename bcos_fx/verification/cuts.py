"""Where two graphs can be cut into the same blocks, each a function of what the one before computes.

A cut is a set of values through which everything that the output needs of the input passes. Blocks between cuts compose
exactly: where ``s1 = f1(x)``, ``s2 = f2(s1)``, ..., the network is ``fn(...f2(f1(x)))``. A cut serves if it is one in
both graphs, by the names of its nodes: a rewrite keeps the name of a node whose value it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from bcos_fx.tracing.graph_module import GraphModule
from bcos_fx.tracing.program import Walk, attribute, module_at

Cut = tuple[str, ...]
"""Names of the nodes whose values cross, in the order of the graph."""

_BLOCKS = 32
"""A block holds at least this share of the parameters (1 / _BLOCKS), so there are no more blocks than that."""
_REACH = 8
"""The place at which the fewest values cross is looked for within this many shares."""


def find_cuts(original: fx.GraphModule, converted: fx.GraphModule) -> list[Cut]:
    """Return the cuts at which both graphs are compared, in order; the inputs and the output are not among them.

    Args:
        original: its nodes are walked through. From each cut on, a share of the parameters is left behind at least.
        converted: cuts that it does not have, or has in another order, are left out.
    """
    names = {node.name: node for node in converted.graph.nodes}
    places = [place for place in _places(original) if all(node.name in names for node in place.live)]
    share = max(sum(_counts(original).values()) // _BLOCKS, 1)
    cuts: list[Cut] = []
    before, passed = _inputs(converted), 0
    while True:
        ahead = [place for place in places if place.passed - passed >= share]
        # The narrowest of those near, the first of several; further ones where none of these is a cut of both graphs.
        ahead.sort(
            key=lambda place: (len(place.live) if place.passed <= passed + _REACH * share else math.inf, place.passed)
        )
        for place in ahead:
            ends = [names[node.name] for node in place.live]
            if find_needed(before, ends) is not None and find_needed(ends, _outputs(converted)) is not None:
                break
        else:
            return cuts
        cuts.append(tuple(node.name for node in place.live))
        before, passed = ends, place.passed


def block(graph_module: fx.GraphModule, before: Cut | None, after: Cut | None) -> GraphModule:
    """Return the part of a graph between two cuts, over the same modules and tensors.

    Args:
        graph_module: the whole.
        before: the values that the part takes, in order; None: the inputs of the graph.
        after: the values that it returns, in order, as a tuple; None: what the graph returns.
    """
    names = {node.name: node for node in graph_module.graph.nodes}
    starts = _inputs(graph_module) if before is None else [names[name] for name in before]
    ends = _outputs(graph_module) if after is None else [names[name] for name in after]
    inside = find_needed(starts, ends)
    assert inside is not None, "the values are not a cut"
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    # Names of placeholders and nodes stay those of the whole graph, by which the two networks' parts are compared.
    for node in starts:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    for node in graph_module.graph.nodes:
        if node in inside:
            # A read of a dtype or device reaches back beyond the cut; any value given at the cut has the same.
            spare = _stand_in(node, starts)
            known = copies if spare is None else {node.all_input_nodes[0]: copies[spare]} | copies
            copies[node] = graph.node_copy(node, known.__getitem__)
    graph.output(tuple(copies[node] for node in ends) if after is not None else copies[ends[0]])
    return GraphModule(graph_module, graph)


def find_needed(starts: Sequence[fx.Node], ends: Sequence[fx.Node]) -> set[fx.Node] | None:
    """Return the nodes that compute ``ends`` from ``starts``; None where an input of the graph is needed besides."""
    known = set(starts)
    walk = Walk(set(ends) - known)
    for node in walk:
        if node.op == "placeholder":
            return None
        if _stand_in(node, starts) is None:
            walk.go_on(set(node.all_input_nodes) - known)
    return walk.reached


def _stand_in(node: fx.Node, starts: Sequence[fx.Node]) -> fx.Node | None:
    """Return a value that has the precision or device which a node reads of another one; None for other nodes."""
    if not _is_metadata(node):
        return None
    dtype = node.all_input_nodes[0].meta.get("dtype")
    return next((start for start in starts if start.meta.get("dtype") == dtype is not None), None)


def _is_metadata(node: fx.Node) -> bool:
    return node.target is getattr and node.args[1] in ("dtype", "device")


@dataclass(frozen=True)
class _Place:
    """A place between two nodes: how many parameters were read by then, and the values that later nodes need."""

    passed: int
    live: tuple[fx.Node, ...]


def _places(graph_module: fx.GraphModule) -> Iterator[_Place]:
    """Yield the places of a graph where only computed tensors cross.

    The precision or device of an earlier tensor is that of these, which are given in one precision. What follows from
    stored tensors alone crosses no cut: each block computes it for itself. An input crosses none either: it may be
    encoded in one graph and not in the other.
    """
    counts, passed = _counts(graph_module), 0
    last = {source: node for node in graph_module.graph.nodes for source in node.all_input_nodes}
    live: dict[fx.Node, None] = {}
    depends: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        passed += counts.get(node, 0)
        # Liveness as in a compiler: a value crosses from where it is computed to its last reader.
        if node.op == "placeholder" or depends.intersection(node.all_input_nodes):
            depends.add(node)
            for source in node.all_input_nodes:
                if last[source] is node:
                    live.pop(source, None)
            if node in last:
                live[node] = None
        values = tuple(value for value in live if not _is_metadata(value))
        if values and all(value.op != "placeholder" and value.meta.get("type") == "tensor" for value in values):
            yield _Place(passed, values)


def _counts(graph_module: fx.GraphModule) -> dict[fx.Node, int]:
    """Return how many parameters each node reads, counted where they are read first."""
    seen: set[int] = set()
    counts: dict[fx.Node, int] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            tensors: list[Tensor] = list(module_at(graph_module, str(node.target)).parameters())
        elif node.op == "get_attr":
            tensors = [attribute(graph_module, str(node.target))]
        else:
            continue
        counts[node] = sum(tensor.numel() for tensor in tensors if id(tensor) not in seen)
        seen |= {id(tensor) for tensor in tensors}
    return counts


def _inputs(graph_module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph_module.graph.nodes if node.op == "placeholder"]


def _outputs(graph_module: fx.GraphModule) -> list[fx.Node]:
    return list(next(node for node in graph_module.graph.nodes if node.op == "output").all_input_nodes)
