"""Figures of explanations: a row for each sample and target."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING

from bcos_fx.errors import MissingExtraError, UsageError, check_count
from bcos_fx.escaping import shown_in_a_line
from bcos_fx.explanation.render.panels import (
    FOR,
    OWN,
    draw_contributions,
    draw_input,
    draw_places,
    draw_scores,
    draw_signal,
    draw_table,
    draw_weights,
)
from bcos_fx.explanation.render.style import Style
from bcos_fx.explanation.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_ROWS = 8
"""Rows that a figure shows."""

DrawnPanel = tuple[float, Callable[["Axes", Result, Style], None]]
_NO_COLORS = "W(x) has no color here (no mean and std, or nothing encoded): signed contributions"


def require_matplotlib() -> None:
    """Check that figures can be drawn, before anything is computed for them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "drawing an explanation")


def figure(explanation: Result, *, top: int = 5, style: Style | None = None) -> Figure:
    """Draw an explanation, a row for each sample and each of its targets, at most 8.

    Args:
        explanation: of images, clips and volumes the input and its maps are drawn; of sequences bars or a line; of
            tables named bars.
        top: how many of the highest classes are shown as bars, at least 1.
        style: which panels, in which colors and sizes; None: all, as usual.

    Returns:
        A figure outside of pyplot: a notebook shows it by itself, and ``savefig`` writes the same bytes each time.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: ``top`` is below 1, or the explanation has no such panel.
    """
    require_matplotlib()
    check_count("top", top)
    from bcos_fx.drawing import Drawing

    chosen = style or Style()
    panels = _chosen(_panels(explanation, top), chosen)
    height = _height(explanation, chosen)
    targets = explanation.output.shape[1] if explanation.several else 1
    pairs = [(sample, place) for sample in range(len(explanation)) for place in range(targets)]
    shown = pairs[:MOST_ROWS]
    widths = [width for width, _ in panels]
    size = (chosen.size * sum(widths), chosen.size * height * len(shown) + 0.5)
    drawn = Drawing(figsize=size, layout="constrained")
    axes = drawn.subplots(len(shown), len(widths), squeeze=False, width_ratios=widths)
    for row, (sample, place) in enumerate(shown):
        for ax, (_, draw) in zip(axes[row], panels, strict=True):
            draw(ax, explanation[sample].of_target(place), chosen)
    _caption(drawn, explanation, len(shown), len(pairs), round(110 * sum(widths) / 4.7))
    _set_fonts(drawn, chosen)
    return drawn


def _panels(explanation: Result, top: int) -> dict[str, DrawnPanel]:
    """Name of each panel that a row can have -> its width, and what draws it."""

    def outputs(ax: Axes, sample: Result, style: Style) -> None:
        draw_scores(ax, sample, top)

    panels: dict[str, DrawnPanel] = {}
    if len(explanation.axes) in (2, 3):
        width = 3.0 if len(explanation.axes) == 3 else 1.0
        panels["input"] = (width, draw_input)
        if explanation.colors:
            panels["weights"] = (width, draw_weights)
        panels["contributions"] = (width, draw_contributions)
    elif _has_signal(explanation):
        panels |= {"input": (1.7, draw_signal), "contributions": (1.7, draw_places)}
    else:
        panels["contributions"] = (1.9, draw_table if explanation.axes == ("feature",) else draw_places)
    return panels | {"outputs": (1.7, outputs)}


def _chosen(panels: dict[str, DrawnPanel], style: Style) -> list[DrawnPanel]:
    for name in style.panels or ():
        if name not in panels:
            why = " (W(x) has no color here)" if name == "weights" else ""
            raise UsageError(f"this explanation has no panel {name!r}{why}", hint=f"it has {', '.join(panels)}")
    return [panels[name] for name in style.panels or panels]


def _height(explanation: Result, style: Style) -> float:
    """Return how high a row is, in widths of a panel: beside bars as they need, of pictures alone as these are."""
    if len(explanation.axes) != 2 or style.panels is None or "outputs" in style.panels:
        return 1.21
    # Without bars beside them pictures decide the height, up to three times the width of a panel.
    height, width = explanation.contributions.shape[-2:]
    return min(3.0, height / width) + 0.2


def _set_fonts(drawn: Figure, style: Style) -> None:
    """Set the font and the sizes of all texts, in place."""
    from matplotlib.text import Text

    for text in drawn.findobj(Text):
        if style.font is not None:
            text.set_fontfamily(style.font)
        if style.font_size != Style.font_size:
            text.set_fontsize(float(text.get_fontsize()) * style.font_size / Style.font_size)


def _has_signal(explanation: Result) -> bool:
    """Return whether the input is a line along its one dimension: not a table's features, nor tokens' embeddings."""
    same = explanation.inputs.shape == explanation.encoded.shape
    return same and explanation.axes == ("position",) and explanation.tokens is None


def _caption(drawn: Figure, explanation: Result, rows: int, pairs: int, width: int) -> None:
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
            textwrap.fill(shown_in_a_line(". ".join(remarks)), width), fontsize=8, color=color, parse_math=False
        )
