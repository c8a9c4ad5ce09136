"""``bcos-fx rules``: the shipped rules and recipes, and whether a file of one's own is sound."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.text import Text

from bcos_fx.cli import values
from bcos_fx.cli.console import console, echo, echo_json
from bcos_fx.cli.options import argument, option, takes
from bcos_fx.cli.recipes import conversion_as_dict
from bcos_fx.errors import RuleError, UsageError, nearest

if TYPE_CHECKING:
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

_why_option = partial(option, rich_help_panel="Why a rule does not match")


@dataclass(frozen=True)
class RulesRequest:
    """What to show of the rules, as asked for on the command line."""

    name: str | None = argument(help="A rule, to be shown in full.")
    recipe: str | None = option(help="Show only the rules that are active in this recipe, and its options.")
    rules: list[Path] | None = option(help="Check a rule file of your own, and show its rules too. Repeatable.")
    explain: str | None = _why_option(
        metavar="MODEL",
        help="A network: say at each of its nodes why the rule NAME does not match there. A checkpoint (with "
        "--arch), an architecture such as my_net.py:build, or, for rules of explanations, a converted network.",
    )
    arch: str | None = _why_option(help="The architecture of the checkpoint.")
    trust_pickle: bool = _why_option(
        "--trust-pickle", default=False, help="Open a pickled module, which runs code that the file carries."
    )
    input_shape: str | None = _why_option(help="Shape of one sample, such as 3,32,32.")
    json: bool = option("--json", default=False, help="JSON on stdout, and nothing else.")


@takes(RulesRequest)
def list_rules(request: RulesRequest) -> None:
    """List the rules by phase: what each keeps, where it comes from and why it holds. And the recipes.

    The phases from canonical to linear keep the function; those from pool to head change it. A rule file of your own
    is checked as convert would check it: a mistake is named with its line and the nearest known word.
    """
    from bcos_fx.rewriting.core.recipe import load_recipe, recipe_names
    from bcos_fx.rewriting.core.rule import PHASES

    own_files = tuple(request.rules or ())
    if request.explain is not None:
        diagnosis = _diagnose(request, request.explain, own_files)
        echo(diagnosis.to_json() if request.json else diagnosis.to_text())
        return
    if request.recipe is not None:
        recipes = [load_recipe(request.recipe, extra_rules=own_files)]
        shown = [rule for phase in PHASES for rule in recipes[0].active_rules(phase)]
    else:
        recipes = list(map(load_recipe, recipe_names()))
        shown = _every(own_files)
    if request.name is not None:
        shown, recipes = [_find_rule(request.name, shown)], []
    if request.json:
        facts = {"rules": list(map(_rule_as_dict, shown)), "recipes": list(map(conversion_as_dict, recipes))}
        echo_json(facts, sort_keys=False)
        return

    stdout = console()
    for renderable in _rule_page(shown[0]) if request.name is not None else _listing(shown, recipes):
        stdout.print(renderable)


def _diagnose(request: RulesRequest, model: str, rules: tuple[Path, ...]) -> Diagnosis:
    """Explain at each node of a network why the rule that the request names does not match there."""
    if request.name is None:
        raise UsageError("the rule to explain is not named", hint="name it: bcos-fx rules NAME --explain MODEL")
    from bcos_fx.cli.network import example_of, read_network
    from bcos_fx.diagnosis import why_not
    from bcos_fx.rewriting.core.recipe import DEFAULT_RECIPE

    file = Path(model)
    is_file = file.exists() or ":" not in model
    if is_file and request.arch is None and file.suffix == ".safetensors":
        from bcos_fx.artifact import load

        return why_not(request.name, load(file), rules=rules)
    path, arch = (file, request.arch) if is_file else (None, model)
    network = read_network(path, arch=arch, trust_pickle=request.trust_pickle)
    shape = values.shape(request.input_shape)
    example = {} if shape is None else {"example_inputs": example_of(shape)}
    return why_not(request.name, network, recipe=request.recipe or DEFAULT_RECIPE, rules=rules, **example)


def _every(own_files: Sequence[Path]) -> list[Rule]:
    """Return all shipped rules, whatever recipe uses them, and the user's; in the order of the phases."""
    from bcos_fx.rewriting.core.location import rule_files
    from bcos_fx.rewriting.core.rule import PHASES
    from bcos_fx.rewriting.core.rulefile import load_rules

    return sorted(load_rules([*rule_files(), *own_files]), key=lambda rule: PHASES.index(rule.phase))


