"""Which of its inputs a network is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import fx

from bcos_fx.rewriting.core.ops import Call

WEIGHT = "weight"
"""The parameter through which a layer reads its kernel."""


def main_input(nodes: Sequence[fx.Node], calls: Mapping[fx.Node, Call | None]) -> list[fx.Node]:
    """Return the input that a network is about, as a list; an empty one where all inputs hold integers.

    That is the first floating-point input that a layer with weights reads by itself. A mask, an adjacency matrix or a
    scale is multiplied with something else before any layer reads it; where all are, the first one is taken.
    """
    floating = [n for n in nodes if n.op == "placeholder" and not is_form(n) and not holds_integers(n)]
    return ([node for node in floating if _is_read_alone(node, calls)] or floating)[:1]


def _is_read_alone(start: fx.Node, calls: Mapping[fx.Node, Call | None]) -> bool:
    """Return whether a layer with weights reads a node, or what was made of that node and stored tensors alone."""
    seen, pending = {start}, [start]
    while pending:
        for user in pending.pop().users:
            call = calls[user]
            data = [source for source in user.all_input_nodes if source.op != "get_attr" and not is_form(source)]
            if user in seen or any(source not in seen for source in data):
                continue
            # A module that is not understood may hold weights, so it counts as a layer.
            if call is None or call.op.linearity == "opaque":
                if user.op == "call_module":
                    return True
            elif WEIGHT in call.op.parameters and call.op.linearity == "linear":
                return True
            elif call.op.linearity not in ("gate", "constant"):
                seen.add(user)
                pending.append(user)
    return False


def is_form(node: fx.Node) -> bool:
    """Return whether a node gives a size, a dtype or another thing that is not a tensor."""
    return node.meta.get("type") in ("size", "other")


def holds_integers(node: fx.Node) -> bool:
    """Return whether a node gives a tensor of integers or truth values."""
    dtype = node.meta.get("dtype")
    return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)
