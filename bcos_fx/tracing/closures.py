"""Functions that a module keeps, in a copy of it: hooks, lambdas and a patched ``forward`` that refer to the module.

``copy.deepcopy`` copies a bound method with its object, but gives back functions as they are. Those of a copied module
would run the original's layers, and read what a hook left in the original.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import nn


def rebind(module: nn.Module, copies: Mapping[int, Any]) -> None:
    """Let the functions that a copied module keeps refer to copies too, in place.

    Args:
        module: the copy.
        copies: what each object was copied to, by the id of the original: the memo of ``copy.deepcopy``.
    """
    rebinding = _Rebinding(copies)
    for part in module.modules():
        for name, value in vars(part).items():
            part.__dict__[name] = rebinding.of(value)


class _Rebinding:
    def __init__(self, copies: Mapping[int, Any]) -> None:
        self._copies = dict(copies)

    def of(self, value: Any) -> Any:
        """Return what stands for a value in the copy: the value itself where it leads to nothing that was copied."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        if not self._leads_to_a_copy(value, set()):
            return value
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, MethodType):
            return MethodType(value.__func__, self.of(value.__self__))
        if isinstance(value, partial):
            keywords = {name: self.of(item) for name, item in value.keywords.items()}
            return partial(self.of(value.func), *map(self.of, value.args), **keywords)
        if isinstance(value, tuple):
            return tuple(map(self.of, value))
        # Known before its items are visited: a container may hold itself.
        container = self._copies[id(value)] = copy.copy(value)
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            container[key] = self.of(item)
        return container

    def _function(self, function: FunctionType) -> FunctionType:
        """Return the function with cells of its own, which are filled last: it may refer to itself."""
        cells = tuple(CellType() for _ in function.__closure__ or ())
        copied = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
        self._copies[id(function)] = copied
        copied.__defaults__, copied.__kwdefaults__ = self.of(function.__defaults__), self.of(function.__kwdefaults__)
        copied.__dict__.update(function.__dict__)
        for cell, old in zip(cells, function.__closure__ or (), strict=True):
            if (content := cell_contents(old)) is not _EMPTY:
                cell.cell_contents = self.of(content)
        return copied

    def _leads_to_a_copy(self, value: object, seen: set[int]) -> bool:
        if id(value) in seen:
            return False
        seen.add(id(value))
        if id(value) in self._copies:
            return True
        return any(self._leads_to_a_copy(part, seen) for part in _parts(value))


def _parts(value: Any) -> tuple[Any, ...]:
    """Return what functions, methods and plain containers refer to."""
    if isinstance(value, FunctionType):
        return (*map(cell_contents, value.__closure__ or ()), value.__defaults__, value.__kwdefaults__)
    if isinstance(value, MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, dict):
        return tuple(value.values())
    return tuple(value) if type(value) in (list, tuple) else ()


_EMPTY = object()  # of a cell whose name was not assigned yet


def cell_contents(cell: CellType) -> Any:
    """Return what a cell of a closure holds; an object of its own kind where nothing was put in yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY
