"""What draws at random: a network that does has no W(x), for no two of its runs are the same function."""

from __future__ import annotations

import torch
from torch import fx

from bcos_fx.rewriting.ops import Call

DRAWS = "draws"
"""Key of a node's meta: in the run that was traced it took numbers from a random generator."""

_NEVER = frozenset({"dropout", "feature_dropout", "rrelu", "scaled_dot_product_attention", "multi_head_attention"})


def draws_at_random(node: fx.Node, call: Call | None) -> bool:
    """Say whether a node draws random numbers in eval mode.

    A traced node says so itself: a random generator has moved on while it ran. Of one that was not run, PyTorch's own
    mark counts (``torch.Tag.nondeterministic_seeded``), and of what may draw its options (:mod:`refinement`).

    Args:
        node: of a graph of eval mode.
        call: the node as a call of the vocabulary, if it is one.
    """
    if DRAWS in node.meta:
        return bool(node.meta[DRAWS])
    if node.op not in ("call_function", "call_method") or (call is not None and call.op.name in _NEVER):
        return False
    return any(torch.Tag.nondeterministic_seeded in overload.tags for overload in _overloads(node.target))


def _overloads(target: object) -> list[torch._ops.OpOverload]:
    if isinstance(target, torch._ops.OpOverload):
        return [target]
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    return [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
