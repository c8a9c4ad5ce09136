"""Rule files: TOML in, validated rules out. A rule file names things; it can run nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from bcos_fx.errors import BcosFxError, RuleError, nearest
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.ops import CLASSES, vocabulary
from bcos_fx.rewriting.core.options import OPTION_NAMES
from bcos_fx.rewriting.core.registry import BUILDERS, PREDICATES
from bcos_fx.rewriting.core.rule import PHASES, PRESERVES, Known, NodePattern, Replacement, Rule, validate
from bcos_fx.rewriting.core.toml import Table, read_toml

__all__ = ["ENTRY_POINTS", "known_names", "load_rules", "read_rules", "rules_directory"]

ENTRY_POINTS = "bcos_fx.rules"

# What importing another's module may come to.
_IMPORT_ERRORS = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    BcosFxError,
)


@functools.cache
def _load_third_parties() -> None:
    """Import the modules in which other distributions register builders and predicates.

    Raises:
        RuleError: a module cannot be imported; names the distribution.
    """
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except _IMPORT_ERRORS as error:
            owner = entry.dist.name if entry.dist is not None else "unknown"
            raise RuleError(
                f"the distribution {owner!r} offers builders for rules that cannot be imported: {error}",
                where=f"entry point {entry.name} = {entry.value} of the group {ENTRY_POINTS}",
                hint=f"mend it, or uninstall it: pip uninstall {owner}",
            ) from error


def known_names() -> Known:
    """Return the ops, predicates, builders and options that a rule may name.

    Raises:
        RuleError: what another distribution offers cannot be imported.
    """
    _load_third_parties()
    return Known(
        ops=frozenset(op.name for op in vocabulary()),
        predicates=frozenset(PREDICATES),
        builders=frozenset(BUILDERS),
        options=OPTION_NAMES,
    )


def _ops(table: Table) -> tuple[str, ...]:
    """The ops that a pattern node names, itself or by their linearity classes."""
    classes = table.strings("class")
    for name in classes:
        if name not in CLASSES:
            raise table.error(f"{name!r} is no linearity class", "class", nearest(name, CLASSES))
    return (*table.strings("op"), *(op.name for op in vocabulary() if op.linearity in classes))


def _pattern(table: Table) -> NodePattern:
    pattern = NodePattern(
        ops=_ops(table),
        inputs=table.strings("inputs"),
        users=table.integer("users", default=None),
        form=table.text("form", default=None),
        optional=table.flag("optional"),
        commutative=table.flag("commutative"),
        where=table.mapping("where"),
        require=table.strings("require"),
    )
    table.finish()
    return pattern


def _replacement(table: Table) -> Replacement:
    entry = Replacement(
        build=table.text("build", default=None),
        source=table.text("from", default=None),
        inputs=table.strings("inputs"),
        instead_of=table.text("instead_of", default=None),
        arguments=table.mapping("arguments"),
    )
    table.finish()
    return entry


def _rule(table: Table, known: Known) -> Rule:
    matched, replaced = table.table("match"), table.table("replace")
    rule = Rule(
        name=table.text("name"),
        phase=table.choice("phase", PHASES),
        preserves=table.choice("preserves", PRESERVES),
        source=table.text("source"),
        why=table.text("why"),
        match={name: _pattern(matched.table(name)) for name in matched.keys()},
        replace={name: _replacement(replaced.table(name)) for name in replaced.keys()},
        result=table.text("result", default=None),
        refuse=table.text("refuse", default=None),
        when=table.mapping("when"),
        origin=table.where(),
    )
    table.finish()
    return validate(rule, known)


def read_rules(path: Path) -> list[Rule]:
    """Read one rule file.

    Raises:
        RuleError: names the file, the line and the nearest known word.
    """
    document = read_toml(path)
    rules = [_rule(table, known_names()) for table in document.tables("rule")]
    document.finish()
    if not rules:
        raise RuleError("the file holds no [[rule]]", where=str(path))
    return rules


def load_rules(paths: Iterable[Path]) -> list[Rule]:
    """Read several rule files, in order.

    Raises:
        RuleError: a file is wrong, or two rules bear one name.
    """
    rules = [rule for path in paths for rule in read_rules(path)]
    seen: dict[str, Rule] = {}
    for rule in rules:
        if rule.name in seen:
            raise RuleError(
                f"two rules are named {rule.name!r}",
                where=f"{rule.origin} and {seen[rule.name].origin}",
                hint="rename one of them",
            )
        seen[rule.name] = rule
    return rules
