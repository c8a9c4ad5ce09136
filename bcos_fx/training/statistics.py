"""Running statistics of norms, which have to be those of the network that training made.

A norm whose momentum is low keeps the statistics of the network that training began with: 150 steps at the 0.01 of
EfficientNet leave a fifth of them, and a network that predicts wrongly in eval mode, whatever its layers have learned.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

# Of the statistics before an epoch, at its end; raising B makes them far too large.
_LEFT = 1e-3


class MomentumFloor:
    """Raises the momentum of norms so that statistics of before an epoch are gone at its end.

    While training runs, the momentum of every norm is at least what leaves a thousandth of them after as many batches
    as an epoch has. A norm whose statistics are frozen (0) or the plain mean of all batches (None) is left as it is.
    """

    def __init__(self, network: nn.Module) -> None:
        norms: list[Any] = [module for module in network.modules() if _follows(module)]
        self._norms = [(norm, float(norm.momentum)) for norm in norms]

    def begin(self, batches: int) -> None:
        """Raise momenta, in place, to fit the number of batches in an epoch."""
        for norm, momentum in self._norms:
            norm.momentum = max(momentum, 1 - _LEFT ** (1 / batches))

    def settle(self) -> None:
        """Put the momenta back that the norms came with."""
        for norm, momentum in self._norms:
            norm.momentum = momentum


def _follows(module: nn.Module) -> bool:
    momentum, variance = getattr(module, "momentum", None), getattr(module, "running_var", None)
    return isinstance(variance, Tensor) and momentum is not None and float(momentum) > 0
