"""Biases and shifts that fade while a network is trained: in place, so that they are always what they seem.

Faded constants are multiplied, after every step, with the ratio of what should be left after it to what should be left
before it. Training may go on moving them; at the end of the course the ratio is 0, and they stay exact zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bcos_fx.network import BcosNetwork
from bcos_fx.training.alignment import check_named, first_named
from bcos_fx.training.schedulable_layers import constants_of, layers_of_phase
from bcos_fx.training.schedule import BiasDecay


class Fading:
    """Holds the constants of some networks of one architecture to a schedule.

    Args:
        networks: converted networks, equal in structure; their constants are changed.
        fades: the first whose pattern fits a layer decides; a layer that none names keeps its constants.

    Raises:
        UsageError: a pattern names no layer with a constant.
    """

    def __init__(self, networks: Sequence[BcosNetwork], fades: Sequence[BiasDecay]) -> None:
        paths = layers_of_phase(networks[0], "bias") if fades else []
        self._networks = networks
        self._fades = {path: fade for path in paths if (fade := first_named(fades, path, networks[0])) is not None}
        check_named(fades, paths, list(self._fades.values()), "layer with a bias")

    @property
    def paths(self) -> list[str]:
        """The layers whose constants change."""
        return list(self._fades)

    def left(self, done: float) -> dict[str, float]:
        """Return path -> the share in [0, 1] of each constant that is left at a share of training, decay aside."""
        return {path: fade.left(done) for path, fade in self._fades.items()}

    @torch.no_grad()
    def begin(self) -> None:
        """Zero what is gone from the very beginning."""
        for path, fade in self._fades.items():
            if fade.left(0.0) == 0:
                self._multiply(path, 0.0)

    @torch.no_grad()
    def after_step(self, before: float, after: float, lr: float) -> None:
        """Fade by one step, from a share of training to a later one, at a learning rate."""
        for path, fade in self._fades.items():
            # A ratio of what is left, and not what is left itself: training moves the constants between two steps.
            factor = fade.factor(before, after, lr)
            if factor != 1:
                self._multiply(path, factor)

    def _multiply(self, path: str, factor: float) -> None:
        for network in self._networks:
            for constant in constants_of(network.get_submodule(path)):
                if factor:
                    constant.mul_(factor)
                else:  # whatever it was, NaN too
                    constant.zero_()
