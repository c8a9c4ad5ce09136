"""Where the commands print: the only functions that write to the terminal."""

from __future__ import annotations

import json

import typer

from bcos_fx.escaping import shown
from bcos_fx.terminal import EscapingConsole

_PIPED_WIDTH = 110


def console() -> EscapingConsole:
    """Return stdout: as wide as the terminal; 110 characters where it is not one, so that logs are rarely wrapped."""
    terminal = EscapingConsole()
    return terminal if terminal.is_terminal else EscapingConsole(width=_PIPED_WIDTH)


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a text on a line of its own, escaped as :func:`bcos_fx.escaping.shown` does."""
    stream = typer.get_text_stream("stderr" if err else "stdout")
    typer.echo(shown(text, stream.encoding or "utf-8"), err=err)


def echo_json(facts: object, *, sort_keys: bool = True) -> None:
    """Print plain data as JSON."""
    echo(json.dumps(facts, indent=2, sort_keys=sort_keys))
