"""``bcos-fx rules``: the shipped rules and recipes, and whether a file of one's own is sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bcos_fx.cli.console import echo, echo_json
from bcos_fx.errors import RuleError, UsageError, nearest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bcos_fx.diagnosis import Diagnosis
    from bcos_fx.rewriting.core.recipe import Recipe
    from bcos_fx.rewriting.core.rule import Rule

NAME = "rules"
EPILOG = """Examples:

bcos-fx rules

bcos-fx rules classifier-before-pool

bcos-fx rules --recipe equivalent

bcos-fx rules --rules my_rules.toml

bcos-fx rules my-rule --rules my_rules.toml --explain my_net.py:build --import my_ops.py
"""

_why_option = partial(typer.Option, rich_help_panel="Why a rule does not match")


def list_rules(
    name: Annotated[str | None, typer.Argument(help="A rule, to be shown in full.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Show only the rules that are active in this recipe, and its options.")
    ] = None,
    rules: Annotated[
        list[Path] | None, typer.Option(help="Check a rule file of your own, and show its rules too. Repeatable.")
    ] = None,
    explain: Annotated[
        str | None,
        _why_option(
            metavar="MODEL",
            help="A network: say at each of its nodes why the rule NAME does not match there. A checkpoint (with "
            "--arch), an architecture such as my_net.py:build, or, for rules of explanations, a converted network.",
        ),
    ] = None,
    arch: Annotated[str | None, _why_option(help="The architecture of the checkpoint.")] = None,
    trust_pickle: Annotated[
        bool, _why_option("--trust-pickle", help="Open a pickled module, which runs code that the file carries.")
    ] = False,
    input_shape: Annotated[str | None, _why_option(help="Shape of one sample, such as 3,32,32.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")] = False,
) -> None:
    """List the rules by phase: what each keeps, where it comes from and why it holds. And the recipes.

    The phases from canonical to linear keep the function; those from pool to head change it. A rule file of your own
    is checked as convert would check it: a mistake is named with its line and the nearest known word.
    """
    from bcos_fx.rewriting.core.recipe import load_recipe, recipe_names

    own = tuple(rules or ())
    if explain is not None:
        given = {"recipe": recipe, "rules": own, "arch": arch, "trust_pickle": trust_pickle, "shape": input_shape}
        found = _diagnosis(name, explain, given)
        echo(found.to_json() if json else found.to_text())
        return
    if recipe is not None:
        recipes = [load_recipe(recipe, extra_rules=own)]
        shown = _active(recipes[0])
    else:
        recipes = [load_recipe(each) for each in recipe_names()]
        shown = _every(own)
    if name is not None:
        shown, recipes = [_find_rule(name, shown)], []
    if json:
        echo_json({"rules": [_rule_as_dict(rule) for rule in shown]} | _options(recipes), sort_keys=False)
        return
    from bcos_fx.cli.console import console

    stdout = console()
    for part in _rule_page(shown[0]) if name is not None else _listing(shown, recipes):
        stdout.print(part)


def _diagnosis(name: str | None, model: str, given: dict[str, Any]) -> Diagnosis:
    if name is None:
        raise UsageError("the rule to explain is not named", hint="name it: bcos-fx rules NAME --explain MODEL")
    from bcos_fx.cli import values
    from bcos_fx.cli.network import example_of, read_network
    from bcos_fx.diagnosis import why_not
    from bcos_fx.rewriting.core.recipe import DEFAULT_RECIPE

    file = Path(model)
    is_file = file.exists() or ":" not in model
    if is_file and given["arch"] is None and file.suffix == ".safetensors":
        from bcos_fx.artifact import load

        return why_not(name, load(file), rules=given["rules"])
    network = read_network(
        file if is_file else None,
        arch=given["arch"] if is_file else model,
        key=None,
        trust_pickle=given["trust_pickle"],
    )
    shape = values.shape(given["shape"])
    example = {} if shape is None else {"example_inputs": example_of(shape)}
    return why_not(name, network, recipe=given["recipe"] or DEFAULT_RECIPE, rules=given["rules"], **example)


def _active(recipe: Recipe) -> list[Rule]:
    from bcos_fx.rewriting.core.rule import PHASES

    return [rule for phase in PHASES for rule in recipe.active_rules(phase)]


def _every(own: Sequence[Path]) -> list[Rule]:
    """Return all shipped rules, whatever recipe uses them, and the user's; in the order of the phases."""
    from bcos_fx.rewriting.core.location import rule_files
    from bcos_fx.rewriting.core.rule import PHASES
    from bcos_fx.rewriting.core.rulefile import load_rules

    return sorted(load_rules([*rule_files(), *own]), key=lambda rule: PHASES.index(rule.phase))


