"""The panels that a figure of an explanation is put together from."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from bcos_fx.escaping import shown_in_a_line
from bcos_fx.explanation.render.color import background, frames, images, overlaid, planes, portrait, signed, to_image
from bcos_fx.explanation.render.style import Style
from bcos_fx.explanation.render.tokens import contributions
from bcos_fx.explanation.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

FOR, AGAINST, OWN, OTHER = "#c2212a", "#2154ad", "#4c4c4c", "#b8b8b8"
_MOST_PIXELS = (2048, 640)
_LABEL, _LETTERS, _FEATURES, _NAMED_PLACES, _BARS = 26, 32, 12, 32, 64


def draw_input(ax: Axes, sample: Result, style: Style) -> None:
    """Draw the input of one sample as a picture."""
    image, title = portrait(sample, 0)
    _panel(ax, image, "input" if image is None else title, style)


def draw_weights(ax: Axes, sample: Result, style: Style) -> None:
    """Draw W(x) in color, of one sample and target."""
    (picture,) = images(sample, overlay=style.overlay)
    _panel(ax, picture, f"W(x) for {sample.target_name()}", style)


def draw_contributions(ax: Axes, sample: Result, style: Style) -> None:
    """Draw the signed contributions of one sample and target, with their scale."""
    colors = style.colors()
    picture = to_image(signed(planes(sample), colors=colors, opaque=not style.overlay)[0])
    if style.overlay:
        picture = overlaid(picture, background(sample, 0))
    _panel(ax, picture, f"contributions to {sample.target_name()}", style)
    if len(sample.axes) == 3:
        count = sample.contributions.shape[-3]
        ax.set_xlabel(f"{sample.axes[0]} {', '.join(map(str, frames(count)))}", fontsize=8)
    _scale(ax, sample.contributions.float().cpu(), colors)


def _panel(ax: Axes, image: Image.Image | None, title: str, style: Style) -> None:
    if image is not None:
        image.thumbnail(_MOST_PIXELS, Image.Resampling.BOX)  # a panel is smaller, and "nearest" would leave pixels out
        ax.imshow(np.asarray(image), interpolation="nearest", cmap="gray", vmin=0, vmax=255)
    else:
        ax.text(0.5, 0.5, "no picture", ha="center", va="center", fontsize=8, color=OTHER)
    ax.set_title(_wrapped(title, style), fontsize=9, parse_math=False)
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color("#d0d0d0")


def _scale(ax: Axes, values: Tensor, colors: Colormap | None) -> None:
    """Draw a color bar for a signed map, with the value that full color stands for."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    # As signed() has it, so that the scale shows the value of full color; blank maps have a scale too.
    full = float(np.quantile(values.abs().flatten().double().numpy(), 0.995)) or float(values.abs().max()) or 1.0
    colors = colors or LinearSegmentedColormap.from_list("signed", [AGAINST, "white", FOR])
    figure: Any = ax.figure
    mappable = ScalarMappable(Normalize(-full, full), colors)
    bar = figure.colorbar(mappable, ax=ax, fraction=0.046, pad=0.03, ticks=[-full, 0, full])
    bar.ax.set_yticklabels([f"{-full:.1g}", "0", f"{full:.1g}"], fontsize=7)


def draw_places(ax: Axes, sample: Result, style: Style) -> None:
    """Draw contributions along one dimension: bars, or a filled line where there are many."""
    rows = contributions(sample)
    values = sample.contributions[0].flatten().float().cpu()
    if len(values) <= _BARS:
        ax.bar(range(len(values)), values.tolist(), color=[FOR if value > 0 else AGAINST for value in values.tolist()])
    else:
        places = np.arange(len(values))
        for color, part in ((FOR, values.clamp_min(0)), (AGAINST, values.clamp_max(0))):
            ax.fill_between(places, part.numpy(), step="mid", color=color, linewidth=0)
    ax.axhline(0, color="#808080", linewidth=0.8)
    if sample.tokens is not None and len(values) <= _NAMED_PLACES:
        named = [name for name, _ in rows[: len(values)]]
        ax.set_xticks(range(len(named)), [short(name) for name in named], rotation=90, parse_math=False)
    ax.set_title(_wrapped(f"contributions to {sample.target_name()}", style), fontsize=9, parse_math=False)
    ax.set_xlabel(sample.axes[0], fontsize=8)
    ax.tick_params(labelsize=7)


