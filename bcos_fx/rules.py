"""Ops, rules, builders and predicates of your own: everything that a Python file of rules imports.

    >>> import torch
    >>> from bcos_fx import rules
    >>> @rules.op("my_ops.Snake", linearity="ratio")
    ... class Snake(torch.nn.Module): ...

What is registered here is known to this program, in every function of bcos_fx: conversion, certificate, explanation,
and the files that it writes and reads. ``docs/rules.md`` is the tutorial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from bcos_fx.errors import RuleError
from bcos_fx.nn.dynamic import DynamicLayer
from bcos_fx.rewriting.core.build import Build, Part, Refused, Rewired
from bcos_fx.rewriting.core.declaration import op_of
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call, declare, forget_vocabulary
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder, predicate
from bcos_fx.rewriting.core.rule import Rule
from bcos_fx.rewriting.core.rulefile import load, rule
from bcos_fx.rewriting.core.spelling import register
from bcos_fx.tracing.whole import keep_whole

__all__ = [
    "Build",
    "Call",
    "DynamicLayer",
    "GraphReader",
    "Part",
    "Refused",
    "Rewired",
    "Rule",
    "Verdict",
    "builder",
    "load",
    "op",
    "predicate",
    "rule",
]

T = TypeVar("T", bound=Callable[..., Any])


def op(spelling: str, *, linearity: str | None = None, name: str | None = None, **fields: Any) -> Callable[[T], T]:
    """Return a decorator that registers a layer's class, or a function on tensors, as one op.

    Networks are then traced with the layer, or the call of the function, as one node. Files name the class or function
    by its spelling, and a program that reads such a file has to register it too.

    Args:
        spelling: a dotted name of your own, such as ``my_ops.Snake``. It stands in files, so it should not change.
        linearity: how the op maps values: one of :data:`bcos_fx.rewriting.core.op.CLASSES`. Left out where a TOML file
            declares the op, with the spelling under ``modules`` or ``functions``.
        name: what rules call the op. (default: the spelling)
        fields: of :class:`bcos_fx.rewriting.core.op.Op`: ``parameters``, ``defaults``, ``value``, ``constants``,
            ``weighted`` and so on. ``parameters`` and ``defaults`` follow from the signature.

    Returns:
        A decorator. It returns a class as it is, and a function as one that computes the same and that tracing sees.

    Raises:
        RuleError: the spelling is not a dotted name of your own, something else bears it, or a field is wrong.
    """

    def decorate(target: T) -> T:
        if not isinstance(target, type) and getattr(target, "__name__", "").endswith("_"):
            raise RuleError(
                f"{spelling!r} is named like a function that changes its argument",
                hint="register one that returns a new tensor, without _ at its end",
            )
        traceable = target if isinstance(target, type) else keep_whole(target, spelling)
        register(spelling, traceable)
        forget_vocabulary()
        if linearity is not None:
            declare(op_of(name or spelling, spelling, traceable, {"linearity": linearity, **fields}))
        elif name is not None or fields:
            raise RuleError(f"{spelling!r} has fields, and no linearity class", hint='add linearity="ratio", say')
        return traceable

    return decorate
