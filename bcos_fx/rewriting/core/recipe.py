"""Recipes: which rule files, which options, for which purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bcos_fx.errors import RuleError, UsageError, check_choice, nearest
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.options import OPTION_NAMES, Options
from bcos_fx.rewriting.core.rule import Rule
from bcos_fx.rewriting.core.rulefile import check_distinct, load, load_rules
from bcos_fx.rewriting.core.toml import Table, read_toml

DEFAULT_RECIPE = "bcosification"


@dataclass(frozen=True)
class Recipe:
    """Rules and options for one purpose.

    Attributes:
        name: how the recipe is called.
        description: what it is for, in one sentence.
        source: the paper and section.
        rules: the rules, in order.
        options: the options that the rules read.
        fixed: options that may not be changed, with the reason.
        hashes: rule file -> SHA-256 of its bytes.
    """

    name: str
    description: str
    source: str
    rules: tuple[Rule, ...]
    options: Options
    fixed: Mapping[str, str]
    hashes: Mapping[str, str]

    def with_options(self, changes: Mapping[str, Any]) -> Recipe:
        """Return the recipe with some options changed; layers that patterns for B do not name keep the recipe's B.

        Raises:
            UsageError: an unknown or senseless option, or one that this recipe fixes.
        """
        for name, reason in self.fixed.items():
            if name in changes and changes[name] != getattr(self.options, name):
                raise UsageError(
                    f"the recipe {self.name!r} fixes {name}={getattr(self.options, name)!r}: {reason}",
                    hint="choose another recipe, or leave the option out",
                )
        if isinstance(changes.get("b"), Mapping):
            changes = {**changes, "b": self._completed(changes["b"])}
        return replace(self, options=self.options.with_changes(changes))

    def _completed(self, chosen: Mapping[str, float]) -> dict[str, float]:
        """Return patterns for B, followed by the recipe's own where they leave layers unnamed."""
        patterns = self.options.b if isinstance(self.options.b, Mapping) else {"*": self.options.b}
        if "*" in chosen or patterns == {"*": 1.0}:  # which is what a layer without a pattern has
            return dict(chosen)
        # Behind the caller's, since the first pattern that names a layer decides.
        return {**chosen, **{pattern: b for pattern, b in patterns.items() if pattern not in chosen}}

    def active_rules(self, phase: str) -> list[Rule]:
        """Return the rules of a phase that are active under the options, in order."""
        return [rule for rule in self.rules if rule.phase == phase and _is_active(rule, self.options)]


def _is_active(rule: Rule, options: Options) -> bool:
    wanted = {name: value if isinstance(value, list) else [value] for name, value in rule.when.items()}
    return all(getattr(options, name) in accepted for name, accepted in wanted.items())


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in (rules_directory() / "recipes").glob("*.toml"))


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe, by the name of a shipped one or its path.

    Raises:
        RuleError: no recipe has that name.
    """
    path = Path(recipe)
    if path.suffix == ".toml":
        return path
    check_choice("recipe", str(recipe), recipe_names(), RuleError)
    return rules_directory() / "recipes" / f"{recipe}.toml"


def _options(table: Table) -> Options:
    values = table.mapping("options")
    below = table.table("options")
    for name, value in values.items():
        if name not in OPTION_NAMES:
            raise below.error(f"no option is named {name!r}", name, nearest(name, OPTION_NAMES))
        values[name] = tuple(value) if isinstance(value, list) else value
    return Options(**values)


def load_recipe(
    recipe: str | Path = DEFAULT_RECIPE, *, extra_rules: Sequence[str | Path | Rule] | str | Path | Rule = ()
) -> Recipe:
    """Read a recipe, by the name of a shipped one or the path of a TOML file.

    Args:
        recipe: name or path.
        extra_rules: more rule files or rules, or one; they come after the recipe's own.

    Raises:
        RuleError: an unknown recipe, or a file that is wrong (file, line, nearest known name).
    """
    table = read_toml(find_recipe(recipe))
    files = [rules_directory() / f"{name}.toml" for name in table.strings("rules")]
    extra = [extra_rules] if isinstance(extra_rules, str | Path | Rule) else list(extra_rules)
    without = table.strings("without")
    added = [rule for item in extra for rule in ([item] if isinstance(item, Rule) else load(item))]
    rules = check_distinct([*load_rules(files), *added])
    files += [Path(item) for item in extra if not isinstance(item, Rule)]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    hashes |= {rule.name: hashlib.sha256(repr(rule).encode()).hexdigest() for rule in extra if isinstance(rule, Rule)}
    for name in without:
        if name not in {rule.name for rule in rules}:
            raise table.error(f"no rule is named {name!r}", "without", nearest(name, [rule.name for rule in rules]))
    loaded = Recipe(
        name=table.text("name"),
        description=table.text("description"),
        source=table.text("source"),
        rules=tuple(rule for rule in rules if rule.name not in without),
        options=_options(table),
        fixed=table.mapping("fixed"),
        hashes=hashes,
    )
    table.mapping("training")  # for bcos_fx.training, which reads and checks it
    table.finish()
    return loaded
