"""State of its own that a module changes while it runs in eval mode: its output then depends on what it ran before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.escaping import listed
from bcos_fx.tracing.sizes import Symbolic, concrete

_MOST_NAMED = 3
# What every module has, and what recording itself sets: a forward of its own, and no layer works in place.
_NOT_ITS_OWN = frozenset({*vars(nn.Module()), "forward", "inplace"})

Attributes = Mapping[str, Mapping[str, Any]]
"""Module path -> its attributes that are not parameters, buffers or parts."""


def attributes(root: nn.Module) -> Attributes:
    """Return what every module keeps as plain attributes, as it is now."""
    return {path: _own_attributes(part) for path, part in root.named_modules()}


def _own_attributes(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(part).items() if name not in _NOT_ITS_OWN}


def changed_attributes(root: nn.Module, before: Attributes) -> str | None:
    """Name the attributes that are other objects than before, or None where there are none."""
    sentences = []
    for path, part in root.named_modules():
        old = before.get(path, {})
        names = [name for name, value in _own_attributes(part).items() if old.get(name) is not value]
        sentences += [f"attribute {name!r} of module {path!r} ({type(part).__name__})" for name in names]
    return listed(sentences, _MOST_NAMED) if sentences else None


def settle_sizes(root: nn.Module) -> None:
    """Put numbers in place of a recording's sizes that forward kept as attributes: nothing else can read them."""
    for part in root.modules():
        for name, value in _own_attributes(part).items():
            if _holds_size(value):
                part.__dict__[name] = concrete(value)


def _holds_size(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_holds_size, value))
    return any(map(_holds_size, value.values())) if type(value) is dict else isinstance(value, Symbolic)


def restore_attributes(root: nn.Module, before: Attributes) -> None:
    """Give every module the attributes back that it had, so that another recording begins as the first did."""
    for path, part in root.named_modules():
        for name in _own_attributes(part).keys() - before[path].keys():
            del part.__dict__[name]
        part.__dict__.update(before[path])


def buffer_values(root: nn.Module) -> dict[str, Tensor]:
    """Return copies of all buffers."""
    return {name: buffer.detach().clone() for name, buffer in root.named_buffers()}


def changed_buffers(root: nn.Module, before: Mapping[str, Tensor]) -> list[str]:
    """Name the buffers that hold other numbers than before, in place or in a new tensor."""
    return [name for name, buffer in root.named_buffers() if name in before and not _equal(buffer, before[name])]


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.equal(first, second) or bool(((first == second) | ((first != first) & (second != second))).all())
