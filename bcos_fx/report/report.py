"""The report of a conversion, as its user sees it: the findings, with their text and picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bcos_fx.display import Displayed
from bcos_fx.report.model import Findings
from bcos_fx.report.sentences import opening, verdict_line


@dataclass(frozen=True, repr=False)
class Report(Displayed, Findings):
    """Everything that a conversion did and found; see :class:`bcos_fx.report.model.Findings` for its attributes."""

    def brief(self) -> list[str]:
        """Return the recipe, how much was converted, the proof, and what the network is for."""
        coverage = f"{self.coverage.share:.1%} of its linear and convolution parameters are B-cos"
        return [
            f"Report: converted by the recipe {self.recipe!r}; {coverage}",
            f"  equivalence: {verdict_line(self)}",
            *(f"  {label}: {sentence}" for label, sentence in opening(self)),
        ]

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
            UsageError: another suffix.
        """
        from bcos_fx.report.picture import draw  # matplotlib is an extra

        return draw(self, Path(path))

    def __str__(self) -> str:
        return self.to_text()
