"""Passes: the phases in order, each run until nothing changes.

The checks are handed in as callables: this room rewrites, the room of verification judges.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar

from torch import fx

from bcos_fx.errors import RewriteError
from bcos_fx.rewriting.core.build import Builder
from bcos_fx.rewriting.core.match import Hit, NearMiss, Predicate, match
from bcos_fx.rewriting.core.ops import Vocabulary, vocabulary
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import Recipe
from bcos_fx.rewriting.core.registry import BUILDERS, PREDICATES
from bcos_fx.rewriting.core.rewrite import Rewriter, RuleApplication
from bcos_fx.rewriting.core.rule import PHASES, Rule

MAX_SWEEPS = 50

Returned = TypeVar("Returned")


@dataclass
class PassLog:
    """What the passes did.

    Attributes:
        steps: every application of a rule, in order.
        near_misses: what almost matched in the end, with reasons.
    """

    steps: list[RuleApplication] = field(default_factory=list)
    near_misses: list[NearMiss] = field(default_factory=list)


BEFORE_SWEEP: ContextVar[Callable[[Rule, GraphReader, Mapping[str, Builder], Mapping[str, Predicate]], None] | None] = (
    ContextVar("before_sweep", default=None)
)
"""Called before each sweep of a rule, wherever the passes run, with the graph as the rule finds it."""

AfterStep = Callable[[Rule, RuleApplication, fx.GraphModule], None]
"""Called after each application of a rule, with the graph in a runnable state; may raise to stop the passes."""


Sweeps = Generator[tuple[Rule, list[RuleApplication], Rewriter], None, Returned]


@dataclass(frozen=True)
class Engine:
    """Runs a recipe's rules on a graph module.

    Attributes:
        recipe: rules and options.
        builders: name -> builder; a test may hand in a deliberately wrong one.
        predicates: name -> predicate.
        ops: the vocabulary.
        after_step: called after each application; makes each step cost linear time.
        progress: called with a short text when a phase begins.
    """

    recipe: Recipe
    builders: Mapping[str, Builder] = field(default_factory=lambda: BUILDERS)
    predicates: Mapping[str, Predicate] = field(default_factory=lambda: PREDICATES)
    ops: Vocabulary = field(default_factory=vocabulary)
    after_step: AfterStep | None = None
    progress: Callable[[str], None] | None = None

    def run(self, graph_module: fx.GraphModule, phases: tuple[str, ...] = PHASES[:-1]) -> PassLog:
        """Rewrite a graph module, in place.

        Raises:
            RewriteError: a phase does not settle: two rules undo each other.
        """
        log = PassLog()
        for _ in self._sweeps(graph_module, phases, log):
            pass
        return log

    def sweeps(
        self, graph_module: fx.GraphModule, phases: tuple[str, ...], log: PassLog
    ) -> Iterator[tuple[Rule, list[RuleApplication]]]:
        """Rewrite a graph module, in place, and yield each sweep of a rule that changed something.

        Raises:
            RewriteError: as for :meth:`run`.
        """
        for rule, steps, rewriter in self._sweeps(graph_module, phases, log):
            rewriter.finish()
            yield rule, steps

    def _sweeps(self, graph_module: fx.GraphModule, phases: tuple[str, ...], log: PassLog) -> Sweeps[None]:
        reader = GraphReader(graph_module, self.ops, self.recipe.options)
        rewriter = Rewriter(reader, self.builders)
        for phase in phases:
            rules = self.recipe.active_rules(phase)
            if rules and self.progress is not None:
                self.progress(f"rewriting: {phase}")
            if rules:
                log.near_misses += yield from self._settle(rules, reader, rewriter, log)
            rewriter.finish()

    def _settle(
        self, rules: list[Rule], reader: GraphReader, rewriter: Rewriter, log: PassLog
    ) -> Sweeps[list[NearMiss]]:
        """Sweep until nothing changes; return what nearly matched in the last sweep."""
        for _ in range(MAX_SWEEPS):
            before = len(log.steps)
            missed: list[NearMiss] = []
            for rule in rules:
                steps, misses = self._sweep(rule, reader, rewriter)
                log.steps += steps
                missed += misses
                if steps:
                    yield rule, steps, rewriter
            # Only the last sweep counts: what missed earlier may have matched after another rule's edit.
            if len(log.steps) == before:
                return missed
        raise _unsettled(rules, log.steps[before:])

    def _sweep(
        self, rule: Rule, reader: GraphReader, rewriter: Rewriter
    ) -> tuple[list[RuleApplication], list[NearMiss]]:
        # Once a sweep, not once an edit: analyzing the flow takes linear time, and a sweep would take quadratic time.
        reader.refresh()
        watch = BEFORE_SWEEP.get()
        if watch is not None:
            watch(rule, reader, self.builders, self.predicates)
        missed: list[NearMiss] = []
        steps: list[RuleApplication] = []
        anchor = rule.match[rule.anchor]
        # A list, as the graph changes below; what a rewrite adds is seen by the next sweep.
        for node in list(reader.graph_module.graph.nodes):
            if node in rewriter.erased or not anchor.admits(self.ops.of(node, reader.graph_module), node.target):
                continue
            outcome = match(rule, node, reader, self.predicates)
            if outcome is None or isinstance(outcome, NearMiss):
                missed += [] if outcome is None else [outcome]
            elif rule.refuse is not None:
                missed.append(NearMiss(rule.name, node.name, rule.refuse))
            else:
                self._apply(outcome, rewriter, steps, missed)
        return steps, missed

    def _apply(self, hit: Hit, rewriter: Rewriter, steps: list[RuleApplication], missed: list[NearMiss]) -> None:
        outcome = rewriter.apply(hit)
        if isinstance(outcome, NearMiss):
            missed.append(outcome)
            return
        steps.append(outcome)
        if self.after_step is not None:
            rewriter.finish()
            self.after_step(hit.rule, outcome, rewriter.graph_module)


def _unsettled(rules: list[Rule], steps: list[RuleApplication]) -> RewriteError:
    """Name the rules that still fire, at one node that they keep changing."""
    by_name = {rule.name: rule for rule in rules}
    at = steps[-1].node
    culprits = list(dict.fromkeys(step.rule for step in steps if step.node == at)) or [steps[-1].rule]
    named = " and ".join(f"{name!r} ({by_name[name].origin})" for name in culprits)
    verb = "undo each other" if len(culprits) > 1 else "never stops applying"
    return RewriteError(
        f"the rules do not settle after {MAX_SWEEPS} sweeps: {named} {verb}",
        where=f"node {at}",
        hint="make the match of one of them exclude the result of the other",
    )
