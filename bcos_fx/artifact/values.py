"""Plain Python values as JSON and back, exactly: tuples stay tuples, infinities stay infinities.

What JSON has no word for is an object with one key that names its kind: ``{"tuple": [1, 2]}``. The same code writes
the arguments of a graph's nodes, where ``{"node": "conv1"}`` refers to another node, and the record of a network,
where ``{"Guard": {...}}`` is one of its dataclasses.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.immutable_collections import immutable_dict, immutable_list

from bcos_fx.budgets import VALUE_DEPTH
from bcos_fx.errors import ArtifactError
from bcos_fx.network import Record

_FLOATS = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_FORMATS = {
    str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.memory_format)
}


def encode(value: Any, where: str, depth: int = 0) -> Any:
    """Return a value as JSON data.

    Args:
        value: made of None, bool, int (64 bits), float, complex, str, tuple, list, dict, slice, Ellipsis, torch's
            dtype, device, memory_format, strided layout and Size, nodes of a graph, and the dataclasses of a
            :class:`Record`.
        where: what to call its place in an error.
        depth: how many containers it lies in.

    Raises:
        ArtifactError: another type, or too deeply nested.
    """
    _check_depth(depth, where)
    kind = type(value)
    if value is None or kind in (bool, str) or (kind is int and _is_moderate(value)):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if kind is complex:
        return {"complex": [encode(part, where, depth + 1) for part in (value.real, value.imag)]}
    if kind in (torch.dtype, torch.memory_format, torch.device) or value is torch.strided:
        return {kind.__name__: str(value).removeprefix("torch.")}
    if kind is type(...):
        return {"ellipsis": None}
    parts = _parts(value)
    if parts is None:
        raise ArtifactError(
            f"{_shortened(value)} of type {kind.__name__} cannot be stored",
            where=where,
            hint="a file holds plain numbers, texts, tuples, lists, dicts, slices, and torch's dtypes and devices",
        )
    tag, items = parts
    if tag in _dataclasses():
        # A field that holds its default is left out, so that versions that do not have it read the file too.
        values = {field.name: item for field, item in zip(dataclasses.fields(kind), items, strict=True)}
        stored = {name: item for name, item in values.items() if not _is_default(kind, name, item)}
        return {tag: {name: encode(item, where, depth + 1) for name, item in stored.items()}}
    encoded = [encode(item, where, depth + 1) for item in items]
    return encoded if tag == "list" else {tag: encoded}


def _is_default(kind: type[Any], name: str, value: object) -> bool:
    """Return whether a field of a dataclass holds its default; an equal value of another type does not count."""
    default = _defaults()[kind.__name__][name]
    # 1 == True == 1.0 in Python, and a file keeps them apart.
    return type(default) is type(value) and bool(default == value)


def _parts(value: Any) -> tuple[str, list[Any]] | None:
    """Take a container apart: the name of its kind and what it holds; None for what is not one."""
    kind = type(value)
    if kind in (list, immutable_list):
        return "list", list(value)
    if kind in (tuple, torch.Size):
        return kind.__name__.lower(), list(value)
    if kind in (dict, immutable_dict):
        return "dict", [[key, item] for key, item in value.items()]
    if kind is slice:
        return "slice", [value.start, value.stop, value.step]
    if _dataclasses().get(kind.__name__) is kind:
        return kind.__name__, [getattr(value, field.name) for field in dataclasses.fields(kind)]
    return None


def decode(value: object, where: str, nodes: Mapping[str, fx.Node] | None = None, depth: int = 0) -> Any:
    """Return the value that :func:`encode` wrote.

    Raises:
        ArtifactError: nothing that :func:`encode` writes.
    """
    _check_depth(depth, where)
    if isinstance(value, list):
        return [decode(item, where, nodes, depth + 1) for item in value]
    if not isinstance(value, dict):
        if isinstance(value, int | float) and not _is_moderate(value):
            raise ArtifactError("a number in the file is beyond reason", where=where)
        return value
    if len(value) != 1:
        raise _malformed(value, where)
    ((tag, content),) = value.items()
    # A name from a file chooses among the classes of a record, and never reaches an import or getattr().
    if tag in _dataclasses():
        return _dataclass(_dataclasses()[tag], content, where, depth)
    if tag in _MAKERS:
        return _make(tag, decode(content, where, nodes, depth + 1), where)
    known = _WORDS.get(tag, nodes if tag == "node" else None)
    if known is None or not isinstance(content, str) or content not in known:
        raise _malformed(value, where)
    return known[content]


def _make(tag: str, items: object, where: str) -> Any:
    try:
        return _MAKERS[tag](items)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _malformed({tag: items}, where) from error


def _device(name: object) -> torch.device:
    if not isinstance(name, str):
        raise TypeError("a device is named by a text")
    return torch.device(name)


def _sequence(kind: Callable[[list[Any]], Any]) -> Callable[[Any], Any]:
    def make(items: object) -> Any:
        if not isinstance(items, list):
            raise TypeError("a container holds a list")
        return kind(items)

    return make


def _ellipsis(nothing: None) -> Any:
    if nothing is not None:
        raise TypeError("an ellipsis holds nothing")
    return ...


def _complex(parts: list[Any]) -> complex:
    if len(parts) != 2 or not all(type(part) is float for part in parts):
        raise ValueError("a complex number has a real and an imaginary part")
    return complex(*parts)


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "tuple": _sequence(tuple),
    "complex": _sequence(_complex),
    "size": _sequence(torch.Size),
    "dict": _sequence(dict),
    "slice": _sequence(lambda items: slice(*_three(items))),
    "device": _device,
    "ellipsis": _ellipsis,
}
_WORDS: dict[str, Mapping[str, Any]] = {
    "float": _FLOATS,
    "layout": {"strided": torch.strided},
    "dtype": _DTYPES,
    "memory_format": _FORMATS,
}


def _three(items: list[Any]) -> list[Any]:
    if len(items) != 3:
        raise ValueError("a slice has a start, a stop and a step")
    return items


def _dataclass(kind: type[Any], content: object, where: str, depth: int) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(content, dict) or not set(content) <= set(fields):
        raise _malformed({kind.__name__: content}, where)
    values = {name: decode(item, f"{where}.{name}", None, depth + 1) for name, item in content.items()}
    for name, hint in _hints()[kind.__name__].items():
        # A field that a later version added has a default, so that older files stay readable.
        if name not in values and fields[name].default is fields[name].default_factory is dataclasses.MISSING:
            raise ArtifactError(f"the file lacks {name!r}", where=f"{where} ({kind.__name__})")
        if name in values and not fits(values[name], hint):
            raise ArtifactError(f"{_shortened(values[name])} is not what belongs here", where=f"{where}.{name}")
    return kind(**values)


@functools.cache
def _defaults() -> dict[str, dict[str, Any]]:
    """Return dataclass -> field -> its default; MISSING where it has none."""
    return {
        name: {
            field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            for field in dataclasses.fields(kind)
        }
        for name, kind in _dataclasses().items()
    }


@functools.cache
def _hints() -> dict[str, dict[str, Any]]:
    """Return dataclass -> field -> type; Python evaluates annotations, so they are read once."""
    return {name: typing.get_type_hints(kind) for name, kind in _dataclasses().items()}


def fits(value: object, hint: object) -> bool:
    """Return whether a value is of an annotated type: a class, a union, tuple[X, ...] or Mapping[K, V]."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in inner)
    if origin is tuple:
        return type(value) is tuple and all(fits(item, inner[0]) for item in value)
    if origin is not None and issubclass(origin, Mapping):
        return type(value) is dict and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if hint is float:
        return type(value) in (float, int)
    return type(value) is (types.NoneType if hint is None else hint)


@functools.cache
def _dataclasses() -> dict[str, type[Any]]:
    """Name -> dataclass, for :class:`Record` and everything that its fields hold."""
    kinds: dict[str, type[Any]] = {}
    pending: list[Any] = [Record]
    while pending:
        hint = pending.pop()
        pending += typing.get_args(hint)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and hint.__name__ not in kinds:
            kinds[hint.__name__] = hint
            pending += typing.get_type_hints(hint).values()
    return kinds


def _is_moderate(number: float) -> bool:
    return math.isfinite(number) if isinstance(number, float) else -(2**63) <= number < 2**63


def _check_depth(depth: int, where: str) -> None:
    VALUE_DEPTH.check(depth, "a value", ArtifactError, where)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _malformed(value: object, where: str) -> ArtifactError:
    return ArtifactError(f"{_shortened(value)} means nothing in a file of bcos_fx", where=where)
