"""A report as a PDF: pages of A4 with text that can be searched and copied, drawn by matplotlib."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from bcos_fx.audit.audit import Audit
from bcos_fx.audit.section import Section
from bcos_fx.escaping import shown_in_a_line
from bcos_fx.explanation.render.figure import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In points: A4, its margins, and what of a letter's size a letter of the font takes at most, on average.
_WIDTH, _HEIGHT, _MARGIN, _LETTER = 595.0, 842.0, 46.0, 0.56
_TEXT, _HEADING, _TITLE, _LINE, _GAP = 8.5, 11.5, 15.0, 1.35, 9.0
_PICTURES, _SIDE, _MOST_LINES = 3, 512, 50
_INK, _QUIET, _ALERT = "#111111", "#555555", "#a8121c"


def pdf(found: Audit) -> bytes:
    """Return a report as a PDF; the same report gives the same bytes.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_pdf import PdfPages

    from bcos_fx.drawing import reproducible

    buffer = io.BytesIO()
    with reproducible():
        pages = _Pages()
        pages.text(found.title, size=_TITLE, weight="bold")
        for section in found.sections:
            pages.section(section)
        dateless: dict[str, Any] = {"CreationDate": None, "ModDate": None, "Title": shown_in_a_line(found.title)}
        with PdfPages(buffer, metadata=dateless) as file:
            for number, figure in enumerate(pages.figures, start=1):
                where = f"{number} of {len(pages.figures)}"
                figure.text(0.5, 22 / _HEIGHT, where, ha="center", fontsize=7.5, color=_QUIET)
                file.savefig(figure)
    return buffer.getvalue()


class _Pages:
    """Pages that are filled from the top; what does not fit goes onto the next one."""

    def __init__(self) -> None:
        self.figures: list[Figure] = []
        self._left = 0.0

    def _room(self, height: float) -> Figure:
        """Return a page with space for this many points, and use the space."""
        from matplotlib.figure import Figure

        if self._left < height:
            self.figures.append(Figure(figsize=(_WIDTH / 72, _HEIGHT / 72)))
            self._left = _HEIGHT - 2 * _MARGIN
        self._left -= height
        return self.figures[-1]

    @property
    def _bottom(self) -> float:
        return (_MARGIN + self._left) / _HEIGHT

    def section(self, section: Section) -> None:
        """Draw a section; its heading stands on the page of what follows it."""
        following = 230.0 if section.pictures else 3 * _TEXT * _LINE
        if self._left < _HEADING * _LINE + _GAP + following:
            self._left = 0
        else:
            self._left -= _GAP
        self.text(section.title, size=_HEADING, weight="bold")
        if section.alert:
            self.text(section.alert, color=_ALERT, weight="bold")
        if section.text:
            self.text(section.text)
        if section.pictures:
            for first in range(0, len(section.pictures), _PICTURES):
                self._draw(section.pictures[first : first + _PICTURES])
        if section.rows:
            self._table(section)

    def text(self, text: str, *, size: float = _TEXT, color: str = _INK, weight: str = "normal") -> None:
        """Draw a paragraph."""
        for line in _wrapped(text, _WIDTH - 2 * _MARGIN, size):
            figure = self._room(size * _LINE)
            options: dict[str, Any] = {"fontsize": size, "color": color, "weight": weight, "parse_math": False}
            figure.text(_MARGIN / _WIDTH, self._bottom, line, va="baseline", **options)

    def _draw(self, pictures: tuple[tuple[str, Image.Image], ...]) -> None:
        width = (_WIDTH - 2 * _MARGIN - (_PICTURES - 1) * _GAP) / _PICTURES
        height = max(width * picture.height / picture.width for _, picture in pictures)
        captions = [_wrapped(caption, width, 7.5) for caption, _ in pictures]
        below = max(map(len, captions)) * 7.5 * _LINE
        figure = self._room(min(height + below + _GAP, _HEIGHT - 2 * _MARGIN))
        for place, ((_, picture), lines) in enumerate(zip(pictures, captions, strict=True)):
            left = (_MARGIN + place * (width + _GAP)) / _WIDTH
            axes = figure.add_axes((left, self._bottom + below / _HEIGHT, width / _WIDTH, height / _HEIGHT))
            picture = picture.copy()
            picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
            axes.imshow(np.asarray(picture.convert("RGBA")), interpolation="nearest")
            axes.set_anchor("N")
            axes.set_xticks([])
            axes.set_yticks([])
            for number, line in enumerate(lines):
                y = self._bottom + (below - (number + 1) * 7.5 * _LINE) / _HEIGHT
                figure.text(left, y, line, fontsize=7.5, color=_QUIET, parse_math=False)

    def _table(self, section: Section) -> None:
        rows = [*([section.head] if section.head else []), *section.rows]
        widths = _widths(rows, numbers=bool(section.head))
        for number, row in enumerate(rows):
            cells = [_wrapped(cell, width - 6, _TEXT) for cell, width in zip(row, widths, strict=True)]
            quiet = bool(section.head) and not number
            for first in range(0, max(map(len, cells)), _MOST_LINES):  # a cell longer than a page is cut into rows
                self._row([cell[first : first + _MOST_LINES] for cell in cells], widths, section, quiet=quiet)

    def _row(self, cells: list[list[str]], widths: list[float], section: Section, *, quiet: bool) -> None:
        lines = max(map(len, cells))
        figure = self._room(lines * _TEXT * _LINE + 2)
        left = _MARGIN
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True)):
            right = bool(section.head) and column > 0
            color = _QUIET if quiet or (not section.head and column == 0) else _INK
            for number, line in enumerate(cell):
                y = self._bottom + (lines - 1 - number) * _TEXT * _LINE / _HEIGHT
                x = (left + width - 6 if right else left) / _WIDTH
                align = "right" if right else "left"
                figure.text(x, y, line, ha=align, fontsize=_TEXT, color=color, parse_math=False)
            left += width


def _widths(rows: list[tuple[str, ...]], *, numbers: bool) -> list[float]:
    """Return the widths of columns in points: of numbers as wide as their texts, and the first takes the rest."""
    whole, count = _WIDTH - 2 * _MARGIN, len(rows[0])
    if not numbers:
        return [100.0, whole - 100.0]
    needed = [max(len(row[column]) for row in rows) * _TEXT * _LETTER + 12 for column in range(1, count)]
    scale = min(1.0, 0.72 * whole / sum(needed))
    return [whole - scale * sum(needed), *(scale * width for width in needed)]


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """Return a text in lines that fit into a width."""
    letters = max(8, int(width / (size * _LETTER)))
    return textwrap.wrap(shown_in_a_line(text), letters) or [""]
