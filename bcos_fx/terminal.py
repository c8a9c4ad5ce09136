"""Rich's console for texts that hold other people's names: nothing in them is markup, and nothing is obeyed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from bcos_fx.escaping import shown


class EscapingConsole(Console):
    """A console that prints every text as :func:`bcos_fx.escaping.shown` returns it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"highlight": False} | options), markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is printed; only rich's own segments of control codes pass as they are."""
        encoding = (options or self.options).encoding
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text, encoding), segment.style)


def plain_console(file: TextIO, width: int) -> EscapingConsole:
    """Return a console that writes plain text to a file, in a notebook too."""
    return EscapingConsole(file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False)
