"""What the user sees when something goes wrong: one message and an exit code, never a traceback unasked."""

from __future__ import annotations

import errno
import functools
import os
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import typer

from bcos_fx.cli.console import echo
from bcos_fx.cli.interruption import INTERRUPTED, MESSAGE, interrupted
from bcos_fx.cli.spelling import in_options
from bcos_fx.errors import BcosFxError, VerificationError

CHECK_FAILED, BAD_INPUT = 1, 2
DEBUG: ContextVar[bool] = ContextVar("debug", default=False)

P = ParamSpec("P")
T = TypeVar("T")


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Wrap a command so that every error becomes a message on stderr and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return command(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt as interrupt:
            echo("\n".join([f"\n{MESSAGE}", *getattr(interrupt, "__notes__", ())]), err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:  # the outermost frame: whatever is left must become a message
            if interrupted():  # while a library was imported, which made another error of it
                echo(f"\n{MESSAGE}", err=True)
                raise typer.Exit(INTERRUPTED) from None
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader closed the pipe that we print into, which is not an error
            raise typer.Exit(_report(error, command)) from None

    return run


def list_skipped(skipped: dict[str, str]) -> None:
    """Name on stderr the images that could not be read, and end with exit code 1 if there are any."""
    if skipped:
        echo(f"{len(skipped)} skipped:", err=True)
        for name, why in skipped.items():
            echo(f"  {name}: {why}", err=True)
        raise typer.Exit(CHECK_FAILED)


def _report(error: Exception, command: Callable[..., object]) -> int:
    if DEBUG.get():
        echo("".join(traceback.format_exception(error)), err=True)
    # Errors of the library name keywords of Python; the user of a command reads options.
    shown = in_options(error, command) if isinstance(error, BcosFxError) else error
    echo(_message(shown), err=True)
    return CHECK_FAILED if isinstance(error, VerificationError) else BAD_INPUT


def _message(error: Exception) -> str:
    if isinstance(error, BcosFxError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.strerror:
        named = [f"  where: {os.fsdecode(name)}" for name in (error.filename,) if isinstance(name, str | bytes)]
        return "\n".join([f"error: the system says: {error.strerror}", *named])
    text = str(error).strip().splitlines()
    detail = f": {text[0]}" if text else ""
    return (
        f"error: {type(error).__name__}{detail}\n"
        "  this is a bug in bcos-fx: nothing that you give it should end like this\n"
        "  try:   the same command as `bcos-fx --debug ...` for the traceback, and report it"
    )
