"""``--import FILE.py``: the user's own ops, builders and predicates, for every command that handles networks or rules.

The file runs, as any Python file that is imported does. It is the one that the user names on the command line; nothing
that a file of a network holds is ever imported.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from bcos_fx.errors import BcosFxError, UsageError
from bcos_fx.user_code import import_file

T = TypeVar("T")

Imports = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        help="A Python file of your own that registers ops, builders or predicates (bcos_fx.rules). It is run, so name "
        "only files that you trust. Repeatable.",
        show_default=False,
        rich_help_panel="Your own code",
    ),
]


def importing(command: Callable[..., T]) -> Callable[..., T]:
    """Give a command the option ``--import``, whose files are imported before the command runs."""

    @functools.wraps(command)
    def run(imports: list[Path] | None = None, **given: Any) -> T:
        for path in imports or ():
            import_rules(path)
        return command(**given)

    # typer reads the annotations of the function that it is given, which are strings in the command's module.
    signature = inspect.signature(command)
    hints = get_type_hints(command, include_extras=True)
    option = inspect.Parameter("imports", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Imports)
    parameters = [parameter.replace(annotation=hints[name]) for name, parameter in signature.parameters.items()]
    run.__dict__["__signature__"] = signature.replace(parameters=[*parameters, option])
    run.__annotations__ = {**hints, "imports": Imports}
    del run.__dict__["__wrapped__"]  # or typer would read the command's own parameters instead
    return run


def import_rules(path: Path) -> None:
    """Import a Python file of the user's."""
    if path.suffix != ".py" or not path.is_file():
        problem = "is not a Python file" if path.is_file() else "does not exist"
        raise UsageError(f"--import {path}: it {problem}", hint="name the .py file that registers your ops")
    try:
        import_file(path)
    except BcosFxError:
        raise
    except Exception as error:  # code that is not ours may raise anything; the cause stays attached
        raise UsageError(
            f"--import {path} raised {type(error).__name__}: {error}", hint="run the file with python to see where"
        ) from error
