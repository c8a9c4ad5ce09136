"""The graph before and after, side by side, as a picture: boxes in the order they run, lanes for values that skip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.files import check_target, replacing
from bcos_fx.lazy import check_installed
from bcos_fx.report.layout import Bus, Change, Column, Layout, lay_out
from bcos_fx.report.model import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
# All lengths are in inches, except font sizes, which are in points as everywhere.
_ROW, _BOX, _LANE, _GAP, _MARGIN = 0.2, 0.152, 0.075, 0.3, 0.3
_HEAD, _TITLE = 0.95, 0.32
_FONT = 6.5
_MONO = "DejaVu Sans Mono"
_CHARACTER = 0.6022 * _FONT / 72  # advance of that font, which matplotlib carries
_MAIN = 0.22  # from a box's left edge to the line that links it with the next
_PIXELS_PER_INCH, _MOST_PIXELS = 140, 16_000
_INK, _FAINT, _LINE = "#1b1f24", "#6b7280", "#4b5563"
_FILL: Mapping[Change, tuple[str, str]] = {
    Change.UNCHANGED: ("#f6f7f9", "#aab1bb"),
    Change.REWRITTEN: ("#cfe4fb", "#2b6cb0"),
    Change.CHANGED: ("#ffdfb8", "#c2650c"),
    Change.NEW: ("#cdeed3", "#2f8543"),
    Change.REMOVED: ("#fad1d1", "#b83232"),
}
_LANES = ("#3a6ea5", "#b5651d", "#4d8c57", "#8a5a9e", "#a8484f", "#5f7d8c")


def draw(report: Findings, path: Path) -> Path:
    """Draw the graph before and after, and return the path.

    Args:
        report: of a conversion or a dry run.
        path: .png, .svg or .pdf; replaced if it is there, and never half written. The same report gives the same
            bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: another suffix, or the file cannot be written.
    """
    check_drawable(path)
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with mpl.rc_context():
        mpl.rcdefaults()  # a user's own matplotlibrc stays out of the picture
        # Hinting would round each letter's width up to whole pixels, and text would outgrow its box.
        mpl.rcParams["text.hinting"] = "none"
        figure = _figure(report)
        FigureCanvasAgg(figure)
        kind = path.suffix.lower().removeprefix(".")
        dpi = min(_PIXELS_PER_INCH, _MOST_PIXELS / max(figure.get_size_inches()))
        with replacing(path, "the picture") as stream:
            figure.savefig(stream, format=kind, dpi=dpi)
    return path


def check_drawable(path: Path) -> None:
    """Check, before any work is done, that a picture can be written to ``path``.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: the suffix is not .png, .svg or .pdf, or the path cannot be written to.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} is not a picture that can be drawn", hint=f"end the name in {', '.join(SUFFIXES)}")
    check_target(path)
    check_installed("matplotlib", "plot", "drawing a graph")


@dataclass(frozen=True)
class _Sizes:
    """Widths of the parts of one panel."""

    layout: Layout

    def boxes(self, column: Column) -> float:
        return max((len(box.label) for box in column.boxes), default=0) * _CHARACTER + 0.16

    def lanes(self, column: Column) -> float:
        return _LANE * (column.lanes + 1)

    @property
    def before(self) -> float:
        """From a panel's left edge to its left boxes."""
        return self.lanes(self.layout.before)

    @property
    def after(self) -> float:
        """From a panel's left edge to its right boxes."""
        return self.before + self.boxes(self.layout.before) + _GAP + self.lanes(self.layout.after)

    @property
    def remarks(self) -> float:
        """From a panel's left edge to the rules."""
        return self.after + self.boxes(self.layout.after) + 0.1

    @property
    def panel(self) -> float:
        longest = max((len(text) for text in self.layout.remarks.values()), default=0)
        return self.remarks + longest * _CHARACTER + _GAP

    @property
    def height(self) -> float:
        return max(stop - start for start, stop in self.layout.panels) * _ROW


def _figure(report: Findings) -> Figure:
    from bcos_fx.drawing import Drawing

    layout = lay_out(report)
    sizes = _Sizes(layout)
    title = _title(report)
    width = max(2 * _MARGIN + sizes.panel * len(layout.panels), 6.5, 2 * _MARGIN + 0.1 * max(map(len, title)))
    height = _HEAD + _TITLE + sizes.height + _MARGIN
    figure = Drawing(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)  # rows count downwards
    axes.set_axis_off()
    _write_head(axes, title, width)
    for index, (start, stop) in enumerate(layout.panels):
        _Panel(axes, layout, sizes, _MARGIN + index * sizes.panel, start, stop).draw()
    return figure


def _title(report: Findings) -> tuple[str, str]:
    share = f"{report.coverage.share:.1%} of linear and convolution parameters are B-cos"
    return (
        f"recipe {report.recipe}",
        f"{share}; {amount(len(report.before), 'node')} as traced, {len(report.nodes)} now",
    )


