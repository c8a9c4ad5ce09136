"""Which rule broke the network: the rewrites are done again, one by one, with a check after each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from bcos_fx.nn import InputEncoding
from bcos_fx.proofs.divergence import first_divergence
from bcos_fx.rewriting.passes import Engine
from bcos_fx.rewriting.rewrite import Step
from bcos_fx.rewriting.rule import PRESERVING_PHASES, Rule


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


class _Found(Exception):
    def __init__(self, blame: Blame) -> None:
        self.blame = blame
        super().__init__(blame)


class _Check:
    """Compares the graph's output after each application with the output as traced."""

    def __init__(self, traced: fx.GraphModule, original: tuple[Tensor, ...], encoded: tuple[Tensor, ...], bound: float):
        self.traced, self.original, self.encoded, self.bound = traced, original, encoded, bound
        with torch.no_grad():
            self.expected = traced(*original)

    def __call__(self, rule: Rule, step: Step, graph_module: fx.GraphModule) -> None:
        inputs = self.encoded if is_encoded(graph_module) else self.original
        error = self._error(graph_module, inputs)
        if error <= self.bound:
            return
        divergence = first_divergence(self.traced, graph_module, self.original, inputs, tolerance=self.bound)
        source = next((n.meta.get("source") for n in graph_module.graph.nodes if n.name == step.node), None)
        raise _Found(Blame(rule.name, rule.origin, step.node, divergence.node if divergence else None, source, error))

    def _error(self, graph_module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> float:
        try:
            with torch.no_grad():
                found = graph_module(*inputs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return float("inf")
        if found.shape != self.expected.shape or not bool(torch.isfinite(found).all()):
            return float("inf")
        return float((found - self.expected).abs().max() / self.expected.abs().max().clamp_min(1e-300))


def is_encoded(graph_module: fx.GraphModule) -> bool:
    """Say whether the graph already takes images in [0, 1] and normalises them itself."""
    return any(isinstance(module, InputEncoding) for module in graph_module.modules())


def find_culprit(
    retrace: Callable[[], fx.GraphModule],
    engine: Engine,
    inputs: tuple[Tensor, ...],
    transform: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
    *,
    tolerance: float = 1e-9,
) -> Blame | None:
    """Run the preserving phases again, in float64, with a check after each application of a rule.

    Args:
        retrace: gives a freshly traced graph module each time.
        engine: the engine that broke it.
        inputs: what the converted network takes.
        transform: turns them into what the original takes.
        tolerance: largest error of the output relative to its scale.

    Returns:
        The first rewrite that moves the output, or None when none does.
    """
    rewritten, traced = _double(retrace()), _double(retrace())
    encoded = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    check = _Check(traced, transform(encoded), encoded, tolerance)
    try:
        dataclasses.replace(engine, after_step=check, after_rule=None, progress=None).run(rewritten, PRESERVING_PHASES)
    except _Found as found:
        return found.blame
    return None


def _double(graph_module: fx.GraphModule) -> fx.GraphModule:
    return graph_module.double().eval()
