"""Running part of a graph: from any nodes whose values are known to any node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from bcos_fx.network import BcosNetwork
from bcos_fx.tracing.program import run_node

Observer = Callable[[fx.Node, Any], None]


def evaluate(
    graph_module: fx.GraphModule | BcosNetwork,
    known: Mapping[fx.Node, Any],
    end: fx.Node,
    observe: Observer | None = None,
) -> Any:
    """Return the value of a node, computed from nodes whose values are known.

    Args:
        graph_module: holds the graph, its modules and tensors; not changed.
        known: node -> value. What lies before these nodes is not run, unless something else needs it.
        end: the node.
        observe: called with every node that is run, and its value.

    Values are dropped after their last use, so no more is kept than an ordinary forward pass keeps.
    """
    needed = _needed(known, end)
    left = Counter(source for node in needed for source in node.all_input_nodes)
    values = dict(known)
    for node in graph_module.graph.nodes:
        if node not in needed:
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        values[node] = run_node(node, graph_module, args, kwargs)
        if observe is not None:
            observe(node, values[node])
        for source in node.all_input_nodes:
            left[source] -= 1
            if not left[source] and source is not end:
                del values[source]
    return values[end]


def _needed(known: Mapping[fx.Node, Any], end: fx.Node) -> set[fx.Node]:
    needed: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node not in known and node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    return needed
