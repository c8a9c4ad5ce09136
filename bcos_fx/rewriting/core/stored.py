"""What a graph computes from stored tensors alone: the same in every call, so it can be known without an input."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from bcos_fx.tracing.program import everything_read, run_node


def sources_of(node: fx.Node) -> list[fx.Node]:
    """Return a node and everything that it is computed from, in the order of the graph."""
    return sorted(everything_read([node]))


def follows_from_stored(node: fx.Node) -> bool:
    """Return whether a node's value is computed from stored tensors alone, and not at random."""
    return all(_is_fixed(source) for source in sources_of(node))


def _is_fixed(node: fx.Node) -> bool:
    if node.op == "call_module":  # it may hold state, or act in train mode only
        return False
    return node.op == "get_attr" or (bool(node.all_input_nodes) and node.op != "placeholder")


def stored_value(node: fx.Node, root: nn.Module) -> Any:
    """Compute the value of a node that follows from stored tensors of ``root``."""
    values: dict[fx.Node, Any] = {}
    for source in sources_of(node):
        args, kwargs = fx.node.map_arg((source.args, dict(source.kwargs)), values.__getitem__)
        values[source] = run_node(source, root, args, kwargs)
    return values[node]
