"""Every spelling of every op that carries a value, as a function of the values in an example call."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from bcos_fx.rewriting.core.op import Op
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.spelling import resolve
from tests.rewriting.example_calls import EXAMPLES, OWN, Value

CARRIERS = ("linear", "selection", "ratio", "product", "quotient", "normalise", "attention")
Call = Callable[..., Any]


def spellings(op: Op) -> Iterator[tuple[str, Call]]:
    for name in op.functions:
        yield name, resolve(name)
    for name in op.methods:
        yield name, getattr(Tensor, name) if hasattr(Tensor, name) else method(name)


def method(name: str) -> Call:
    return lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs)


def arguments(op: Op, example: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The example as positional arguments as far as they go without a gap, and the rest by keyword."""
    args: list[Any] = []
    rest = dict(example)
    for name in op.parameters:
        if name not in rest:
            break
        value = rest.pop(name)
        if name == op.variadic and any(isinstance(item, Value) for item in value):
            return [*args, *value], rest
        args.append(value)
    return args, rest


def cases() -> Iterator[Any]:
    for op in vocabulary():
        if op.linearity not in CARRIERS or op.view:
            continue
        for name, function in spellings(op):
            own = OWN.get(op.name, {})
            examples = [own[name]] if name in own else EXAMPLES.get(op.name, [])
            for number, example in enumerate(examples):
                yield pytest.param(op, function, example, id=f"{op.name}-{name}-{number}")


def numbers(result: Any) -> Tensor:
    """All floating-point numbers of a result, complex ones as two, in one row."""
    parts = result if isinstance(result, tuple | list) else [result]
    kept = [torch.view_as_real(p.resolve_conj()) if p.is_complex() else p for p in parts]
    return torch.cat([p.reshape(-1) for p in kept if p.is_floating_point()])


class Spelled:
    """One spelling of an op with its example, as a function of the values in it."""

    def __init__(self, op: Op, function: Call, example: dict[str, Any]) -> None:
        self.function = function
        self.given = arguments(op, example)
        leaves, self.form = tree_flatten(self.given)
        self.leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.values = [leaf for leaf in leaves if isinstance(leaf, Value)]

    def draw(self, seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in self.values]
        return [d.sigmoid() if v.positive else d for d, v in zip(drawn, self.values, strict=True)]

    def __call__(self, values: list[Tensor]) -> Tensor:
        rest = iter(values)
        filled = [next(rest) if isinstance(leaf, Value) else leaf for leaf in self.leaves]
        args, kwargs = tree_unflatten(filled, self.form)
        with warnings.catch_warnings(action="ignore"):  # deprecated spellings and those in beta
            return numbers(self.function(*args, **kwargs))

    @property
    def has_constants(self) -> bool:
        """Whether the example adds or selects constants beside values."""
        return any(isinstance(s, float) or (isinstance(s, Tensor) and s.is_floating_point()) for s in self.leaves)


def in_place() -> Iterator[Any]:
    """The in-place methods of these ops, each on a tensor of its own, which it leaves for what comes after it."""
    for op in vocabulary():
        examples = EXAMPLES.get(op.name, [])
        for name in op.methods if op.linearity in CARRIERS and examples else ():
            if hasattr(Tensor, f"{name}_") and name not in OWN.get(op.name, {}):
                yield pytest.param(op, _changed(f"{name}_"), examples[0], id=f"{op.name}-{name}_")


def _changed(name: str) -> Call:
    def call(value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        changed = value * 1
        getattr(changed, name)(*args, **kwargs)
        return changed

    return call