def draw_signal(ax: Axes, sample: Result, style: Style) -> None:
    """Draw the input along its one dimension, a line for each channel, at most 8."""
    given = sample.inputs[0].detach().float().cpu()
    axis = sample.channel_axis
    lines = given.unsqueeze(0) if axis is None else given.movedim(axis - 1, 0)
    # More lines than that are a surface, and no one line is seen.
    for line in lines[:8]:
        ax.plot(line.numpy(), linewidth=0.8)
    more = f" (8 of {len(lines)} channels)" if len(lines) > 8 else ""
    ax.set_title(f"input{more}", fontsize=9)
    ax.set_xlabel(sample.axes[0], fontsize=8)
    ax.tick_params(labelsize=7)


def draw_table(ax: Axes, sample: Result, style: Style) -> None:
    """Draw the features that contribute most as named bars, with their values, and the others as one bar."""
    values = sample.contributions[0].flatten().double().cpu()
    given = sample.encoded[0].flatten().double().cpu()
    names = sample.tokens[0] if sample.tokens is not None else ()
    # Stable, so that equal features stand in their order in every run.
    order = values.abs().argsort(descending=True, stable=True).tolist()
    shown = order if len(order) <= _FEATURES else order[: _FEATURES - 1]
    labels = [short(names[at] if at < len(names) else f"feature {at}", 18) + f" = {given[at]:.3g}" for at in shown]
    bars = [float(values[at]) for at in shown]
    if len(shown) < len(order):
        labels.append(f"{len(order) - len(shown)} others")
        bars.append(float(values[order[len(shown) :]].sum()))
    ax.barh(range(len(bars)), bars, color=[FOR if value > 0 else AGAINST for value in bars], height=0.7)
    ax.set_yticks(range(len(bars)), labels, fontsize=7.5, parse_math=False)
    ax.invert_yaxis()
    ax.axvline(0, color="#808080", linewidth=0.8)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_title(_wrapped(f"contributions to {sample.target_name()}", style), fontsize=9, parse_math=False)


def draw_scores(ax: Axes, sample: Result, top: int) -> None:
    """Draw bars of the highest outputs, and below them the sum that makes up the explained one.

    The longest bar is the highest output, of logits that are all negative too: there the bars do not begin at 0.
    """
    scores = sample.scores
    if scores is None:
        ax.axis("off")
        ax.text(0.5, 0.5, sum_of(sample), ha="center", va="center", fontsize=8, parse_math=False, wrap=True)
        return
    classes = scores[0].float().topk(min(top, scores.shape[1])).indices.tolist()
    explained = [] if sample.target is None else sample.target.flatten().tolist()
    classes += [index for index in explained if index not in classes]
    values = scores[0].float()[classes].tolist()
    colors = [OWN if index in explained else OTHER for index in classes]
    low, high = min(values), max(values)
    # Bars of negative logits would grow as the output falls.
    base = 0.0 if low >= 0 else low - 0.15 * ((high - low) or 1.0)
    ax.barh(range(len(values)), [value - base for value in values], left=base, color=colors, height=0.62)
    for place, value in enumerate(values):
        ax.annotate(f"{value:.4g}", (value, place), (2, 0), textcoords="offset points", va="center", fontsize=6.5)
    ax.set_yticks(range(len(values)), [short(sample.name(index)) for index in classes], fontsize=8, parse_math=False)
    ax.margins(x=0.18)
    ax.set_xlim(left=base)
    ax.invert_yaxis()
    ax.locator_params(axis="x", nbins=5)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_title("highest outputs" + (" (dark: explained)" if explained else ""), fontsize=9)
    ax.set_xlabel(sum_of(sample), fontsize=7.5, parse_math=False)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def sum_of(sample: Result) -> str:
    """Return the sum that makes up the explained output, in two lines."""
    output, constants, residual = (
        float(values.flatten()[0]) for values in (sample.output, sample.constants.total(), sample.residual)
    )
    from_input = output - constants - residual
    whole = abs(from_input) + abs(constants)
    share = f" ({abs(constants) / whole:.0%})" if whole else ""
    text = f"{short(sample.target_name(), 40)}\n{output:.4g} = {from_input:.4g} input {constants:+.4g} constants{share}"
    incomplete = sample.verdict == "incomplete"
    return text + (f"\nINCOMPLETE: {residual:+.3g} unexplained" if incomplete else f"\nresidual {residual:+.1e}")


def _wrapped(text: str, style: Style) -> str:
    """Return a title on two lines at most, as long as a panel is wide."""
    letters = round(_LETTERS * style.size / Style.size * Style.font_size / style.font_size)
    return textwrap.fill(shown_in_a_line(text), max(8, letters), max_lines=2, placeholder="…")


def short(text: str, most: int = _LABEL) -> str:
    """Return a text on one line, escaped as for a terminal, cut where it is longer than there is space for."""
    text = shown_in_a_line(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
