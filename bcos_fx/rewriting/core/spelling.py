"""Spellings: the dotted names of classes and functions in the op vocabulary and in files, and what they mean.

Shipped spellings lie below a fixed list of roots. What a program registers for itself (:func:`register`) bears the
dotted name that it was given there. Nothing is ever imported, and no attribute is read, because a file names it: a file
of rules that is not bcos_fx's own reaches PyTorch's functions on tensors and layers, from tables of them, and what is
registered; a file of a network reaches what the vocabulary holds.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import get_overridable_functions

from bcos_fx.errors import RuleError, nearest
from bcos_fx.rewriting.core.refused import refusals
from bcos_fx.tracing import operations

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_REGISTERED: dict[str, Any] = {}


@functools.cache
def _roots() -> dict[str, Any]:
    return {
        "torch": torch,
        "nn": nn,
        "F": torch.nn.functional,
        "operator": operator,
        "builtins": builtins,
        "math": math,
        "aten": torch.ops.aten,
        "bcos": importlib.import_module("bcos_fx.nn"),
        "tracing": importlib.import_module("bcos_fx.tracing.functional"),
    }


def resolve(name: str) -> Any:
    """Return the class or function that a spelling of the vocabulary means.

    Raises:
        RuleError: no such name.
    """
    root, *path = name.split(".")
    roots = _roots()
    if name in _REGISTERED:
        return _REGISTERED[name]
    if root not in roots:
        raise unregistered_error(name)
    target: Any = roots[root]
    for part in path:
        if not hasattr(target, part):
            raise RuleError(f"{name!r} does not exist in torch {torch.__version__}")
        target = getattr(target, part)
    return target


def unregistered_error(name: str) -> RuleError:
    """Return the error for a spelling that nothing in this program is registered under."""
    return RuleError(
        f"nothing is registered as {name!r} in this program",
        hint=f"import the Python file that has @bcos_fx.rules.op({name!r}); on the command line: --import FILE.py"
        + (f". Registered are {', '.join(sorted(_REGISTERED))}" if _REGISTERED else ""),
    )


def is_own(name: str) -> bool:
    """Return whether a spelling is one that a program registers, and not one of PyTorch's or bcos_fx's."""
    return _DOTTED.fullmatch(name) is not None and name.partition(".")[0] not in _roots()


def register(name: str, target: type[nn.Module] | Callable[..., Any]) -> None:
    """Register a class or function under a dotted name of the program's own; the same again replaces it.

    Raises:
        RuleError: the name is not a dotted name, begins like PyTorch's or bcos_fx's, or something else bears it.
    """
    if not is_own(name):
        raise RuleError(
            f"{name!r} cannot be the spelling of an op",
            hint=f"give two or more identifiers with dots between, such as 'my_ops.Snake', the first not one "
            f"of {', '.join(sorted(_roots()))}",
        )
    check_same_place("op's spelling", name, _REGISTERED.get(name), target)
    _REGISTERED[name] = target


def check_same_place(kind: str, name: str, old: object, new: object) -> None:
    """Check that a name is free, or that what bears it is an earlier run of the same definition, as in a notebook.

    Raises:
        RuleError: another class or function bears the name.
    """
    if old is not None and _place(old) != _place(new):
        raise RuleError(
            f"two definitions are registered as the {kind} {name!r}",
            where=f"{_place(old)} and {_place(new)}",
            hint="rename one of them",
        )


def _place(target: object) -> str:
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', repr(target))}"


# ---------------------------------------------------------------- what files of rules may name of PyTorch


_NEVER = ("memory", "gradients", "read_by_python", "form", "control_flow", "other_devices")
"""Groups of ``rules/refused.toml`` that no file of rules can make ops of: they give no tensor computed from others."""


@functools.cache
def _never() -> frozenset[str]:
    names = frozenset(name.rpartition(".")[2] for group in _NEVER for name in refusals()[group].names)
    return names | operations.DATA_READS | operations.FORM_READS | operations.SIZE_READS


@functools.cache
def _torch_functions() -> dict[str, Callable[..., Any]]:
    """Return spelling -> function that PyTorch reports when it is called on tensors; no other can be in a graph."""
    spaces: Mapping[str, Any] = {
        "torch": torch,
        "F": torch.nn.functional,
        **{f"torch.{name}": getattr(torch, name) for name in ("linalg", "special", "fft")},
    }
    reported = get_overridable_functions()
    return {
        f"{prefix}.{function.__name__}": function
        for prefix, space in spaces.items()
        for function in reported.get(space, ())
        if hasattr(function, "__name__") and function.__name__ not in _never() and function.__name__[0] != "_"
    }


@functools.cache
def _torch_layers() -> dict[str, type[nn.Module]]:
    layers = {f"nn.{name}": kind for name, kind in vars(nn).items() if isinstance(kind, type)}
    return {name: kind for name, kind in layers.items() if issubclass(kind, nn.Module)}


@functools.cache
def _torch_methods() -> frozenset[str]:
    names = {getattr(method, "__name__", "_") for method in get_overridable_functions()[torch.Tensor]}
    # Those that end in _ change their tensor, which a graph holds in its out-of-place form only.
    return frozenset(name for name in names - _never() if not name.startswith("_") and not name.endswith("_"))


def check_nameable(kind: str, name: str) -> None:
    """Check that a file of rules may name a spelling.

    Args:
        kind: ``modules``, ``functions`` or ``methods``.
        name: the spelling.

    Raises:
        RuleError: it is neither registered nor a layer, a function on tensors or a method of tensors of PyTorch.
    """
    tables: Mapping[str, Callable[[], Collection[str]]] = {
        "modules": _torch_layers,
        "functions": _torch_functions,
        "methods": _torch_methods,
    }
    if kind != "methods" and is_own(name):
        if name not in _REGISTERED:
            raise unregistered_error(name)
        if isinstance(_REGISTERED[name], type) is not (kind == "modules"):
            right = "functions" if kind == "modules" else "modules"
            raise RuleError(f"{name!r} is registered, and belongs under {right!r}")
        return
    known = tables[kind]()
    if name not in known:
        noun = {"modules": "layer", "functions": "function on tensors", "methods": "method of tensors"}[kind]
        raise RuleError(f"{name!r} is not a {noun} of PyTorch that a rule file may name", hint=nearest(name, known))
