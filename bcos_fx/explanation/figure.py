"""Figures of explanations: the input, W(x) in colour, signed contributions, and the highest classes."""

from __future__ import annotations

import importlib.util
import textwrap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.explanation.colour import photograph, pictures, signed, to_image
from bcos_fx.explanation.result import Explanation
from bcos_fx.explanation.saving import MOST_ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TARGETS, _CELL = 5, 2.6
_LABEL = 26
_FOR, _AGAINST, _OWN, _CONSTANT = "#c2212a", "#2154ad", "#4c4c4c", "#b8b8b8"
_NO_COLOURS = "W(x) has no colour here (no mean and std, or nothing encoded): signed contributions"


def require_matplotlib() -> None:
    """Check that figures can be drawn, before anything is computed for them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "plot", "drawing an explanation")


def figure(explanation: Explanation, *, top: int = 5) -> Figure:
    """Draw an explanation, a row for each sample, at most 8.

    Args:
        explanation: of images; of sequences or features bars are drawn.
        top: how many of the highest classes are shown as bars, at least 1.

    Returns:
        A figure of its own, unknown to pyplot: show it in a notebook, or call its ``savefig``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: ``top`` is below 1.
    """
    require_matplotlib()
    if top < 1:
        raise UsageError(f"top is {top!r}", hint="give a whole number of at least 1")
    from matplotlib.figure import Figure

    rows = min(len(explanation), MOST_ROWS)
    columns = _columns(explanation)
    with_bars = explanation.scores is not None
    widths = [1.0] * columns + [1.7] * with_bars
    drawn = Figure(figsize=(_CELL * sum(widths), (_CELL + 0.55) * rows + 0.5), layout="constrained")
    axes = drawn.subplots(rows, len(widths), squeeze=False, width_ratios=widths)
    shown = explanation[:rows]
    cells = pictures(shown) if shown.encoded.dim() == 4 else None
    for row in range(rows):
        _draw_row(list(axes[row]), shown[row], None if cells is None else _of_row(cells, shown, row), top)
    _caption(drawn, explanation, rows)
    return drawn


def _columns(explanation: Explanation) -> int:
    """Panels of a row: the input, its coloured explanation and contributions; or the input and each target's map."""
    if explanation.encoded.dim() != 4:
        return 1
    if explanation.several:
        return 1 + min(explanation.output.shape[1], _TARGETS)
    return 3 if explanation.colours else 2


def _of_row(cells: Tensor, explanation: Explanation, row: int) -> Tensor:
    each = len(cells) // len(explanation)
    return cells[row * each : (row + 1) * each]


def _draw_row(axes: list[Axes], sample: Explanation, cells: Tensor | None, top: int) -> None:
    if cells is None:
        _draw_bars_of_places(axes[0], sample)
    else:
        _draw_pictures(axes, sample, cells)
    if sample.scores is not None:
        _draw_scores(axes[-1], sample, top)


def _draw_pictures(axes: list[Axes], sample: Explanation, cells: Tensor) -> None:
    image = photograph(sample, 0)
    _panel(axes[0], image if image is not None else to_image(cells[0]), "input")
    if sample.several:
        for place, cell in enumerate(cells[:_TARGETS]):
            _panel(axes[1 + place], to_image(cell), sample.target_name(place), f"{sample.output[0, place]:.3g}")
        return
    if sample.colours:
        _panel(axes[1], to_image(cells[0]), f"W(x) for {sample.target_name(0)}")
    contributions = sample.contributions.float().cpu()
    place = 2 if sample.colours else 1
    _panel(axes[place], to_image(signed(contributions)[0]), "contributions")
    _scale(axes[place], contributions)


def _panel(ax: Axes, image: Any, title: str, below: str = "") -> None:
    ax.imshow(image, interpolation="nearest")
    ax.set_title(_short(title), fontsize=9, parse_math=False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(below, fontsize=8)
    for spine in ax.spines.values():
        spine.set_color("#d0d0d0")


def _scale(ax: Axes, contributions: Tensor) -> None:
    """A colour bar for a signed map: what full colour stands for."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    full = float(torch.quantile(contributions.abs().flatten().double(), 0.995))
    colours = LinearSegmentedColormap.from_list("signed", [_AGAINST, "white", _FOR])
    mappable = ScalarMappable(Normalize(-full, full), colours)
    figure: Any = ax.figure
    bar = figure.colorbar(mappable, ax=ax, fraction=0.046, pad=0.03, ticks=[-full, 0, full])
    bar.ax.set_yticklabels([f"{-full:.1g}", "0", f"{full:.1g}"], fontsize=7)


def _draw_scores(ax: Axes, sample: Explanation, top: int) -> None:
    """Bars of the highest outputs; the explained one split into what the input and the constants contribute."""
    scores = sample.scores
    if scores is None:
        return
    values, classes = scores[0].float().cpu().topk(min(top, scores.shape[1]))
    explained = [] if sample.target is None else sample.target.flatten().tolist()
    names = [_short(sample.name(int(index))) for index in classes]
    colours = [_OWN if int(index) in explained else _CONSTANT for index in classes]
    places = range(len(names))
    ax.barh(places, values.tolist(), color=colours, height=0.62)
    ax.set_yticks(places, names, fontsize=8, parse_math=False)
    ax.invert_yaxis()
    ax.axvline(0, color="#808080", linewidth=0.8)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_title("highest outputs (dark: explained)", fontsize=9)
    ax.set_xlabel(_sum(sample), fontsize=7.5, parse_math=False)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _sum(sample: Explanation) -> str:
    """The sum that makes up the first explained output, in a line."""
    output, constants, residual = (
        float(values.flatten()[0]) for values in (sample.output, sample.constants.total(), sample.residual)
    )
    own = output - constants - residual
    whole = abs(own) + abs(constants)
    share = f" ({abs(constants) / whole:.0%})" if whole else ""
    text = f"{_short(sample.target_name(0))} {output:.4g} = {own:.4g} input {constants:+.4g} constants{share}"
    return text + (f"\nresidual {residual:+.1e}" if sample.complete else f"\nINCOMPLETE: {residual:+.3g} unexplained")


def _draw_bars_of_places(ax: Axes, sample: Explanation) -> None:
    contributions = sample.contributions[0]
    values = (contributions[0] if sample.several else contributions).flatten().float().cpu()
    colours = [_FOR if value > 0 else _AGAINST for value in values.tolist()]
    ax.bar(range(len(values)), values.tolist(), color=colours)
    ax.axhline(0, color="#808080", linewidth=0.8)
    ax.set_title(f"contributions to {_short(sample.target_name(0))}", fontsize=9, parse_math=False)
    ax.set_xlabel("position" if sample.encoded.dim() == 3 else "feature", fontsize=8)
    ax.tick_params(labelsize=7)


def _short(text: str) -> str:
    return text if len(text) <= _LABEL else text[: _LABEL - 1].rstrip() + "…"


def _caption(drawn: Figure, explanation: Explanation, rows: int) -> None:
    said = list(explanation.notes)
    if explanation.encoded.dim() == 4 and not explanation.colours:
        said.append(_NO_COLOURS)
    if rows < len(explanation):
        said.append(f"{rows} of {len(explanation)} samples")
    if not explanation.complete:
        said.insert(0, "INCOMPLETE: contributions do not add up to the output")
    if said:
        colour = _OWN if explanation.complete else _FOR
        drawn.supxlabel(textwrap.fill(". ".join(said), 110), fontsize=8, color=colour, parse_math=False)
