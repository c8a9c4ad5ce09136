"""Plots of evaluations: boxes of scores per method, curves with bands, and the figures that they are drawn into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from bcos_fx.escaping import amount
from bcos_fx.lazy import library

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bcos_fx.evaluation import selection

_BOX, _MIDDLE, _CHANCE = "#c9d7ee", "#2154ad", "#8a8a8a"


class Scores(Protocol):
    """What a method scored in the Grid Pointing Game; see :class:`bcos_fx.evaluation.localisation.Localisation`."""

    @property
    def method(self) -> str:
        """Its name."""

    @property
    def protocol(self) -> selection.Protocol:
        """How the game was played."""

    @property
    def grids(self) -> Sequence[selection.Grid]:
        """The images and labels of each grid."""

    @property
    def per_grid(self) -> npt.NDArray[np.float64]:
        """(grids, n) scores in [0, 1]."""


def boxes(results: Sequence[Scores]) -> Figure:
    """Draw the scores of methods beside each other, as the papers' figures of localization do.

    A box spans the quartiles of all targets' scores, whiskers reach 1.5 times as far, the diamond is the mean, and the
    dashed line is what a uniform map scores.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    drawn, ax = new_axes(width=2.2 + 0.9 * len(results))
    scores = [result.per_grid.ravel() for result in results]
    most = max(len(result.grids) for result in results)
    parts = ax.boxplot(
        scores,
        tick_labels=[_label(result, most) for result in results],
        patch_artist=True,
        showmeans=True,
        widths=0.6,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "#b0b0b0"},
        medianprops={"color": _MIDDLE, "linewidth": 1.6},
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": _MIDDLE, "markeredgecolor": "white"},
    )
    for box in parts["boxes"]:
        box.set(facecolor=_BOX, edgecolor=_MIDDLE, linewidth=0.8)
    protocol = results[0].protocol
    ax.axhline(1 / protocol.cells, color=_CHANCE, linestyle="--", linewidth=1)
    ax.text(1.005, 1 / protocol.cells, "uniform", color=_CHANCE, fontsize=7, va="center",
            transform=ax.get_yaxis_transform())  # fmt: skip
    ax.set_ylim(-0.03, 1.03)
    ax.set_ylabel("localization score")
    ax.set_title(f"GridPG {protocol.side}x{protocol.side}, {protocol.name}, {most} grids", fontsize=9)
    if len(results) > 3:
        ax.tick_params(axis="x", labelrotation=30)
        for tick in ax.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    return drawn


def _label(result: Scores, most: int) -> str:
    grids = len(result.grids)
    return result.method if grids == most else f"{result.method} ({amount(grids, 'grid')})"


def curves(
    found: Mapping[str, npt.NDArray[np.float64]], places: npt.NDArray[np.float64], *, xlabel: str, ylabel: str
) -> Figure:
    """Draw a curve for each method, (images, points): the mean over images, with its standard error as a band.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    bands = []
    for name, values in found.items():
        mean = values.mean(0)
        spread = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros_like(mean)
        bands.append((name, places, mean, mean - spread, mean + spread))
    return curves_with_bands(bands, xlabel=xlabel, ylabel=ylabel)


def curves_with_bands(bands: Sequence[tuple[str, Any, Any, Any, Any]], *, xlabel: str, ylabel: str) -> Figure:
    """Draw curves (label, places, values, lower ends, upper ends), the last four (points,) each."""
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
