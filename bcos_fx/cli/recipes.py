"""``bcos-fx recipes``: a recipe whole, with what it leaves to the defaults."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from bcos_fx.cli.console import console, echo_json

if TYPE_CHECKING:
    from bcos_fx.rewriting.core.recipe import Recipe

NAME = "recipes"
EPILOG = """Examples:

bcos-fx recipes

bcos-fx recipes bcosification

bcos-fx recipes clip --json
"""
# What each part of a recipe is called for people, in the order in which it is shown; the rest follows by its own name.
_TITLES = {
    "b": "B",
    "scale": "scale",
    "eps": "eps",
    "projections": "projections of attention that are raised",
    "pool": "pool",
    "bias": "biases",
    "positions": "positional embeddings",
    "classifier": "classifier",
    "head": "head",
}


def list_recipes(
    name: Annotated[
        str | None, typer.Argument(help="A shipped recipe, or a TOML file; left out: all, a line each.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")] = False,
) -> None:
    """Show a recipe whole: options, defaults included, the rules that run, loss, optimizer and schedule."""
    from bcos_fx.rewriting.core.recipe import load_recipe, recipe_names

    recipes = {key: load_recipe(key) for key in (recipe_names() if name is None else [name])}
    if json:
        echo_json([_recipe_as_dict(recipe, key) for key, recipe in recipes.items()], sort_keys=False)
        return

    stdout = console()
    for key, recipe in recipes.items():
        for renderable in _line(recipe) if name is None else _recipe_page(_recipe_as_dict(recipe, key)):
            stdout.print(renderable)


def _recipe_as_dict(recipe: Recipe, name: str) -> dict[str, Any]:
    from bcos_fx.rewriting.core.rule import PHASES
    from bcos_fx.training.recipe import load_training, trains

    rules = {phase: [rule.name for rule in recipe.active_rules(phase)] for phase in PHASES}
    return {
        **conversion_as_dict(recipe),
        "rules": {phase: names for phase, names in rules.items() if names},
        "training": load_training(name).to_dict() if trains(name) else None,
    }


def conversion_as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return how a recipe converts, its rules apart, as plain data."""
    return {
        "name": recipe.name,
        "description": recipe.description,
        "source": recipe.source,
        "options": recipe.options.to_dict(),
        "fixed": dict(recipe.fixed),
    }


def _line(recipe: Recipe) -> Iterator[RenderableType]:
    yield Text(recipe.name, style="bold cyan")
    yield Padding(Text(recipe.description), (0, 0, 0, 2))


def _recipe_page(plain: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield Text(plain["name"], style="bold cyan")
    yield Padding(Text(plain["description"]), (0, 0, 0, 2))
    yield Padding(Text(plain["source"], style="dim"), (0, 0, 1, 2))
    options = plain["options"]
    ordered = {_TITLES[name]: options[name] for name in _TITLES} | {
        n: v for n, v in options.items() if n not in _TITLES
    }
    yield from _section("Conversion", ordered)
    yield from _section("Cannot be changed", plain["fixed"])
    yield from _section("Rules that run", plain["rules"])
    training = plain["training"]
    if training is None:
        yield Text("Training: it does not say how to train")
        return
    optimizer, schedules = training.pop("optimizer"), {n: training.pop(n) for n in ("rises", "fades", "tapers")}
    yield from _section("Training", training)
    yield from _section("Optimizer and schedule of its rate", optimizer)
    yield from _section(
        "Schedules of B, biases and losses", {name: value or "none" for name, value in schedules.items()}
    )


def _section(title: str, facts: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not facts:
        return
    yield Text(title, style="bold")
    width = max(map(len, facts)) + 2
    for name, value in facts.items():
        yield Padding(Text.assemble((f"{name:<{width}}", "dim"), _stated(value)), (0, 0, 0, 2))
    yield Text("")


def _stated(value: object) -> str:
    if value is None:
        return "by itself (see the documentation of options)"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_stated(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_stated, value)) if value else "none"
    return str(value)
