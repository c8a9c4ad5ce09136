"""A rewrite rule as data: what it matches, what it puts there, and what it preserves.

A rule made in Python goes through the same validator as one read from a file.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bcos_fx.errors import RuleError, nearest
from bcos_fx.rewriting.core.op import CLASSES, Op
from bcos_fx.rewriting.core.ops import BOUNDARY, name_of, vocabulary

PRESERVING_PHASES = ("canonical", "structure", "input", "norm", "activation", "linear")
CHANGING_PHASES = ("pool", "bias", "align", "head")
PHASES = (*PRESERVING_PHASES, *CHANGING_PHASES, "fold", "freeze")
"""The phases in the order they run; ``fold`` belongs to :func:`bcos_fx.optimize`, ``freeze`` to explanation views."""

PRESERVES = ("always", "eval", "never")
"""What a rule keeps: the function in train and eval, in eval only, or not at all."""

ANY = "*"
"""An input that may be anything, and the op of a pattern node that may be anything: a value that is read twice, say."""

_EDGES = frozenset(op.name for op in BOUNDARY.values())

PARAMETER = BOUNDARY["get_attr"].name
"""The op of a stored tensor: a parameter or a buffer that a call reads."""

COEFFICIENTS, _FORMERLY = "coefficients", "ledger"
"""The input of an explanation view through which its constants are counted; only for the phase ``freeze``."""

ARGUMENTS = ("query", "key", "value", "attn_mask")
"""Arguments of a matched node that a rule may name: each holds one tensor, or is left out."""

SUFFIXES = ("input", "second", "inputs", *ARGUMENTS, "gate", "constant", "literal", "carrier")
"""What a rule may name of a matched node: its first and second input, all of them, an argument, or a slot of these."""

ANY_NUMBER = -1
"""A number of users that may be anything."""


@dataclass(frozen=True)
class NodePattern:
    """One node of a pattern.

    Attributes:
        ops: canonical names, one of which the node must have; also the name of one function of a family, such as
            ``sin``. ``*`` stands for any op, ``parameter`` for a stored tensor.
        classes: linearity classes; the node's is one of them, unless ``ops`` names its op.
        inputs: names of pattern nodes that feed it, in order; ``*`` is any value. Empty: anything. Stored tensors are
            left out, unless one of the names is a pattern node of the op ``parameter``: then all operands are named.
        users: the number of users the node must have; -1 for any. Left out: 1 for an inner node of the pattern
            (a value that is used elsewhere cannot be rewritten away), any for the last one, for stored tensors and
            for the op ``*``, which stay.
        form: ``module``, ``call`` (function or method) or None for either.
        optional: the node may be absent; its first input then stands in its place.
        commutative: the inputs may stand in any order.
        where: attribute -> value, or list of accepted values.
        require: names of registered predicates.
    """

    ops: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    users: int | None = None
    form: str | None = None
    optional: bool = False
    commutative: bool = False
    where: Mapping[str, Any] = field(default_factory=dict)
    require: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def stays(self) -> bool:
        """Whether what it matches is not rewritten away, so that others may use it: a stored tensor, or any value."""
        return bool(self.ops) and set(self.ops) <= {ANY, PARAMETER}

    def admits(self, op: Op | None, called: object) -> bool:
        """Return whether a node of this op may be the node of the pattern.

        Args:
            op: None for an unknown operation.
            called: the function, or the name of the method, that the node calls.
        """
        if op is None or ANY in self.ops:
            return ANY in self.ops
        is_of_class = op.linearity in self.classes and op.name not in _EDGES
        return is_of_class or op.name in self.ops or name_of(op, called) in self.ops


@dataclass(frozen=True)
class Replacement:
    """One node of the result.

    Attributes:
        build: name of a registered builder; None reuses the matched node of the same name.
        source: the pattern node that the builder reads (default: the one of the same name, else the anchor).
        inputs: names of result or pattern nodes, or ``node.input`` for what fed a matched node (``node.second`` for
            its second input, ``node.inputs`` for all that it reads, or a slot of :mod:`bcos_fx.rewriting.core.slots`).
        instead_of: for a reused node: the slot (``node.gate`` and so on) that its one input is put into; everything
            else that the node reads stays.
        arguments: for a reused call: parameter -> the number, text or flag that it is given.
    """

    build: str | None = None
    source: str | None = None
    inputs: tuple[str, ...] = ()
    instead_of: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if _FORMERLY in self.inputs:
            warnings.warn(
                f"the input {_FORMERLY!r} of a rule is now {COEFFICIENTS!r}", DeprecationWarning, stacklevel=2
            )
            renamed = tuple(COEFFICIENTS if name == _FORMERLY else name for name in self.inputs)
            object.__setattr__(self, "inputs", renamed)


@dataclass(frozen=True)
class Rule:
    """A rewrite rule.

    Attributes:
        name: kebab-case, states the effect.
        phase: one of :data:`PHASES`.
        preserves: one of :data:`PRESERVES`.
        source: the paper and section that the rewrite comes from.
        why: the reason why it preserves what it says, or what it is good for.
        match: name -> pattern node; the last one is the anchor.
        replace: name -> result node, in order; empty for a refusal or a removal.
        result: the result node (or ``node.input``, ``node.carrier``) that takes the anchor's place.
        refuse: instead of a result: the reason why this shape is left alone.
        when: option -> value (or list of values) under which the rule is active.
        origin: ``file:line``, for messages.
    """

    name: str
    phase: str
    preserves: str
    source: str
    why: str
    match: Mapping[str, NodePattern]
    replace: Mapping[str, Replacement] = field(default_factory=dict)
    result: str | None = None
    refuse: str | None = None
    when: Mapping[str, Any] = field(default_factory=dict)
    origin: str = "made in Python"

    @property
    def anchor(self) -> str:
        """Name of the pattern node at which matching starts: the last one."""
        return list(self.match)[-1]


@dataclass(frozen=True)
class Known:
    """The names that a rule may use."""

    ops: frozenset[str]
    predicates: frozenset[str]
    builders: frozenset[str]
    options: frozenset[str]


def _error(rule: Rule, problem: str, hint: str | None = None) -> RuleError:
    return RuleError(f"rule {rule.name!r}{problem}", where=rule.origin, hint=hint)


def _check_known(rule: Rule, kind: str, name: str, known: frozenset[str] | tuple[str, ...]) -> None:
    if name not in known:
        hint = nearest(name, known)
        if kind in ("op", "predicate", "builder"):
            hint += f"; a {kind} of your own is known once the file that registers it is imported (--import FILE.py)"
        raise _error(rule, f": {name!r} is not a known {kind}", hint)


def _check_pattern(rule: Rule, known: Known) -> None:
    seen: list[str] = []
    for name, pattern in rule.match.items():
        _check_ops(rule, name, pattern, known)
        for predicate in pattern.require:
            _check_known(rule, "predicate", predicate, known.predicates)
        for source in pattern.inputs:
            if source != ANY:
                _check_known(rule, "pattern node before this one", source, tuple(seen))
        if pattern.form not in (None, "module", "call"):
            _check_known(rule, "form", str(pattern.form), ("module", "call"))
        seen.append(name)
    if rule.match[rule.anchor].optional:
        raise _error(rule, ": the last pattern node cannot be optional")
    if rule.match[rule.anchor].stays:
        problem = ": the last pattern node must be an operation, for it is what is rewritten"
        raise _error(rule, problem, "name the operation that gives the result last")


def _check_ops(rule: Rule, name: str, pattern: NodePattern, known: Known) -> None:
    for op in pattern.ops:
        _check_known(rule, "op", op, known.ops | {"input", PARAMETER, "output", ANY})
    for linearity in pattern.classes:
        _check_known(rule, "linearity class", linearity, CLASSES)
    if not (pattern.ops or pattern.classes):
        raise _error(rule, f": {name!r} names no op", 'add op = "*", say')


def _check_result(rule: Rule, known: Known) -> None:
    earlier: list[str] = []
    for name, entry in rule.replace.items():
        if entry.build is None:
            _check_known(rule, "pattern node to reuse", name, tuple(rule.match))
        else:
            _check_known(rule, "builder", entry.build, known.builders)
        if entry.source is not None:
            _check_known(rule, "pattern node", entry.source, tuple(rule.match))
        for source in entry.inputs:
            _check_source(rule, source, (*rule.match, *earlier))
        if entry.instead_of is not None:
            _check_source(rule, entry.instead_of, (*rule.match, *earlier))
            if entry.build is not None or len(entry.inputs) != 1:
                raise _error(rule, f": {name!r} has 'instead_of' and must reuse a node and name one input")
        if entry.arguments:
            _check_arguments(rule, name, entry)
        earlier.append(name)
    if rule.result is not None:
        name, _, suffix = rule.result.partition(".")
        _check_known(rule, "node", name, (*rule.match, *earlier))
        if suffix:
            _check_known(rule, "part of a node that can stand for it", suffix, ("input", "carrier"))


def _check_arguments(rule: Rule, name: str, entry: Replacement) -> None:
    if entry.build is not None or entry.instead_of is not None or rule.match[name].form != "call":
        raise _error(rule, f": {name!r} has 'arguments': it must reuse a node of form = \"call\", and no slot of it")
    if rule.match[name].classes:
        raise _error(rule, f": {name!r} has 'arguments', and names no op by its own name")
    for op in rule.match[name].ops:
        for argument in entry.arguments:
            _check_known(rule, f"argument of {op}", argument, vocabulary()[op].parameters)


def _check_source(rule: Rule, source: str, known: tuple[str, ...]) -> None:
    if source == COEFFICIENTS and rule.phase == "freeze":
        return
    name, _, suffix = source.partition(".")
    _check_known(rule, "node", name, known)
    if suffix:
        _check_known(rule, "part of a node", suffix, SUFFIXES)
        if name in rule.match and rule.match[name].stays:
            raise _error(rule, f": {source!r}, and nothing is known of what {name!r} reads")


def validate(rule: Rule, known: Known) -> Rule:
    """Return the rule if it is sound.

    Raises:
        RuleError: an unknown name, a missing part, or a rule of a preserving phase that preserves nothing.
    """
    _check_known(rule, "phase", rule.phase, PHASES)
    _check_known(rule, "word for 'preserves'", rule.preserves, PRESERVES)
    for option in rule.when:
        _check_known(rule, "option", option, known.options)
    if not rule.match:
        raise _error(rule, " matches nothing", "add [rule.match.<name>]")
    _check_pattern(rule, known)
    if rule.refuse is None and not rule.replace and rule.result is None:
        raise _error(rule, " does nothing", "add [rule.replace.<name>], result or refuse")
    _check_result(rule, known)
    if rule.phase in PRESERVING_PHASES and rule.preserves == "never":
        hint = f"move it to one of {', '.join(CHANGING_PHASES)}, or say what it preserves"
        raise _error(rule, f" changes the function but stands in the preserving phase {rule.phase!r}", hint)
    return rule
