"""What draws at random: a network that does has no W(x), for no two of its runs are the same function."""

from __future__ import annotations

import torch
from torch import fx

from bcos_fx.rewriting.core.ops import Call
from bcos_fx.tracing.chance import DRAWS

_SWITCHES = frozenset({"train", "training", "dropout", "dropout_p"})


def draws_at_random(node: fx.Node, call: Call | None) -> bool:
    """Return whether a node draws random numbers in eval mode.

    A traced node says so itself: a random generator has moved on while it ran. Of one that was not run, PyTorch's own
    mark counts (``torch.Tag.nondeterministic_seeded``), and of what may draw its options (:mod:`refinement`).
    """
    if DRAWS in node.meta:
        return bool(node.meta[DRAWS])
    if node.op not in ("call_function", "call_method") or (call is not None and call.op.linearity != "opaque"):
        return False
    return any(_always_draws(overload) for overload in _overloads(node.target))


def _always_draws(overload: torch._ops.OpOverload) -> bool:
    """Return whether it carries PyTorch's mark, and no option that could switch its noise off."""
    options = {argument.name for argument in overload._schema.arguments}
    return torch.Tag.nondeterministic_seeded in overload.tags and not options & _SWITCHES


def _overloads(target: object) -> list[torch._ops.OpOverload]:
    if isinstance(target, torch._ops.OpOverload):
        return [target]
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    return [] if packet is None else [getattr(packet, overload) for overload in packet.overloads()]
