"""The command line. Nothing here imports torch until a command runs, so that help comes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcos_fx.cli.interruption import interruptible
from bcos_fx.lazy import lazily

if TYPE_CHECKING:
    from bcos_fx.cli.commands import app

__all__ = ["app", "main"]

__getattr__ = lazily("bcos_fx.cli", {"app": "bcos_fx.cli.commands"})


def main() -> None:
    """Run the command line; the entry point of the installed command."""
    with interruptible():
        from bcos_fx.cli.commands import app

        app(prog_name="bcos-fx")
