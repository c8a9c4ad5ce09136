"""The commands, put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bcos_fx.cli import (
    calibrate,
    check,
    convert,
    demo,
    embed,
    evaluate,
    explain,
    export,
    finetune,
    inspect,
    plan,
    publish,
    recipes,
    report,
    rules,
    serve,
)
from bcos_fx.cli.console import echo
from bcos_fx.cli.failure import DEBUG, guarded
from bcos_fx.cli.former import Command
from bcos_fx.cli.imports import importing
from bcos_fx.escaping import shown_in_a_line
from bcos_fx.version import __version__


class _Group(TyperGroup):
    """Escapes what usage errors repeat of the command line, where a pattern may have put file names."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the words before the command."""
        with _escaped():
            return super().make_context(*args, **kwargs)

    def invoke(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the command's words, and run it."""
        with _escaped():
            return super().invoke(*args, **kwargs)


@contextmanager
def _escaped() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # click's errors hold the text in `message`; it is escaped before click prints it.
        if isinstance(message := getattr(error, "message", None), str):
            error.message = shown_in_a_line(message)  # type: ignore[attr-defined]
        raise


app = typer.Typer(
    name="bcos-fx",
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with [bold]bcos-fx demo[/bold], or [bold]bcos-fx plan[/bold] on a network of your own. "
    "Exit codes: 0 good, 1 a check failed, 2 bad usage or input, 130 interrupted.",
)


def _flowing(docstring: str | None) -> str:
    """Join the lines of each paragraph, because the terminal is rarely as wide as the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in (docstring or "").split("\n\n"))


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"bcos-fx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the full Python traceback of every error. Goes before the command.")
    ] = False,
) -> None:
    """Turn a trained network into a B-cos network by rewriting its graph, and prove that nothing was lost."""
    DEBUG.set(debug)


COMMANDS: tuple[tuple[ModuleType, Callable[..., None]], ...] = (
    (convert, convert.convert_network),
    (plan, plan.plan_conversion),
    (check, check.check_network),
    (calibrate, calibrate.calibrate_network),
    (finetune, finetune.finetune_network),
    (embed, embed.embed_texts),
    (explain, explain.explain_images),
    (evaluate, evaluate.evaluate_networks),
    (export, export.export_network),
    (report, report.write_report),
    (serve, serve.serve_page),
    (publish, publish.publish_network),
    (inspect, inspect.inspect_file),
    (rules, rules.list_rules),
    (recipes, recipes.list_recipes),
    (demo, demo.run_demo),
)

# --import runs before a command, and an error in it ends as any other: guarded() is outermost.
for _module, _command in COMMANDS:
    _run = _command if _module in (embed, inspect, demo) else importing(_command)  # these handle no ops
    app.command(_module.NAME, cls=Command, help=_flowing(_command.__doc__), epilog=_module.EPILOG)(guarded(_run))
