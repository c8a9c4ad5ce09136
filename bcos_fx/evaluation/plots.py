"""Plots of evaluations: curves with bands, and the figures that all plots are drawn into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bcos_fx.lazy import library

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Band = tuple[str, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]
"""Label, places, values, lower ends and upper ends of a curve, the last four (points,) each."""


def curves(
    by_method: Mapping[str, npt.NDArray[np.float64]], places: npt.NDArray[np.float64], *, xlabel: str, ylabel: str
) -> Figure:
    """Draw a curve for each method, (images, points): the mean over images, with its standard error as a band."""
    bands = []
    for name, values in by_method.items():
        mean = values.mean(0)
        # The standard error of one curve is not known; ddof=1 would divide by 0.
        spread = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros_like(mean)
        bands.append((name, places, mean, mean - spread, mean + spread))
    return curves_with_bands(bands, xlabel=xlabel, ylabel=ylabel)


def curves_with_bands(bands: Sequence[Band], *, xlabel: str, ylabel: str) -> Figure:
    """Draw curves, each with its band."""
    drawn, ax = new_axes(width=5.2)
    for label, places, middle, low, high in bands:
        (line,) = ax.plot(places, middle, linewidth=1.5, label=label)
        ax.fill_between(places, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend(fontsize=8, frameon=False)
    return drawn


def new_axes(*, width: float = 4.8, height: float = 3.6) -> tuple[Figure, Axes]:
    """Return a figure of its own, unknown to pyplot, and its axes; sizes in inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawing = library("bcos_fx.drawing", "plot", "drawing an evaluation")
    figure: Figure = drawing.Drawing(figsize=(max(width, 2.6), height), layout="constrained")
    axes = figure.subplots()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes
