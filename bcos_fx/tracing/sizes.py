"""Sizes that stay symbolic: numbers that know both their value in the example run and how to compute themselves.

They derive from ``torch.SymInt`` and its siblings because PyTorch's argument parser lets those through to a
``TorchFunctionMode`` without asking for their value. What Python code asks for (a branch, a loop bound, an
``int``) is answered with the value and noted as a guard.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.fx import Node

from bcos_fx.tracing.scalars import ForeignScalarError, plain_scalar


@dataclass(frozen=True)
class TracedGuard:
    """A branch or a number that tracing took from a shape: the graph holds only for inputs that answer the same.

    Attributes:
        kind: how it was read: ``bool``, ``int``, ``float``, ``iter``, ``in``, or ``len`` (in a
            file that defines no module).
        node: name of the node that was read; it may have been removed from the graph since, if only Python used it.
        value: the answer, a plain Python value.
        source: the line that asked, as ``file.py:123: if x.shape[2] > 7:``.
    """

    kind: str
    node: str
    value: object
    source: str


class SizeRecorder(Protocol):
    """What a symbolic number needs of the recorder that made it."""

    def record(self, op: str, target: object, args: tuple[Any, ...], kwargs: dict[str, Any], value: object) -> Node:
        """Add a node; `args` may hold symbolic numbers."""

    def guard(self, kind: str, node: Node, value: object) -> None:
        """Note that Python code read the value of `node`."""


class Symbolic:
    """A number in the graph. Its node is made when something in the graph first uses it."""

    def __init__(self, recorder: SizeRecorder, value: object, op: str, target: object, args: tuple[Any, ...]) -> None:
        self.recorder = recorder
        self.value = value
        self._expression = (op, target, args)
        self._node: Node | None = None

    def as_node(self) -> Node:
        """Return the number's node, added to the end of the graph the first time."""
        if self._node is None:
            op, target, args = self._expression
            self._node = self.recorder.record(op, target, args, {}, self.value)
        return self._node

    def read(self, kind: str) -> Any:
        """Answer Python code with the value, and note that the graph now depends on it."""
        self.recorder.guard(kind, self.as_node(), self.value)
        return self.value

    def __bool__(self) -> bool:
        return bool(self.read("bool"))

    def __int__(self) -> int:
        return int(self.read("int"))

    def __index__(self) -> int:
        return operator.index(self.read("int"))

    def __float__(self) -> float:
        return float(self.read("float"))

    def __hash__(self) -> int:
        # A symbolic key in a cache that outlives the trace would poison it; torch.SymInt refuses too.
        raise TypeError("unhashable: a size that follows the input")

    def __repr__(self) -> str:
        return repr(self.value)

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, specification: str) -> str:
        return format(self.value, specification)

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Compute what NumPy was asked for: arithmetic as the operator does, anything else on the value."""
        operation = _UFUNCS.get(function.__name__) if method == "__call__" and not options else None
        if operation is not None and not any(getattr(item, "ndim", 0) for item in inputs):
            with suppress(ForeignScalarError):
                return operation(*(item if isinstance(item, Symbolic) else plain_scalar(item) for item in inputs))
        read = [item.read("float") if isinstance(item, Symbolic) else item for item in inputs]
        return getattr(function, method)(*read, **options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Symbolic:
        return self


_UFUNCS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "power": operator.pow,
    "negative": operator.neg,
}


class SymbolicInt(Symbolic, torch.SymInt):
    """An integer that follows the input's shape."""


class SymbolicFloat(Symbolic, torch.SymFloat):
    """A real number computed from the input's shape."""


class SymbolicBool(Symbolic, torch.SymBool):
    """A comparison of sizes whose answer is not needed yet."""


def symbolic(recorder: SizeRecorder, value: object, op: str, target: object, args: tuple[Any, ...]) -> Symbolic:
    """Make the symbolic number of the kind of `value`, computed by calling `target` on `args`."""
    kind = SymbolicBool if isinstance(value, bool) else SymbolicInt if isinstance(value, int) else SymbolicFloat
    return kind(recorder, value, op, target, args)


def concrete(value: Any) -> Any:
    """Replace every symbolic number in nested tuples, lists, dicts and slices by its value."""
    if isinstance(value, Symbolic):
        return value.value
    if isinstance(value, slice):
        return slice(concrete(value.start), concrete(value.stop), concrete(value.step))
    if isinstance(value, dict):
        return {key: concrete(item) for key, item in value.items()}
    if isinstance(value, list):  # torch.fx has lists of its own, which cannot be made again
        return [concrete(item) for item in value]
    if type(value) in (tuple, torch.Size):
        return type(value)([concrete(item) for item in value])
    return value


def _with_foreign(function: Callable[[Any, Any], Any], size: Symbolic, other: object, *, swapped: bool) -> Any:
    """Compute with a number of another kind: NumPy's follow the input; for a fraction or decimal the size is read."""
    if not isinstance(other, numbers.Number):
        return NotImplemented
    try:
        plain = plain_scalar(other)
    except ForeignScalarError:
        value = size.read("int" if isinstance(size.value, int) else "float")
        return function(other, value) if swapped else function(value, other)
    return function(plain, size) if swapped else function(size, plain)


def _binary(function: Callable[[Any, Any], Any], *, swapped: bool = False) -> Callable[[Symbolic, Any], Any]:
    def method(self: Symbolic, other: object) -> Any:
        if not isinstance(other, Symbolic) and type(other) not in (bool, int, float):
            return _with_foreign(function, self, other, swapped=swapped)
        args = (other, self) if swapped else (self, other)
        value = function(*concrete(args))
        return symbolic(self.recorder, value, "call_function", function, args)

    return method


def _unary(function: Callable[[Any], Any]) -> Callable[[Symbolic], Any]:
    def method(self: Symbolic) -> Any:
        return symbolic(self.recorder, function(self.value), "call_function", function, (self,))

    return method


def _rounded(self: Symbolic, digits: int | None = None) -> Any:
    args = (self,) if digits is None else (self, digits)
    return symbolic(self.recorder, round(*concrete(args)), "call_function", round, args)


def _divmod(self: Any, other: Any) -> Any:
    return self // other, self % other


# On the class, where Python looks up special methods; those of torch.SymInt would act on a symbolic node it lacks.
for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
    setattr(Symbolic, f"__{_name}__", _binary(getattr(operator, _name)))
    setattr(Symbolic, f"__r{_name}__", _binary(getattr(operator, _name), swapped=True))
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    setattr(Symbolic, f"__{_name}__", _binary(getattr(operator, _name)))
for _name in ("and_", "or_", "xor", "lshift", "rshift"):
    setattr(Symbolic, f"__{_name.rstrip('_')}__", _binary(getattr(operator, _name)))
for _home, _names in ((operator, ("neg", "pos", "abs")), (math, ("ceil", "floor", "trunc"))):
    for _name in _names:
        setattr(Symbolic, f"__{_name}__", _unary(getattr(_home, _name)))
setattr(Symbolic, "__round__", _rounded)  # noqa: B010  (like the loops above: mypy reads the types from torch.SymInt)
setattr(Symbolic, "__divmod__", _divmod)  # noqa: B010
