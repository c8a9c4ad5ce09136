"""Why a rule does not match: at every node the first condition that it does not fulfill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import fx

from bcos_fx.rewriting.core.build import Build, Builder, Refused
from bcos_fx.rewriting.core.match import Hit, Predicate, attempt
from bcos_fx.rewriting.core.module_paths import source_of
from bcos_fx.rewriting.core.passes import BEFORE_SWEEP
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rule import Rule


@dataclass(frozen=True)
class Attempt:
    """What became of a rule at one node.

    Attributes:
        node: its name in the graph.
        op: its canonical op, or what it calls where no op is known.
        fits: the rule rewrites it.
        tried: the node is of the op that the rule's last pattern node names.
        condition: the first condition that failed; None if ``fits``.
        source: the line of source code that made the call, where known.
    """

    node: str
    op: str
    fits: bool
    tried: bool
    condition: str | None
    source: str | None


@contextmanager
def watching(name: str) -> Iterator[list[Attempt]]:
    """Collect, while this lasts, what becomes of a rule at every node when its turn first comes.

    Args:
        name: of the rule.

    Yields:
        A list that is filled then; it stays empty where the rule is not active.
    """
    attempts: list[Attempt] = []

    def watch(
        rule: Rule, reader: GraphReader, builders: Mapping[str, Builder], predicates: Mapping[str, Predicate]
    ) -> None:
        if rule.name == name and not attempts:
            attempts.extend(_attempt(rule, n, reader, builders, predicates) for n in reader.graph_module.graph.nodes)

    token = BEFORE_SWEEP.set(watch)
    try:
        yield attempts
    finally:
        BEFORE_SWEEP.reset(token)


def _attempt(
    rule: Rule,
    node: fx.Node,
    reader: GraphReader,
    builders: Mapping[str, Builder],
    predicates: Mapping[str, Predicate],
) -> Attempt:
    op = reader.vocabulary.of(node, reader.graph_module)
    tried = rule.match[rule.anchor].admits(op, node.target)
    outcome = attempt(rule, node, reader, predicates)
    condition = _refusal(outcome, reader, builders) if isinstance(outcome, Hit) else outcome.condition
    source = node.meta.get("source")
    name = op.name if op is not None else str(getattr(node.target, "__name__", node.target))
    return Attempt(node.name, name, condition is None, tried, condition, None if source is None else str(source))


def _refusal(hit: Hit, reader: GraphReader, builders: Mapping[str, Builder]) -> str | None:
    """Return why a rule that matches does nothing all the same: it refuses, or one of its builders does."""
    if hit.rule.refuse is not None:
        return f"it matches, and leaves the node alone: {hit.rule.refuse}"
    for name, entry in hit.rule.replace.items():
        if entry.build is None:
            continue
        call = hit.calls.get(source_of(hit, name, entry))
        try:
            if call is not None:
                builders[entry.build](Build(hit, call, reader))
        except Refused as refusal:
            return f"it matches, and the builder {entry.build!r} refuses: {refusal}"
    return None
