"""Results of measures: one number per sample, their mean, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bcos_fx.display import Displayed
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.evaluation.plots import new_axes
from bcos_fx.methods.method import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RESAMPLES, _AT_ONCE = 10_000, 500


def bootstrap(values: npt.NDArray[np.float64], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: (S, ...): whole samples are drawn again, for the numbers of one depend on each other; NaN where nothing
            could be measured.
        level: the share of resampled means that lies inside, in (0, 1).
        seed: of the draws: the same values give the same interval.

    Returns:
        Its lower and upper end.
    """
    # Sums and counts are all that a mean needs, so a resample adds up one number per sample.
    rows = values.reshape(len(values), -1)
    sums, counts = np.nansum(rows, 1), (~np.isnan(rows)).sum(1)
    draw = np.random.default_rng(seed)
    means = []
    # In portions: 10,000 resamples of many images at once would take gigabytes.
    for _ in range(_RESAMPLES // _AT_ONCE):
        drawn = draw.integers(len(rows), size=(_AT_ONCE, len(rows)))
        # A resample in which nothing could be measured has no mean, and is left out.
        total, count = sums[drawn].sum(1), counts[drawn].sum(1)
        means.append(total[count > 0] / count[count > 0])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(values: Tensor, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the :func:`~bcos_fx.evaluation.measured.bootstrap` interval of a mean.

    Raises:
        UsageError: there are no values, or the level is not in (0, 1).
    """
    if not values.numel() or not 0 < level < 1:
        raise UsageError(
            f"no interval of level {level!r} for {amount(len(values), 'sample')}", hint="level=0.95, of some samples"
        )
    return bootstrap(values.detach().double().cpu().numpy(), level=level, seed=seed)


@dataclass(frozen=True, eq=False, repr=False)
class Measured(Displayed):
    """One measure of one method.

    Attributes:
        measure: its name.
        method: the method's name.
        values: (N, K), per image and class; NaN where nothing could be measured.
        settings: what measure and method were set to.
    """

    measure: str
    method: str
    values: Tensor
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """The mean over images and classes."""
        return float(self.values.double().nanmean())

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % bootstrap interval of the mean; images are drawn again, with all their classes."""
        return bootstrap_interval(self.values)

    def plot(self) -> Figure:
        """Draw the values as a box; see :func:`plot_boxes` for several methods beside each other."""
        return plot_boxes([self])

    def brief(self) -> list[str]:
        """Return the mean and its interval in a line."""
        low, high = self.interval
        return [f"{self.measure} of {self.method}: {self.mean:.4g} (95 % in {low:.4g} to {high:.4g})"]


def plot_boxes(results: Sequence[Measured]) -> Figure:
    """Draw one measure of several methods as boxes: quartiles, whiskers of 1.5 of their distance, the mean as a dot.

    Raises:
        UsageError: there are no results, or they are of several measures.
        MissingExtraError: matplotlib is not installed.
    """
    measures = {result.measure for result in results}
    if len(measures) != 1:
        raise UsageError(f"{len(measures)} measures were given", hint="draw one measure of one or several methods")
    figure, axes = new_axes(width=1.6 + 1.1 * len(results))
    # Quartiles of values with NaN would be NaN.
    values = [result.values[~result.values.isnan()].double().cpu().numpy() for result in results]
    axes.boxplot(values, showmeans=True, meanprops={"marker": "o", "markersize": 4}, widths=0.5)
    axes.set_xticks(
        range(1, len(results) + 1), [result.method for result in results], fontsize=8, rotation=20, ha="right"
    )
    axes.set_ylabel(measures.pop())
    return figure


def maps_of(method: Method, images: Tensor, targets: Tensor) -> Tensor:
    """Return a method's maps (N, K, H, W) of images (N, C, H, W) and targets (N, K), detached.

    Raises:
        UsageError: it gives something else, or NaN or infinity.
    """
    maps: object = method.maps(images, targets)
    expected = (*targets.shape, *images.shape[2:])
    if not isinstance(maps, Tensor) or tuple(maps.shape) != expected:
        given = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
        raise UsageError(f"the method gives maps {given}, not {expected}", hint="see bcos_fx.methods.method.Method")
    if not bool(torch.isfinite(maps).all()):
        raise UsageError("the method gives NaN or infinity", hint="compare the network's outputs on these images first")
    return maps.detach()
