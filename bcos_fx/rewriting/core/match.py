"""Matching: pure functions from a rule and a node to a hit, a near miss or nothing.

Matching starts at the anchor, the last node of the pattern, and walks towards the input.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rule import ANY, ANY_NUMBER, NodePattern, Rule

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


class _Miss(Exception):
    """The pattern does not fit; with a reason where the shape was nearly there."""

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        super().__init__(reason)


def _same(value: Any, wanted: Any) -> bool:
    if isinstance(value, tuple | list):
        return isinstance(wanted, tuple | list) and len(value) == len(wanted) and all(map(_same, value, wanted))
    return type(value) is not fx.Node and bool(value == wanted)


def _holds(value: Any, wanted: Any) -> bool:
    alternatives = wanted if isinstance(wanted, list) else [wanted]
    return any(_same(value, alternative) for alternative in alternatives)


class _Matcher:
    def __init__(self, rule: Rule, reader: GraphReader, predicates: Mapping[str, Predicate]) -> None:
        self.rule, self.reader, self.predicates = rule, reader, predicates

    def match(self, node: fx.Node) -> Hit:
        nodes: dict[str, fx.Node] = {}
        calls: dict[str, Call] = {}
        stand_in: dict[str, fx.Node] = {}
        self._node(self.rule.anchor, node, nodes, calls, stand_in)
        ordered = [name for name in self.rule.match if name in nodes]
        for name in ordered:
            self._conditions(name, calls[name], inner=name != self.rule.anchor)
        return Hit(self.rule, {n: nodes[n] for n in ordered}, {n: calls[n] for n in ordered}, stand_in)

    def _node(
        self,
        name: str,
        node: fx.Node,
        nodes: dict[str, fx.Node],
        calls: dict[str, Call],
        stand_in: dict[str, fx.Node],
    ) -> None:
        pattern = self.rule.match[name]
        call = self.reader.call(node)
        if call is None or call.op.name not in pattern.ops or not _has_form(pattern, node) or _is_of_parameters(call):
            if not pattern.optional:
                raise _Miss
            stand_in[name] = node
            if pattern.inputs and pattern.inputs[0] != ANY:
                self._node(pattern.inputs[0], node, nodes, calls, stand_in)
            return
        if nodes.get(name, node) is not node:
            raise _Miss
        nodes[name], calls[name] = node, call
        self._inputs(pattern, call, nodes, calls, stand_in)

    def _inputs(
        self,
        pattern: NodePattern,
        call: Call,
        nodes: dict[str, fx.Node],
        calls: dict[str, Call],
        stand_in: dict[str, fx.Node],
    ) -> None:
        if not pattern.inputs:
            return
        if len(call.inputs) < len(pattern.inputs):
            raise _Miss
        for order in _orders(pattern):
            tried = (dict(nodes), dict(calls), dict(stand_in))
            try:
                for source, node in zip(order, call.inputs, strict=False):
                    if source != ANY:
                        self._node(source, node, *tried)
            except _Miss:
                continue
            nodes |= tried[0]
            calls |= tried[1]
            stand_in |= tried[2]
            return
        raise _Miss

    def _conditions(self, name: str, call: Call, *, inner: bool) -> None:
        pattern = self.rule.match[name]
        for attribute, wanted in pattern.where.items():
            value = call.arguments.get(attribute)
            if not _holds(value, wanted):
                raise _Miss(f"{call.node.name} has {attribute} {value!r}, the rule wants {wanted!r}")
        for predicate in pattern.require:
            verdict = self.predicates[predicate](self.reader, call)
            if verdict is not True:
                raise _Miss(verdict or "")
        wanted_users = _wanted_users(pattern, inner=inner and self.rule.refuse is None)
        if wanted_users is not None and len(call.node.users) != wanted_users:
            raise _Miss(f"{call.node.name} has {len(call.node.users)} users, the rule wants {wanted_users}")


def _wanted_users(pattern: NodePattern, *, inner: bool) -> int | None:
    if pattern.users is None:
        return 1 if inner else None
    return None if pattern.users == ANY_NUMBER else pattern.users


def _has_form(pattern: NodePattern, node: fx.Node) -> bool:
    return pattern.form is None or (pattern.form == "module") == (node.op == "call_module")


def _is_of_parameters(call: Call) -> bool:
    """Whether the call reads parameters and nothing else: what it gives is constant, and no rule's business."""
    return bool(call.node.all_input_nodes) and not call.inputs


def _orders(pattern: NodePattern) -> Iterator[tuple[str, ...]]:
    if pattern.commutative:
        return itertools.permutations(pattern.inputs)
    return iter([pattern.inputs])


def match(rule: Rule, node: fx.Node, reader: GraphReader, predicates: Mapping[str, Predicate]) -> Hit | NearMiss | None:
    """Match a rule at a node.

    An inner node of the pattern must have one user, unless the pattern says otherwise: a value that is used
    elsewhere cannot be rewritten away.

    Returns:
        A hit, a near miss with its reason (the shape was there, a condition failed), or None.
    """
    try:
        return _Matcher(rule, reader, predicates).match(node)
    except _Miss as miss:
        return NearMiss(rule.name, node.name, miss.reason) if miss.reason else None
