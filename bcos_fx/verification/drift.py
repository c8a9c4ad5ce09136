"""How far a rewrite that changes the function moved the output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bcos_fx.errors import RewriteError, TraceError
from bcos_fx.report.model import Drift
from bcos_fx.verification.running import FAILURES


class DriftMeter:
    """Follows a network's output through rewrites that change it.

    Args:
        network: the network as it is now; it runs in eval mode, without gradients, and is not changed.
        choices: of batches, the arguments of one run each, whose outputs are taken together. The first choice that the
            network runs on is used from then on.

    Raises:
        TraceError: it runs on none.
    """

    def __init__(self, network: nn.Module, choices: Sequence[Sequence[tuple[Tensor, ...]]]) -> None:
        for number, self._batches in enumerate(choices, start=1):
            try:
                self._first = self._last = self._run(network)
                break
            except TraceError:
                if number == len(choices):
                    raise

    def _run(self, network: nn.Module) -> Tensor:
        training = network.training
        network.eval()
        try:
            with torch.no_grad():
                return torch.cat([network(*batch).detach().double() for batch in self._batches])
        except FAILURES as error:
            raise TraceError(
                f"the network does not run on other samples than the example, so no drift can be measured: {error}",
                hint="a size of the batch is written into its forward (or export): let it take any number of samples",
            ) from error
        finally:
            network.train(training)

    def step(self, network: nn.Module, rule: str, nodes: int) -> Drift:
        """Return how far the network moved since the last step.

        Raises:
            RewriteError: its answers are not numbers any more, and were before.
        """
        now = self._run(network)
        if not bool(now.isfinite().all()) and bool(self._last.isfinite().all()):
            raise RewriteError(
                f"the network answers with NaN or infinity once rule {rule!r} is applied",
                hint="leave that rule out, and report it as a bug if it is a shipped one",
            )
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
