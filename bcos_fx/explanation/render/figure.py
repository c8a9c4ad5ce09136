"""Figures of explanations: a row for each sample and target."""

from __future__ import annotations

import importlib.util
import textwrap
from typing import TYPE_CHECKING

from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.escaping import shown_in_a_line
from bcos_fx.explanation.render.panels import (
    FOR,
    OWN,
    draw_pictures,
    draw_places,
    draw_scores,
    draw_signal,
    draw_table,
)
from bcos_fx.explanation.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 8
"""Rows that a figure shows."""

_CELL = 2.6
_NO_COLORS = "W(x) has no color here (no mean and std, or nothing encoded): signed contributions"


def require_matplotlib() -> None:
    """Check that figures can be drawn, before anything is computed for them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "drawing an explanation")


def figure(explanation: Result, *, top: int = 5) -> Figure:
    """Draw an explanation, a row for each sample and each of its targets, at most 8.

    Args:
        explanation: of images, clips and volumes the input and its maps are drawn; of sequences bars or a line; of
            tables named bars.
        top: how many of the highest classes are shown as bars, at least 1.

    Returns:
        A figure outside of pyplot: a notebook shows it by itself, and ``savefig`` writes the same bytes each time.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: ``top`` is below 1.
    """
    require_matplotlib()
    if top < 1:
        raise UsageError(f"top is {top!r}", hint="give an integer of at least 1")
    from bcos_fx.drawing import Drawing

    targets = explanation.output.shape[1] if explanation.several else 1
    pairs = [(sample, place) for sample in range(len(explanation)) for place in range(targets)]
    shown = pairs[:MOST_ROWS]
    widths = [*_widths(explanation), 1.7]
    drawn = Drawing(figsize=(_CELL * sum(widths), (_CELL + 0.55) * len(shown) + 0.5), layout="constrained")
    axes = drawn.subplots(len(shown), len(widths), squeeze=False, width_ratios=widths)
    for row, (sample, place) in enumerate(shown):
        _draw_row(list(axes[row]), explanation[sample].of_target(place), top)
    _caption(drawn, explanation, len(shown), len(pairs))
    return drawn


def _widths(explanation: Result) -> list[float]:
    """Widths of the panels of a row, but for its last one."""
    if len(explanation.axes) == 3:
        return [3.0, 3.0]
    if len(explanation.axes) == 2:
        return [1.0] * (3 if explanation.colors else 2)
    return [1.7, 1.7] if _has_signal(explanation) else [1.9]


def _has_signal(explanation: Result) -> bool:
    """Whether the input is a line along its one dimension: not a table's features, nor tokens' embeddings."""
    same = explanation.inputs.shape == explanation.encoded.shape
    return same and explanation.axes == ("position",) and explanation.tokens is None


def _draw_row(axes: list[Axes], sample: Result, top: int) -> None:
    if len(sample.axes) in (2, 3):
        draw_pictures(axes[:-1], sample)
    elif sample.axes == ("feature",):
        draw_table(axes[0], sample)
    else:
        if _has_signal(sample):
            draw_signal(axes[0], sample)
        draw_places(axes[-2], sample)
    draw_scores(axes[-1], sample, top)


def _caption(drawn: Figure, explanation: Result, rows: int, pairs: int) -> None:
    remarks = list(explanation.notes)
    if len(explanation.axes) == 2 and not explanation.colors:
        remarks.append(_NO_COLORS)
    if rows < pairs:
        remarks.append(f"{rows} of {pairs} rows, one for each sample and target")
    if explanation.warning:
        remarks.insert(0, explanation.warning)
    if remarks:
        color = OWN if explanation.complete else FOR
        drawn.supxlabel(
            textwrap.fill(shown_in_a_line(". ".join(remarks)), 110), fontsize=8, color=color, parse_math=False
        )