def _find_rule(name: str, rules: Sequence[Rule]) -> Rule:
    for rule in rules:
        if rule.name == name:
            return rule
    raise RuleError(f"no rule is named {name!r}", hint=nearest(name, [rule.name for rule in rules]))


def _rule_as_dict(rule: Rule) -> dict[str, Any]:
    # Where a rule file lies differs between machines; its name and line do not.
    return dataclasses.asdict(rule) | {"origin": Path(rule.origin).name}


def _listing(rules: Sequence[Rule], recipes: Sequence[Recipe]) -> Iterator[RenderableType]:
    from bcos_fx.rewriting.core.rule import CHANGING_PHASES

    phases = dict.fromkeys(rule.phase for rule in rules)
    for phase in phases:
        changes = " (changes the function)" if phase in CHANGING_PHASES else ""
        yield Text(f"{phase}{changes}", style="bold cyan")
        for rule in rules:
            if rule.phase == phase:
                effect = "refuses" if rule.refuse else f"preserves {rule.preserves}"
                yield Padding(Text.assemble((rule.name, "bold"), (f"  {effect}", "dim")), (0, 0, 0, 2))
                yield Padding(Text(rule.refuse or rule.why), (0, 0, 0, 4))
                yield Padding(Text(rule.source, style="dim"), (0, 0, 0, 4))
        yield Text("")
    for recipe in recipes:
        yield Text(f"recipe {recipe.name}", style="bold cyan")
        for line in _recipe_lines(recipe):
            yield Padding(line, (0, 0, 0, 2))
        yield Text("")


def _recipe_lines(recipe: Recipe) -> Iterator[RenderableType]:
    from bcos_fx.rewriting.core.options import Options

    defaults = Options().to_dict()
    changed = {name: value for name, value in recipe.options.to_dict().items() if value != defaults[name]}
    yield Text(recipe.description)
    yield Text("options: " + (", ".join(f"{name}={value}" for name, value in changed.items()) or "defaults"))
    for name, reason in recipe.fixed.items():
        yield Text(f"{name} cannot be changed: {reason}", style="dim")
    yield Text(recipe.source, style="dim")


def _rule_page(rule: Rule) -> Iterator[RenderableType]:
    yield Text(rule.name, style="bold cyan")
    facts = [("phase", rule.phase), ("preserves", rule.preserves), ("why", rule.why), ("source", rule.source)]
    facts += [("active when", _stated(rule.when))] if rule.when else []
    facts += [("file", rule.origin)]
    for label, value in facts:
        yield Text.assemble((f"  {label:<12}", "dim"), value)
    for title, entries in (("match", rule.match), ("replace", rule.replace)):
        for name, entry in entries.items():
            yield Text.assemble((f"  {title} ", "dim"), (name, "bold"))
            fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry)}
            given = {field: value for field, value in fields.items() if value not in (None, (), {})}
            yield Padding(Text(_stated(given)), (0, 0, 0, 6))
    result = ("refuses", rule.refuse) if rule.refuse else ("result", rule.result or list(rule.replace)[-1])
    yield Text.assemble((f"  {result[0]:<12}", "dim"), result[1])


def _stated(fields: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}={' | '.join(map(str, value)) if isinstance(value, tuple | list) else value}"
        for name, value in fields.items()
        if value is not False
    )
