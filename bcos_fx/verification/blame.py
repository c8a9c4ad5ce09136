"""Which rule broke the network: the rewrites are done again, with checks that close in on the first bad one."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from bcos_fx.nn import InputEncoding
from bcos_fx.rewriting.core.passes import Engine
from bcos_fx.rewriting.core.rewrite import RuleApplication
from bcos_fx.rewriting.core.rule import PRESERVING_PHASES, Rule
from bcos_fx.tracing.modules import deep_copy
from bcos_fx.verification.divergence import first_divergence
from bcos_fx.verification.judging import ROUNDINGS
from bcos_fx.verification.samples import round_otherwise
from bcos_fx.verification.sensitivity import nudge_weights_

_DRAWS = 3

_STRIDE = 32
"""Applications between two checks of the first run: of a thousand then some sixty are checked, not all."""


@dataclass(frozen=True)
class Blame:
    """The rewrite that broke the network.

    Attributes:
        rule: name of the rule.
        origin: its file and line.
        node: the node that it rewrote.
        diverges: the first node whose value is another than in the graph as traced, if one stands in both.
        source: where in the user's code the rewritten node was called.
        error: error of the output relative to its scale, or infinite where the network no longer runs.
    """

    rule: str
    origin: str
    node: str
    diverges: str | None
    source: str | None
    error: float


class _CulpritFound(Exception):
    """Ends a run of the engine, which has no other way to stop in the middle of its rules."""

    def __init__(self, blame: Blame, step: int) -> None:
        self.blame, self.step = blame, step
        super().__init__(blame)


class _BlameCheck:
    """Compares the graph's output after some of the applications with the output as traced.

    Args:
        traced: the graph as traced.
        original: its inputs.
        encoded: the inputs of a graph that takes images in [0, 1].
        bound: largest error of the output relative to its scale.
    """

    def __init__(self, traced: fx.GraphModule, original: tuple[Tensor, ...], encoded: tuple[Tensor, ...], bound: float):
        self.traced, self.original, self.encoded, self.bound = traced, original, encoded, bound
        with torch.no_grad():
            self.expected = traced(*original)
            # A chaotic network moves by rounding alone, which no rule is to blame for.
            self.bound = max(bound, ROUNDINGS * self._own_movement())
        self.checked = range(0)
        self._step = 0
        self._last: tuple[Rule, RuleApplication, fx.GraphModule] | None = None

    def _own_movement(self) -> float:
        """Return how far the graph as traced moves by rounding, relative to its scale: no rule is to blame for that."""
        moved = []
        for draw in range(_DRAWS):
            twin, generator = deep_copy(self.traced), torch.Generator().manual_seed(draw)
            nudge_weights_(twin, seed=draw)
            given = [round_otherwise(x, generator) if x.is_floating_point() else x for x in self.original]
            moved.append(_distance(self.expected, twin, given))
        return max(error for error in (0.0, *moved) if math.isfinite(error))

    def begin(self, checked: range) -> None:
        """Count applications from 1 again, and check those whose number is in ``checked``."""
        self.checked, self._step, self._last = checked, 0, None

    def __call__(self, rule: Rule, step: RuleApplication, graph_module: fx.GraphModule) -> None:
        self._step += 1
        self._last = rule, step, graph_module
        if self._step in self.checked:
            self._compare(rule, step, graph_module)

    def finish(self) -> None:
        """Check after the last application, if that was not done."""
        if self._last is not None and self._step not in self.checked:
            self._compare(*self._last)

    def _compare(self, rule: Rule, step: RuleApplication, graph_module: fx.GraphModule) -> None:
        inputs = self.encoded if is_encoded(graph_module) else self.original
        error = _distance(self.expected, graph_module, inputs)
        if error <= self.bound:
            return
        divergence = first_divergence(self.traced, graph_module, self.original, inputs, tolerance=self.bound)
        source = next((n.meta.get("source") for n in graph_module.graph.nodes if n.name == step.node), None)
        blame = Blame(rule.name, rule.origin, step.node, divergence.node if divergence else None, source, error)
        raise _CulpritFound(blame, self._step)


def _distance(expected: Tensor, graph_module: fx.GraphModule, inputs: Sequence[Tensor]) -> float:
    """Return the largest error relative to the expected output's scale; infinite where the graph does not run."""
    try:
        with torch.no_grad():
            output = graph_module(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return math.inf
    if output.shape != expected.shape or not bool(torch.isfinite(output).all()):
        return math.inf
    return float((output - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


def is_encoded(graph_module: fx.GraphModule) -> bool:
    """Return whether the graph already takes images in [0, 1] and normalizes them itself."""
    return any(isinstance(module, InputEncoding) for module in graph_module.modules())


def find_culprit(
    retrace: Callable[[], fx.GraphModule],
    engine: Engine,
    inputs: tuple[Tensor, ...],
    transform: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
    *,
    tolerance: float = 1e-9,
) -> Blame | None:
    """Run the preserving phases again, in float64: once with a check now and then, once more where one failed.

    Args:
        retrace: gives a freshly traced graph module each time.
        engine: the engine that broke it.
        inputs: what the converted network takes.
        transform: turns them into what the original takes.
        tolerance: largest error of the output relative to its scale.

    Returns:
        The first rewrite that moves the output, or None when none does.
    """
    traced = retrace().double().eval()
    encoded = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    check = _BlameCheck(traced, transform(encoded), encoded, tolerance)
    again = dataclasses.replace(engine, after_step=check, progress=None)

    def first_bad(checked: range) -> _CulpritFound | None:
        check.begin(checked)
        try:
            again.run(retrace().double().eval(), PRESERVING_PHASES)
            check.finish()
        except _CulpritFound as culprit:
            return culprit
        return None

    # Rewriting is deterministic, so the same applications come in the same order both times. The first run brackets the
    # bad one between two checks; the second checks every application in that bracket alone.
    rough = first_bad(range(_STRIDE, sys.maxsize, _STRIDE))
    if rough is None:
        return None
    exact = first_bad(range(max(rough.step - _STRIDE, 0) + 1, rough.step + 1))
    return (exact or rough).blame