def _find_rule(name: str, rules: Sequence[Rule]) -> Rule:
    for rule in rules:
        if rule.name == name:
            return rule
    raise RuleError(f"no rule is named {name!r}", hint=nearest(name, [rule.name for rule in rules]))


def _rule_as_dict(rule: Rule) -> dict[str, Any]:
    # Where a rule file lies differs between machines; its name and line do not.
    return dataclasses.asdict(rule) | {"origin": Path(rule.origin).name}


def _options(recipes: Sequence[Recipe]) -> dict[str, Any]:
    return {
        "recipes": [
            {
                "name": recipe.name,
                "description": recipe.description,
                "source": recipe.source,
                "options": recipe.options.to_dict(),
                "fixed": dict(recipe.fixed),
            }
            for recipe in recipes
        ]
    }


def _listing(rules: Sequence[Rule], recipes: Sequence[Recipe]) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    from bcos_fx.rewriting.core.rule import CHANGING_PHASES

    phases = dict.fromkeys(rule.phase for rule in rules)
    for phase in phases:
        changes = " (changes the function)" if phase in CHANGING_PHASES else ""
        yield Text(f"{phase}{changes}", style="bold cyan")
        for rule in rules:
            if rule.phase == phase:
                kept = "refuses" if rule.refuse else f"preserves {rule.preserves}"
                yield Padding(Text.assemble((rule.name, "bold"), (f"  {kept}", "dim")), (0, 0, 0, 2))
                yield Padding(Text(rule.refuse or rule.why), (0, 0, 0, 4))
                yield Padding(Text(rule.source, style="dim"), (0, 0, 0, 4))
        yield Text("")
    for recipe in recipes:
        yield Text(f"recipe {recipe.name}", style="bold cyan")
        for line in _recipe_lines(recipe):
            yield Padding(line, (0, 0, 0, 2))
        yield Text("")


def _recipe_lines(recipe: Recipe) -> Iterator[RenderableType]:
    from rich.text import Text

    from bcos_fx.rewriting.core.options import Options

    defaults = Options().to_dict()
    changed = {name: value for name, value in recipe.options.to_dict().items() if value != defaults[name]}
    yield Text(recipe.description)
    yield Text("options: " + (", ".join(f"{name}={value}" for name, value in changed.items()) or "defaults"))
    for name, reason in recipe.fixed.items():
        yield Text(f"{name} cannot be changed: {reason}", style="dim")
    yield Text(recipe.source, style="dim")


def _rule_page(rule: Rule) -> Iterator[RenderableType]:
    from rich.padding import Padding
    from rich.text import Text

    yield Text(rule.name, style="bold cyan")
    facts = [("phase", rule.phase), ("preserves", rule.preserves), ("why", rule.why), ("source", rule.source)]
    facts += [("active when", _stated(rule.when))] if rule.when else []
    facts += [("file", rule.origin)]
    for label, value in facts:
        yield Text.assemble((f"  {label:<12}", "dim"), value)
    for title, entries in (("match", rule.match), ("replace", rule.replace)):
        for name, entry in entries.items():
            yield Text.assemble((f"  {title} ", "dim"), (name, "bold"))
            yield Padding(Text(_stated(_set_fields(entry))), (0, 0, 0, 6))
    result = ("refuses", rule.refuse) if rule.refuse else ("result", rule.result or list(rule.replace)[-1])
    yield Text.assemble((f"  {result[0]:<12}", "dim"), result[1])


def _set_fields(entry: Any) -> dict[str, Any]:
    return {f.name: value for f in dataclasses.fields(entry) if (value := getattr(entry, f.name)) not in (None, (), {})}


def _stated(fields: Any) -> str:
    return ", ".join(
        f"{name}={' | '.join(map(str, value)) if isinstance(value, tuple | list) else value}"
        for name, value in fields.items()
        if value is not False
    )
