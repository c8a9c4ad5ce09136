"""The report of a conversion, as its user sees it: the findings, with their text and picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bcos_fx.report.model import Findings


@dataclass(frozen=True)
class Report(Findings):
    """Everything that a conversion did and found; see :class:`bcos_fx.report.model.Findings` for its attributes."""

    def to_text(self, *, nodes: bool = False, width: int = 110) -> str:
        """Return the report as text for people.

        Args:
            nodes: list every node too.
            width: of the lines, in characters.
        """
        from bcos_fx.report.text import render  # rich takes a while to load

        return render(self, nodes=nodes, width=width)

    def draw(self, path: str | Path) -> Path:
        """Draw the graph before and after, side by side (.png, .svg or .pdf).

        Raises:
            MissingExtraError: matplotlib is not installed.
            UsageError: the suffix is none of these.
        """
        from bcos_fx.report.picture import draw  # matplotlib is an extra

        return draw(self, Path(path))

    def __str__(self) -> str:
        return self.to_text()
