"""What is done where a recipe calibrates, unless the caller gives a function of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from bcos_fx.calibration import Targets, calibrate_, measure_original
from bcos_fx.network import BcosNetwork

CalibrationFunction = Callable[[BcosNetwork, Sequence[Tensor], Mapping[str, float]], object]
"""Called with a network, to be changed in place, with batches of its input images, and with the path of a layer -> the
share in [0, 1] of its constant that the schedule leaves it."""

Calibrations = tuple[CalibrationFunction, CalibrationFunction, Sequence[Tensor]]
"""What is done before the first step and after later ones, and the batches of images to do it on."""


def usual_calibration(reference: nn.Module | None) -> CalibrationFunction:
    """Return :func:`~bcos_fx.calibration.calibrate_` for a network whose B rises while it is trained.

    Args:
        reference: the original network, which is measured once, at the first call. None: norms take their statistics
            again, and outputs are not matched: a trained network should not be pulled back to what it was at B = 1.
    """
    measured: list[Targets] = []

    def calibrate(network: BcosNetwork, batches: Sequence[Tensor], constants: Mapping[str, float]) -> object:
        images = list(batches)
        if not measured:
            alone = Targets("none", images=sum(map(len, images)))
            measured.append(alone if reference is None else measure_original(network, images, reference))
        return calibrate_(network, images, measured[0], constants=constants)

    return calibrate
