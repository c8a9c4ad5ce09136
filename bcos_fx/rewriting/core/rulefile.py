"""Rule files: TOML in, validated rules and declared ops out. A rule file names things; it can run nothing."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from bcos_fx.errors import FORWARD_ERRORS, BcosFxError, RuleError
from bcos_fx.rewriting.core.declaration import read_op
from bcos_fx.rewriting.core.ops import declare, vocabulary
from bcos_fx.rewriting.core.options import OPTION_NAMES
from bcos_fx.rewriting.core.registry import BUILDERS, PREDICATES
from bcos_fx.rewriting.core.rule import PHASES, PRESERVES, Known, NodePattern, Replacement, Rule, validate
from bcos_fx.rewriting.core.toml import Table, read_toml

ENTRY_POINTS = "bcos_fx.rules"

# What importing another's module may come to.
_IMPORT_ERRORS = (*FORWARD_ERRORS, BcosFxError, ImportError, OSError, SyntaxError)


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
                hint=f"correct it, or uninstall it: pip uninstall {owner}",
            ) from error


def known_names() -> Known:
    """Return the ops, predicates, builders and options that a rule may name.

    Raises:
        RuleError: what another distribution offers cannot be imported.
    """
    _load_third_parties()
    return Known(
        ops=frozenset(op.name for op in vocabulary()) | vocabulary().members,
        predicates=frozenset(PREDICATES),
        builders=frozenset(BUILDERS),
        options=OPTION_NAMES,
    )


def _pattern(table: Table) -> NodePattern:
    pattern = NodePattern(
        ops=table.strings("op"),
        classes=table.strings("class"),
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
    """Read one rule file, and add the ops that it declares to the vocabulary of this program.

    Raises:
        RuleError: names the file, the line and the nearest known word.
    """
    document = read_toml(path)
    ops = document.table("op")
    for name in ops.keys():
        _declare(name, ops.table(name))
    rules = [_rule(table, known_names()) for table in document.tables("rule")]
    document.finish()
    if not rules and not ops.keys():
        raise RuleError("the file holds no [[rule]] and no [op.NAME]", where=str(path))
    return rules


def _declare(name: str, table: Table) -> None:
    op = read_op(name, table, shipped=False)
    try:
        declare(op)
    except RuleError as error:
        raise RuleError(error.what, where=f"{table.where()}, {error.where}", hint=error.hint) from error


def load(path: str | Path) -> list[Rule]:
    """Read a rule file of a program's own: declare its ops, and use its rules of the phase ``freeze`` in explanations.

    Its other rules are for conversions: name the file, or the rules, in ``bcosify(rules=...)`` or a recipe.

    Returns:
        All of its rules.

    Raises:
        RuleError: as :func:`read_rules`; or another rule for explanations has the name of one.
    """
    rules = read_rules(Path(path))
    for loaded in rules:
        _keep_for_views(loaded)
    return rules


def rule(**fields: Any) -> Rule:
    """Make a rule in Python. It passes the checks of a rule file, and goes into ``bcosify(rules=[...])``.

    Args:
        fields: of :class:`~bcos_fx.rewriting.core.rule.Rule`; ``match`` and ``replace`` hold dictionaries with the
            fields of :class:`~bcos_fx.rewriting.core.rule.NodePattern` and
            :class:`~bcos_fx.rewriting.core.rule.Replacement`. A text stands for a tuple of one.

    Raises:
        RuleError: an unknown name, or a part that is missing.
    """
    try:
        fields["match"] = {name: NodePattern(**_with_lists(entry)) for name, entry in fields.get("match", {}).items()}
        fields["replace"] = {n: Replacement(**_with_lists(entry)) for n, entry in fields.get("replace", {}).items()}
        built = Rule(**fields)
    except TypeError as error:
        reason = str(error).partition("__init__() ")[2] or str(error)
        raise RuleError(f"the rule {fields.get('name')!r} {reason}", hint="see bcos_fx.rules.Rule") from error
    _keep_for_views(validate(built, known_names()))
    return built


def _with_lists(entry: Mapping[str, Any]) -> dict[str, Any]:
    several = [name for name in ("ops", "inputs", "require", "classes") if name in entry]
    return {**entry, **{name: _texts(entry[name]) for name in several}}


def _texts(value: str | Iterable[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


_VIEW_RULES: dict[str, Rule] = {}


def view_rules() -> tuple[Rule, ...]:
    """Return the rules of the phase ``freeze`` that this program has loaded or made besides the shipped ones."""
    return tuple(_VIEW_RULES.values())


def _keep_for_views(rule: Rule) -> None:
    if rule.phase != "freeze":
        return
    old = _VIEW_RULES.get(rule.name)
    # The same file may be loaded again, as a notebook does.
    if old is not None and _file_of(old) != _file_of(rule):
        raise _same_name(rule, old)
    _VIEW_RULES[rule.name] = rule


def _file_of(rule: Rule) -> Path:
    return Path(rule.origin.rpartition(":")[0]).resolve()


def _same_name(rule: Rule, old: Rule) -> RuleError:
    where = f"{rule.origin} and {old.origin}"
    return RuleError(f"two rules are named {rule.name!r}", where=where, hint="rename one of them")


def load_rules(paths: Iterable[Path]) -> list[Rule]:
    """Read several rule files, in order.

    Raises:
        RuleError: a file is wrong, or two rules bear one name.
    """
    return check_distinct([rule for path in paths for rule in read_rules(path)])


def check_distinct(rules: list[Rule]) -> list[Rule]:
    """Return the rules if no two of them bear one name.

    Raises:
        RuleError: two do; names both places.
    """
    seen: dict[str, Rule] = {}
    for rule in rules:
        if rule.name in seen:
            raise _same_name(rule, seen[rule.name])
        seen[rule.name] = rule
    return rules
