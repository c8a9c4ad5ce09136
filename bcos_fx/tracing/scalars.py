"""Scalars of foreign kinds in the arguments of calls, as the plain Python values that they stand for.

``numpy.float64`` is a ``float`` and an ``IntEnum`` is an ``int``, so that PyTorch takes them as such; but the code that
is generated from a graph, and the file that a graph is saved in, hold plain values only.
"""

from __future__ import annotations

import enum
import numbers
from collections.abc import Callable
from types import EllipsisType, NoneType
from typing import Any

import torch

_PLAIN = frozenset(
    {bool, int, float, complex, str, NoneType, EllipsisType, torch.dtype, torch.layout, torch.memory_format}
)

# PyTorch reads the value that a subclass holds, whatever conversions the subclass defines.
_HELD: dict[type, Callable[[Any], Any]] = {
    int: int.__int__,
    float: float.__float__,
    complex: complex.__complex__,
    str: str.__str__,
}

# PyTorch takes these classes for dtypes: torch.zeros(2, dtype=float).
_DTYPES = {float: torch.float64, int: torch.int64, bool: torch.bool, complex: torch.complex128}


class ForeignScalarError(TypeError):
    """A value that has no plain form. ``args[0]`` is what to write in its place."""


def plain_scalar(value: Any) -> Any:
    """Return the plain Python value (or dtype) that PyTorch takes a scalar for, exactly.

    Numbers that are not finite and -0.0 stay as they are.

    Raises:
        ForeignScalarError: no plain value equals it exactly.
    """
    if type(value) in _PLAIN:
        return value
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        item = value.item()
        if type(item) not in _PLAIN:  # a long double stays what it is; dates and bytes are not numbers
            raise ForeignScalarError("pass a plain number: float(value)")
        return item
    if isinstance(value, type) and value in _DTYPES:
        return _DTYPES[value]
    if isinstance(value, type(torch.FloatTensor)) and value.layout is torch.strided and not value.is_cuda:
        return value.dtype  # x.type(torch.FloatTensor) is x.type(torch.float32)
    for kind, held in _HELD.items():
        if isinstance(value, kind):
            return held(value)
    if isinstance(value, enum.Enum):
        raise ForeignScalarError("pass the member's value: member.value")
    if isinstance(value, numbers.Number):
        raise ForeignScalarError("pass a plain number: float(value)")
    raise ForeignScalarError("pass tensors and plain Python values")
