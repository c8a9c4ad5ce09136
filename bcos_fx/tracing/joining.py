"""Calls that join, cut or turn tensors, as the few calls that the vocabulary has for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _at_least(rank: int) -> Callable[..., Any]:
    """Make the function that gives a tensor, or each of several, the dimensions that it lacks."""

    def reshape(*tensors: Any) -> Any:
        given = tensors[0] if len(tensors) == 1 else tensors
        if isinstance(given, Tensor):
            return _with_rank(given, rank)
        return tuple(_with_rank(tensor, rank) for tensor in given)

    return reshape


def _with_rank(tensor: Tensor, rank: int) -> Tensor:
    if tensor.dim() == 0:
        return tensor.reshape((1,) * rank)
    if tensor.dim() == 1 and rank > 1:
        tensor = tensor.unsqueeze(0)
    return tensor.unsqueeze(-1) if tensor.dim() == 2 and rank == 3 else tensor


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    parts = [_with_rank(tensor, 1) for tensor in tensors]
    return torch.cat(parts, 0 if parts[0].dim() == 1 else 1)


def _vstack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([_with_rank(tensor, 2) for tensor in tensors], 0)


def _split_along(dim: int) -> Callable[..., Any]:
    def split(input: Tensor, *sections: Any, **named: Any) -> Any:
        (given,) = named.values() if named else (sections[0] if len(sections) == 1 else sections,)
        return torch.tensor_split(input, given, dim if input.dim() > 1 else 0)

    return split


def _broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    parts = tensors if isinstance(tensors[0], Tensor) else tuple(tensors[0])
    rank = max(part.dim() for part in parts)
    sizes = [[part.shape[d - rank] for part in parts if part.dim() >= rank - d] for d in range(rank)]
    shape = [next((size for size in along if size != 1), 1) for along in sizes]
    return tuple(part.expand(shape) for part in parts)


def _diff(
    input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    given = [part for part in (prepend, input, append) if part is not None]
    value = torch.cat(given, dim) if len(given) > 1 else input
    for _ in range(n):
        length = value.shape[dim]
        value = value.narrow(dim, 1, length - 1) - value.narrow(dim, 0, length - 1)
    return value


def _scatter(
    input: Tensor, dim: int, index: Tensor, src: Any = None, value: Any = None, reduce: str | None = None
) -> Any:
    """Leave what scatters a tensor; a number is chosen by a mask, and a sum has a call that has a gradient."""
    source = value if src is None else src
    if input.dtype is torch.bool or reduce == "multiply" or (isinstance(source, Tensor) and reduce is None):
        return NotImplemented
    if reduce is not None:
        added = source if isinstance(source, Tensor) else torch.full_like(index, source, dtype=input.dtype)
        return torch.scatter_add(input, dim, index, added)
    mask = torch.zeros_like(input, dtype=torch.bool).scatter(dim, index, True)
    return torch.where(mask, source, input)


JOINING: dict[str, Callable[..., Any]] = {
    "atleast_1d": _at_least(1),
    "atleast_2d": _at_least(2),
    "atleast_3d": _at_least(3),
    "hstack": _hstack,
    "vstack": _vstack,
    "row_stack": _vstack,
    "dstack": lambda tensors: torch.cat([_with_rank(tensor, 3) for tensor in tensors], 2),
    "column_stack": lambda tensors: torch.cat([t.reshape(-1, 1) if t.dim() < 2 else t for t in tensors], 1),
    "hsplit": _split_along(1),
    "vsplit": _split_along(0),
    "dsplit": _split_along(2),
    "fliplr": lambda input: torch.flip(input, (1,)),
    "flipud": lambda input: torch.flip(input, (0,)),
    "broadcast_tensors": _broadcast_tensors,
    "diff": _diff,
    "scatter": _scatter,
}
"""Name of a function or method of PyTorch -> a function that computes the same by other calls."""