def _write_head(axes: Axes, title: tuple[str, str], width: float) -> None:
    _text(axes, _MARGIN, 0.28, title[0], size=12, weight="bold")
    _text(axes, _MARGIN, 0.5, title[1], size=8, color=_FAINT)
    x = _MARGIN
    for change in Change:
        _rounded(axes, x, 0.72, 0.2, change)
        _text(axes, x + 0.27, 0.72, change.value, size=_FONT, family=_MONO)
        x += 0.27 + len(change.value) * _CHARACTER + 0.25


class _Panel:
    """One pair of columns, for the rows from ``start`` up to ``stop``."""

    def __init__(self, axes: Axes, layout: Layout, sizes: _Sizes, x: float, start: int, stop: int) -> None:
        self.axes, self.layout, self.sizes, self.x = axes, layout, sizes, x
        self.start, self.stop = start, stop
        self.top = _HEAD + _TITLE

    def draw(self) -> None:
        """Draw both columns and the rules that made the right one."""
        for title, column, x in (
            ("before", self.layout.before, self.x + self.sizes.before),
            ("after", self.layout.after, self.x + self.sizes.after),
        ):
            _text(self.axes, x, _HEAD + 0.12, title, size=9, weight="bold")
            self._column(column, x)
        x = self.x + self.sizes.remarks
        _text(self.axes, x, _HEAD + 0.12, "by rule", size=9, weight="bold")
        for row, text in self.layout.remarks.items():
            if self.start <= row < self.stop:
                _text(self.axes, x, self._y(row), text, size=_FONT, family=_MONO, color=_FAINT)

    def _y(self, row: float) -> float:
        return self.top + (row - self.start + 0.5) * _ROW

    def _inside(self, first: int, last: int) -> tuple[float, float] | None:
        """Clip a span of rows to this panel; a line that continues in another panel is cut at the edge."""
        if last < self.start or first >= self.stop:
            return None
        return max(first, self.start - 0.5), min(last, self.stop - 0.5)

    def _column(self, column: Column, x: float) -> None:
        for first, last in column.links:
            span = self._inside(first, last)
            if span is not None:
                self._line([(x + _MAIN, self._y(span[0])), (x + _MAIN, self._y(span[1]))], _LINE)
        for bus in column.buses:
            self._bus(bus, x)
        width = self.sizes.boxes(column)
        for box in (box for box in column.boxes if self.start <= box.row < self.stop):
            y = self._y(box.row)
            _rounded(self.axes, x, y, width, box.change)
            _text(self.axes, x + 0.08, y, box.label, size=_FONT, family=_MONO)

    def _bus(self, bus: Bus, x: float) -> None:
        span = self._inside(bus.source, max(bus.targets))
        if span is None:
            return
        lane = x - _LANE * (bus.lane + 1)
        color = _LANES[bus.source % len(_LANES)]
        # Out of a box below its middle, into a box above it: a value that arrives never runs into one that leaves.
        out, into = 0.2, -0.2
        top = span[0] + out if span[0] == bus.source else span[0]
        bottom = span[1] + into if span[1] == max(bus.targets) else span[1]
        self._line([(lane, self._y(top)), (lane, self._y(bottom))], color)
        if self.start <= bus.source < self.stop:
            self._line([(lane, self._y(bus.source + out)), (x, self._y(bus.source + out))], color)
        for target in bus.targets:
            if self.start <= target < self.stop:
                self._arrow(lane, x, self._y(target + into), color, tap=target != max(bus.targets))

    def _line(self, points: list[tuple[float, float]], color: str) -> None:
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs, ys, color=color, linewidth=0.8, solid_capstyle="round", zorder=1)

    def _arrow(self, lane: float, x: float, y: float, color: str, *, tap: bool) -> None:
        if tap:  # the dot tells a lane that is tapped from one that is only crossed
            self.axes.plot([lane], [y], marker="o", markersize=1.6, color=color, linewidth=0, zorder=2)
        self._line([(lane, y), (x - 0.02, y)], color)
        self.axes.fill([x, x - 0.045, x - 0.045], [y, y - 0.02, y + 0.02], color=color, linewidth=0, zorder=2)


def _rounded(axes: Axes, x: float, y: float, width: float, change: Change) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, edge = _FILL[change]
    style = "round,pad=0,rounding_size=0.035"
    axes.add_patch(
        FancyBboxPatch(
            (x, y - _BOX / 2), width, _BOX, boxstyle=style, facecolor=fill, edgecolor=edge, linewidth=0.7, zorder=3
        )
    )


def _text(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    color: str = _INK,
    weight: str = "normal",
    family: str = "DejaVu Sans",
) -> None:
    # A name may hold dollar signs; they are not mathematics here.
    axes.text(
        x, y, text, fontsize=size, color=color, fontweight=weight, fontfamily=family,
        verticalalignment="center_baseline", parse_math=False, zorder=4,
    )  # fmt: skip
