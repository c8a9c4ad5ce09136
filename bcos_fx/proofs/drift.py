"""How far a rewrite that changes the function moved the output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bcos_fx.rewriting.report import Drift


class DriftMeter:
    """Follows a network's output through rewrites that change it.

    Args:
        network: the network as it is now; it runs in eval mode, without gradients, and is not changed.
        inputs: its arguments.
    """

    def __init__(self, network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = inputs
        self._first = self._last = self._run(network)

    def _run(self, network: nn.Module) -> Tensor:
        training = network.training
        network.eval()
        try:
            with torch.no_grad():
                output: Tensor = network(*self._inputs)
                return output.detach().double()
        finally:
            network.train(training)

    def step(self, network: nn.Module, rule: str, nodes: int) -> Drift:
        """Return how far the network moved since the last step."""
        now = self._run(network)
        drift = _drift(self._last, now, rule, nodes)
        self._last = now
        return drift

    def total(self, nodes: int) -> Drift:
        """Return how far the network moved since the beginning."""
        return _drift(self._first, self._last, "all changing rules", nodes)


def _drift(before: Tensor, after: Tensor, rule: str, nodes: int) -> Drift:
    scale = float(before.norm())
    change = float((after - before).norm()) / scale if scale > 0 else float("inf")
    has_classes = before.ndim == 2 and before.shape[1] > 1
    agreement = float((before.argmax(1) == after.argmax(1)).double().mean()) if has_classes else None
    return Drift(rule, nodes, change, agreement)
