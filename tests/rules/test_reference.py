"""docs/rules.md against the registry: every word that a rule file may use stands there with what it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from bcos_fx.rewriting.core.op import CLASSES, Op
from bcos_fx.rewriting.core.registry import BUILDERS, PREDICATES, SHIPPED
from bcos_fx.rewriting.core.rule import PHASES, SUFFIXES, NodePattern, Replacement, Rule

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
# What a file calls otherwise than the dataclass, or does not say itself.
_NAMES = {"linearity": "class", "ops": "op", "classes": "class", "source": "source", "build": "build"}
_NOT_IN_FILES = {Op: {"name", "view", "peers", "declared"}, Rule: {"origin"}}


def rows() -> Iterator[str]:
    """The rows of the two tables of registered names; a new one is pasted from here."""
    for registry in (PREDICATES, BUILDERS):
        shipped = [name for name, entry in sorted(registry.items()) if entry.__module__.startswith(SHIPPED)]
        for name in shipped:
            meaning = " ".join((registry[name].__doc__ or "").strip().partition("\n\n")[0].split())
            yield f"| `{name}` | {meaning} |"


@pytest.mark.parametrize("row", list(rows()))
def test_every_registered_name_stands_there_with_what_it_means(row: str) -> None:
    assert row in PAGE.splitlines()


@pytest.mark.parametrize("kind", [Op, NodePattern, Replacement, Rule])
def test_every_field_of_a_file_stands_there(kind: type) -> None:
    fields = {field.name for field in dataclasses.fields(kind)} - _NOT_IN_FILES.get(kind, set())
    names = {_NAMES.get(name, name) for name in fields}
    missing = [name for name in names if f"| `{name}` |" not in PAGE and f"`{name}`" not in PAGE]
    assert not missing


@pytest.mark.parametrize("word", sorted({*CLASSES, *PHASES, *SUFFIXES}))
def test_every_word_of_a_closed_list_stands_there(word: str) -> None:
    assert f"`{word}`" in PAGE or f"| {word} |" in PAGE or f".{word}`" in PAGE
