"""B of the layers of a network while it is trained: set by a schedule, or learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import nn

from bcos_fx.errors import UsageError, nearest
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosLayer
from bcos_fx.nn.families import fits
from bcos_fx.training.schedulable_layers import layers_of_phase
from bcos_fx.training.schedule import BiasDecay, BSchedule

S = TypeVar("S", BSchedule, BiasDecay)


class Alignment(nn.Module):
    """Holds B of some networks of one architecture (the trained one, and its average) to a schedule.

    A learned B is kept here and not in the layers, whose state stays that of the network's file; they only read it.

    Args:
        networks: converted networks, equal in structure; their layers' B is set.
        rises: the first whose pattern fits a layer decides; a layer that none names keeps its B. So does one whose B
            was chosen by a pattern other than ``*`` at conversion, where the rise is that of all layers (``*``).
        tensors: let layers follow a tensor even where B is not learned, so that a compiled step is not compiled again
            for each value.

    Attributes:
        pressures: the tensors that layers follow; those that are learned require a gradient.

    Raises:
        UsageError: a pattern names no layer whose B may change.
    """

    def __init__(self, networks: Sequence[BcosNetwork], rises: Sequence[BSchedule], *, tensors: bool = False) -> None:
        super().__init__()
        paths = layers_of_phase(networks[0], "align") if rises else []
        named = {path: rise for path in paths if (rise := first_named(rises, path, networks[0])) is not None}
        self._rises = {path: r for path, r in named.items() if r.layers != "*" or not was_chosen(path, networks[0])}
        check_named(rises, paths, list(self._rises.values()), "B-cos layer whose B may change")
        self._layers = {path: [cast("BcosLayer", n.get_submodule(path)) for n in networks] for path in self._rises}
        self._first = {path: layers[0].b for path, layers in self._layers.items()}
        self._all = [module for module in networks[0].modules() if isinstance(module, BcosLayer)]
        self.pressures = nn.ParameterDict()
        for path, rise in self._rises.items():
            if rise.learned != "no" or tensors:
                self._follow(path, rise)

    def _follow(self, path: str, rise: BSchedule) -> None:
        key = _key(path, rise)
        if key not in self.pressures:
            device = self._layers[path][0].weight.device
            # float32 whatever the weights are in: steps of a learned B vanish in 16 bits.
            start = torch.tensor(self._first[path], dtype=torch.float32, device=device)
            self.pressures[key] = nn.Parameter(start, requires_grad=rise.learned != "no")
        for layer in self._layers[path]:
            layer.follow(self.pressures[key])

    def learned(self) -> list[nn.Parameter]:
        """Return the parameters that are B."""
        return [parameter for parameter in self.pressures.values() if parameter.requires_grad]

    @torch.no_grad()
    def set(self, done: float) -> None:
        """Give the layers the B of a share ``done`` in [0, 1] of training; a learned B as it stands."""
        for path, rise in self._rises.items():
            key = _key(path, rise)
            if rise.learned != "no":
                b = max(1.0, self.pressures[key].item())
            else:
                b = rise.at(self._first[path], done)
                if key in self.pressures:
                    self.pressures[key].fill_(b)
            for layer in self._layers[path]:
                layer.b = b

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Draw each learned B toward its rise's end, and keep it at 1 or above."""
        for key, rise in {_key(path, rise): rise for path, rise in self._rises.items()}.items():
            if rise.learned != "no":
                parameter = self.pressures[key]
                parameter.add_((rise.to - parameter) * min(1.0, lr * rise.drift)).clamp_(min=1.0)

    def scheduled(self, done: float) -> tuple[float, ...]:
        """Return each scheduled B at a share of training: another value means that B has risen."""
        return tuple(rise.at(self._first[path], done) for path, rise in self._rises.items() if rise.learned == "no")

    def settle(self) -> None:
        """Leave the layers with the B that they have, as a number, and no tensor of it."""
        for layers in self._layers.values():
            for layer in layers:
                layer.follow(None)

    def mean(self) -> float:
        """Return the mean B over all B-cos layers; 1 where there are none."""
        return sum(layer.b for layer in self._all) / len(self._all) if self._all else 1.0


def first_named(schedules: Sequence[S], path: str, network: nn.Module) -> S | None:
    """Return the first schedule whose pattern fits the path or the family of a network's module."""
    layer = network.get_submodule(path)
    return next((schedule for schedule in schedules if fits(schedule.layers, path, layer)), None)


def was_chosen(path: str, network: BcosNetwork) -> bool:
    """Return whether the conversion chose B for a layer by itself (``--b depthwise=1``): no default moves it."""
    b, layer = network.report.options["b"], network.get_submodule(path)
    return isinstance(b, Mapping) and any(pattern != "*" and fits(pattern, path, layer) for pattern in b)


def check_named(schedules: Sequence[S], paths: Sequence[str], used: Sequence[S], what: str) -> None:
    """Check that every schedule decides about a layer.

    Raises:
        UsageError: one does not, and its pattern is not ``*``.
    """
    for schedule in schedules:
        if schedule.layers != "*" and schedule not in used:
            raise UsageError(
                f"the recipe names layers by {schedule.layers!r}, which decides about no {what}",
                hint=nearest(schedule.layers, paths) if paths else "the network has none",
            )


def _key(path: str, rise: BSchedule) -> str:
    name = path if rise.learned != "network" else f"network {rise.layers}"
    return name.replace(".", "/")
