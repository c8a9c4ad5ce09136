"""Declaring an op: from a table of a TOML file, or from the signature of a class or function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from bcos_fx.errors import RuleError, nearest
from bcos_fx.rewriting.core.op import CLASSES, Op
from bcos_fx.rewriting.core.spelling import check_nameable, is_own, resolve
from bcos_fx.rewriting.core.toml import Table

Form = tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]
"""Names of a call's arguments in order, the values of those that may be left out, and what a module is called with."""

_KINDS = ("modules", "functions", "methods")
_PLACEMENT = frozenset({"device", "dtype"})


def read_op(name: str, table: Table, *, shipped: bool) -> Op:
    """Read one table of a vocabulary.

    Args:
        name: the op's.
        table: its fields.
        shipped: it is bcos_fx's own; other files name of PyTorch only what can be in a graph, and no class of another
            package.

    Raises:
        RuleError: an unknown word, or a spelling that means nothing; with file and line.
    """
    spelled = {kind: table.strings(kind) for kind in _KINDS}
    if not shipped:
        _check_spellings(name, table, spelled)
    parameters, defaults, inputs = _form(spelled)
    parameters = table.strings("parameters", default=parameters)
    first = parameters[:1]
    op = Op(
        name=name,
        linearity=table.choice("class", sorted(CLASSES)),
        **spelled,
        parameters=parameters,
        defaults=defaults | table.mapping("defaults"),
        aliases=table.mapping("aliases"),
        attributes=table.mapping("attributes"),
        inputs=table.strings("inputs", default=inputs or first),
        value=table.strings("value", default=first),
        gate=table.text("gate", default=None),
        constants=table.strings("constants"),
        like=table.strings("like"),
        variadic=table.text("variadic", default=None),
        rectifier=table.flag("rectifier"),
        joined=table.flag("joined"),
        moves=table.flag("moves"),
        magnitude=table.flag("magnitude"),
        family=table.flag("family"),
        instead=table.text("instead", default=None),
        weighted=table.flag("weighted"),
        batch_statistics=table.flag("batch_statistics"),
        view=shipped and table.flag("view"),
        peers=table.strings("peers") if shipped else (),
        declared=None if shipped else str(table.path.resolve()),
    )
    table.finish()
    _check_names(op, lambda key, reason, hint: table.error(reason, key, hint))
    return op


def _check_spellings(name: str, table: Table, spelled: Mapping[str, tuple[str, ...]]) -> None:
    for kind, names in spelled.items():
        for spelling in names:
            try:
                check_nameable(kind, spelling)
            except RuleError as error:
                raise table.error(error.what, kind, error.hint) from error
    if not any(spelled.values()):
        raise table.error(f"the op {name!r} has no spelling", hint=f"give it {', '.join(_KINDS[:2])} or {_KINDS[2]}")


def _form(spelled: Mapping[str, tuple[str, ...]]) -> Form:
    """Return the argument form that a registered class or function declares; ``input`` for PyTorch's own."""
    registered = [name for kind in _KINDS[:2] for name in spelled[kind] if is_own(name)]
    return form_of(resolve(registered[0])) if registered else (("input",), {}, ())


def form_of(target: Any) -> Form:
    """Return what the signature of a function says, or those of a class's ``forward`` and constructor.

    A class's constructor arguments are parameters after those of ``forward``: a call reads them from the attributes
    that bear their names.
    """
    if not inspect.isclass(target):
        parameters = _named_parameters(target)
        given = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        return tuple(parameters), given, ()
    inputs = list(_named_parameters(inspect.getattr_static(target, "forward")))[1:]
    options = [name for name in _named_parameters(target) if name not in _PLACEMENT and name not in inputs]
    return (*inputs, *options), {}, tuple(inputs)


def _named_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def op_of(name: str, spelling: str, target: type[nn.Module] | Callable[..., Any], given: Mapping[str, Any]) -> Op:
    """Declare an op in Python: what is not given follows from the signature of the class or function.

    Args:
        name: the op's.
        spelling: the dotted name that ``target`` is registered under.
        target: the class or function.
        given: fields of :class:`~bcos_fx.rewriting.core.op.Op`; a text stands for a tuple of one.

    Raises:
        RuleError: an unknown linearity class, or a name that is not a parameter.
    """
    parameters, defaults, inputs = form_of(target)
    fields: dict[str, Any] = {"parameters": parameters, "defaults": defaults, "inputs": inputs or parameters[:1]}
    fields |= {key: (value,) if key in _TUPLES and isinstance(value, str) else value for key, value in given.items()}
    fields |= {key: tuple(fields[key]) for key in _TUPLES if key in fields}
    fields.setdefault("value", fields["parameters"][:1])
    kind = "modules" if isinstance(target, type) else "functions"
    where = f"{target.__module__}.{target.__qualname__}"
    fields[kind] = (spelling,)
    op = Op(name, **fields, declared=where)
    if op.linearity not in CLASSES:
        hint = nearest(op.linearity, sorted(CLASSES))
        raise RuleError(f"{op.linearity!r} is not a linearity class", where=where, hint=hint)
    _check_names(op, lambda key, reason, hint: RuleError(reason, where=where, hint=hint))
    return op


_TUPLES = ("parameters", "inputs", "value", "constants", "like")


def _check_names(op: Op, error: Callable[[str, str, str | None], RuleError]) -> None:
    """Check that what an op says of its parameters names some."""
    named = {key: tuple(getattr(op, key)) for key in ("inputs", "value", "constants", "like", "defaults", "attributes")}
    named |= {"aliases": tuple(op.aliases.values()), "gate": (op.gate,) if op.gate else ()}
    named["variadic"] = (op.variadic,) if op.variadic else ()
    for key, names in named.items():
        for name in names:
            if name not in op.parameters:
                reason = f"the op {op.name!r} has no parameter {name!r}, which its {key!r} names"
                raise error(key, reason, nearest(name, op.parameters))
