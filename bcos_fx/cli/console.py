"""Where the commands print for people."""

from __future__ import annotations

from rich.console import Console

_PIPED_WIDTH = 110


def console() -> Console:
    """Return stdout: as wide as the terminal, or 110 characters where it is none, so that logs fold little."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)
