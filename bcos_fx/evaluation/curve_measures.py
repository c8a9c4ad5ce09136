"""Measures that give a curve for each image, such as deletion: one image at a time, resumable, for every method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from bcos_fx.display import Displayed
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.evaluation.localisation import slug
from bcos_fx.evaluation.predictions import EvaluationTask
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import Prediction
from bcos_fx.methods.method import Method

Measure = Callable[[EvaluationTask, Sequence[Method], Sequence[Prediction], Runner], "CurveSet"]
Curve = Callable[[Method, nn.Module, Tensor, int], Sequence[float]]
"""From a method, the network that it explains, an image (1, C, H, W) and its class to the values of a curve."""


@dataclass(frozen=True, eq=False, repr=False)
class CurveSet(Displayed):
    """A measure's curves, method -> (images, points), over shares (points,) in [0, 1] of an image that was changed."""

    measure: str
    places: npt.NDArray[np.float64]
    values: Mapping[str, npt.NDArray[np.float64]]
    ylabel: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def brief(self) -> list[str]:
        """Return the mean over the curve of each method."""
        means = [
            f"  {name}: {values.mean():.4f} on {amount(len(values), 'image')}" for name, values in self.values.items()
        ]
        return [f"{self.measure}, mean over the curve:", *means]


def curve_measure(
    name: str,
    curve: Curve,
    places: Sequence[float],
    *,
    ylabel: str,
    settings: Mapping[str, object] | None = None,
    images: int = 250,
) -> Measure:
    """Return a measure that computes a curve for each of the first correctly classified images.

    The network's own map comes first among the methods and is measured on the network; the others explain the original
    and are measured on that.
    """
    given = {"images_at_most": images, **(settings or {})}

    def measure(
        task: EvaluationTask, methods: Sequence[Method], predictions: Sequence[Prediction], runner: Runner
    ) -> CurveSet:
        chosen = [p for p in predictions if p.predicted == p.label][:images]
        if not chosen:
            raise UsageError(f"no image is classified correctly, so {name} has nothing to measure")
        task.source.prepare([p.index for p in chosen])
        values = {}
        for place, method in enumerate(methods):
            network = task.model if place == 0 or task.original is None else task.original

            def of_image(number: int, method: Method = method, network: nn.Module = network) -> list[float]:
                image = task.read([chosen[number].index])
                return [float(value) for value in curve(method, network, image, chosen[number].label)]

            facts = {key: str(value) for key, value in {**given, **method.settings, "method": method.name}.items()}
            header = task.header(name, facts)
            title = f"{name}-{slug(method.name)}"
            rows = runner.run(title, header, [1] * len(chosen), of_image, f"{name} {method.name}")
            values[method.name] = np.array(rows, dtype=np.float64)
        return CurveSet(name, np.array(places, dtype=np.float64), values, ylabel, given | {"images": len(chosen)})

    return measure
