"""Matching: pure functions from a rule and a node to a hit, a near miss or nothing.

Matching starts at the anchor, the last node of the pattern, and walks toward the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from bcos_fx.errors import BcosFxError, RewriteError
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rule import ANY, ANY_NUMBER, PARAMETER, NodePattern, Rule

Verdict = bool | str
"""What a predicate says: it holds, it does not apply (silent), or the reason for a near miss."""


@dataclass(frozen=True)
class Hit:
    """A rule matched.

    Attributes:
        rule: the rule.
        nodes: pattern name -> node; an optional node that is absent is not listed.
        calls: pattern name -> that node as a call.
        stand_in: optional pattern name -> the node that stands in its place.
    """

    rule: Rule
    nodes: Mapping[str, fx.Node]
    calls: Mapping[str, Call]
    stand_in: Mapping[str, fx.Node]

    @property
    def anchor(self) -> fx.Node:
        """The node at which matching started."""
        return self.nodes[self.rule.anchor]


@dataclass(frozen=True)
class NearMiss:
    """A rule almost matched: which, where, and why not."""

    rule: str
    node: str
    reason: str


Predicate = Callable[["GraphReader", Call], Verdict]


@dataclass(frozen=True)
class Mismatch:
    """The first condition of a rule that a node does not fulfill.

    Attributes:
        condition: in words, with the node at which it failed.
        near: the shape of the pattern was there, so that reports list it as a near miss.
        matched: how many nodes of the pattern had been found.
    """

    condition: str
    near: bool
    matched: int


class _Miss(Exception):
    """The pattern does not fit."""

    def __init__(self, condition: str, *, near: bool = False, matched: int = 0) -> None:
        self.mismatch = Mismatch(condition, near, matched)
        super().__init__(condition)


def _equals(value: object, wanted: object) -> bool:
    if isinstance(value, tuple | list):
        return isinstance(wanted, tuple | list) and len(value) == len(wanted) and all(map(_equals, value, wanted))
    return not isinstance(value, fx.Node | Tensor) and bool(value == wanted)


@dataclass
class _PartialMatch:
    """What has been matched so far: see :class:`Hit`."""

    nodes: dict[str, fx.Node]
    calls: dict[str, Call]
    stand_in: dict[str, fx.Node]

    def copy(self) -> _PartialMatch:
        return _PartialMatch(dict(self.nodes), dict(self.calls), dict(self.stand_in))

    def take(self, other: _PartialMatch) -> None:
        self.nodes |= other.nodes
        self.calls |= other.calls
        self.stand_in |= other.stand_in


class _Matcher:
    def __init__(self, rule: Rule, reader: GraphReader, predicates: Mapping[str, Predicate]) -> None:
        self.rule, self.reader, self.predicates = rule, reader, predicates

    def match(self, node: fx.Node) -> Hit:
        partial = _PartialMatch({}, {}, {})
        self._node(self.rule.anchor, node, partial)
        ordered = [name for name in self.rule.match if name in partial.nodes]
        # Conditions only once the whole shape is there: a failure from here on can be a near miss, which is reported.
        for name in ordered:
            self._conditions(name, partial.nodes[name], partial.calls.get(name), inner=name != self.rule.anchor)
        calls = {name: partial.calls[name] for name in ordered if name in partial.calls}
        return Hit(self.rule, {name: partial.nodes[name] for name in ordered}, calls, partial.stand_in)

    def _node(self, name: str, node: fx.Node, partial: _PartialMatch) -> None:
        pattern, call = self.rule.match[name], self.reader.call(node)
        wrong = self._wrong_kind(name, pattern, node, call)
        if wrong is not None:
            if not pattern.optional:
                raise _Miss(wrong, matched=len(partial.nodes))
            # An optional node is absent: what it would have read stands in its place, and has to match its input.
            partial.stand_in[name] = node
            if pattern.inputs and pattern.inputs[0] != ANY:
                self._node(pattern.inputs[0], node, partial)
            return
        if partial.nodes.get(name, node) is not node:
            other = partial.nodes[name].name
            raise _Miss(f"{name!r} is {other} already, and here it would be {node.name}", matched=len(partial.nodes))
        partial.nodes[name] = node
        if call is not None:
            partial.calls[name] = call
            self._inputs(pattern, call, partial)

    def _wrong_kind(self, name: str, pattern: NodePattern, node: fx.Node, call: Call | None) -> str | None:
        """Return why a node is not of the op and form that a pattern node wants; None where it is."""
        op = None if call is None else call.op
        if not pattern.admits(op, node.target):
            is_what = "no known op" if call is None else call.name
            wanted = " or ".join([*pattern.ops, *(f"of the class {name}" for name in pattern.classes)])
            return f"{node.name} is {is_what}, and {name!r} must be {wanted}"
        if not (pattern.form is None or (pattern.form == "module") == (node.op == "call_module")):
            return f"{node.name} is not a {pattern.form}, and {name!r} must be one"
        if call is not None and not pattern.stays and _is_of_parameters(call):
            return f"{node.name} is computed from stored tensors alone, so it is a constant"
        return None

    def _inputs(self, pattern: NodePattern, call: Call, partial: _PartialMatch) -> None:
        if not pattern.inputs:
            return
        names_stored = any(name != ANY and PARAMETER in self.rule.match[name].ops for name in pattern.inputs)
        read = call.operands if names_stored else call.inputs
        if len(read) < len(pattern.inputs):
            raise _Miss(_too_few(pattern, call, read), matched=len(partial.nodes))
        misses: list[_Miss] = []
        # On a copy: an order that fails halfway must leave nothing behind for the next one.
        for order in _orders(pattern):
            tried = partial.copy()
            try:
                for source, node in zip(order, read, strict=False):
                    if source != ANY:
                        self._node(source, node, tried)
            except _Miss as miss:
                misses.append(miss)
                continue
            partial.take(tried)
            return
        # The order of inputs that came furthest gives the most useful reason.
        raise max(misses, key=lambda miss: miss.mismatch.matched)

    def _conditions(self, name: str, node: fx.Node, call: Call | None, *, inner: bool) -> None:
        pattern = self.rule.match[name]
        if call is None and (pattern.where or pattern.require):
            raise _Miss(f"{node.name} is not a known op, and {name!r} has conditions", near=True)
        if call is not None:
            self._call_conditions(pattern, call)
        wanted_users = _wanted_users(pattern, inner=inner and self.rule.refuse is None)
        # A refusal only reads, so that other users of its inner nodes do not matter.
        if wanted_users is not None and len(node.users) != wanted_users:
            raise _Miss(f"{node.name} has {len(node.users)} users, the rule wants {wanted_users}", near=True)

    def _call_conditions(self, pattern: NodePattern, call: Call) -> None:
        for attribute, wanted in pattern.where.items():
            value = call.arguments.get(attribute)
            alternatives = wanted if isinstance(wanted, list) else [wanted]
            if not any(_equals(value, alternative) for alternative in alternatives):
                raise _Miss(f"{call.node.name} has {attribute} {_brief(value)}, the rule wants {wanted!r}", near=True)
        for predicate in pattern.require:
            verdict = self._verdict(predicate, call)
            if isinstance(verdict, str) and verdict:
                raise _Miss(verdict, near=True)
            # False is an ordinary "no", and not a near miss: most nodes are not what a rule is about.
            if verdict is not True:
                meaning = (self.predicates[predicate].__doc__ or "").strip().partition("\n")[0]
                raise _Miss(f"{predicate!r} does not hold for {call.node.name}" + (f": {meaning}" if meaning else ""))

    def _verdict(self, name: str, call: Call) -> Verdict:
        try:
            return self.predicates[name](self.reader, call)
        except BcosFxError:
            raise
        except Exception as error:  # the code of a user's own predicate may raise anything; the cause stays attached
            raise RewriteError(
                f"the predicate {name!r} raised {type(error).__name__}: {error}",
                where=f"rule {self.rule.name!r} ({self.rule.origin}) at node {call.node.name}",
                hint="let it return True, False, or the reason why the rule must not be used",
            ) from error


def _too_few(pattern: NodePattern, call: Call, read: list[fx.Node]) -> str:
    stored = [node.name for node in call.operands if node not in read]
    sentence = f"{call.node.name} reads {len(read)} values, and the rule's inputs are {', '.join(pattern.inputs)}"
    if not stored:
        return sentence
    return (
        f"{sentence}. Stored tensors ({', '.join(stored)}) do not count, unless a pattern node with "
        f'op = "{PARAMETER}" stands among the inputs'
    )


def _brief(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)


def _wanted_users(pattern: NodePattern, *, inner: bool) -> int | None:
    if pattern.users is None:
        return 1 if inner and not pattern.stays else None
    return None if pattern.users == ANY_NUMBER else pattern.users


def _is_of_parameters(call: Call) -> bool:
    """Return whether the call reads parameters and nothing else: what it gives is constant, and no rule's business."""
    return bool(call.node.all_input_nodes) and not call.inputs


def _orders(pattern: NodePattern) -> Iterable[tuple[str, ...]]:
    return itertools.permutations(pattern.inputs) if pattern.commutative else [pattern.inputs]


def attempt(rule: Rule, node: fx.Node, reader: GraphReader, predicates: Mapping[str, Predicate]) -> Hit | Mismatch:
    """Match a rule at a node.

    An inner node of the pattern must have one user, unless the pattern says otherwise: a value that is used
    elsewhere cannot be rewritten away.
    """
    try:
        return _Matcher(rule, reader, predicates).match(node)
    except _Miss as miss:
        return miss.mismatch


def match(rule: Rule, node: fx.Node, reader: GraphReader, predicates: Mapping[str, Predicate]) -> Hit | NearMiss | None:
    """Match a rule at a node, as :func:`attempt` does.

    Returns:
        A hit, a near miss with its reason (the shape was there, a condition failed), or None.
    """
    outcome = attempt(rule, node, reader, predicates)
    if isinstance(outcome, Hit):
        return outcome
    return NearMiss(rule.name, node.name, outcome.condition) if outcome.near else None
