"""Calls of PyTorch that are not ops of the vocabulary, and why (``rules/refused.toml``)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.toml import Table, read_toml


@dataclass(frozen=True)
class Refusal:
    """One group of refused calls.

    Attributes:
        reason: why they are refused.
        instead: what to use in their place, where there is something.
        names: as in the file; those of name spaces other than ``torch`` and tensors' methods carry a prefix.
    """

    reason: str
    instead: str | None
    names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.reason}; instead: {self.instead}" if self.instead else self.reason


@functools.cache
def refusals() -> dict[str, Refusal]:
    """Return the shipped groups by their names, read once."""
    document = read_toml(rules_directory() / "refused.toml")
    return {name: _read_refusal(document.table(name)) for name in document.keys()}


def _read_refusal(table: Table) -> Refusal:
    refusal = Refusal(table.text("reason"), table.text("instead", default=None), table.strings("names"))
    table.finish()
    return refusal


@functools.cache
def refused_names() -> dict[str, Refusal]:
    """Return name -> its group, without the prefixes of name spaces."""
    return {name.rpartition(".")[2]: refusal for refusal in refusals().values() for name in refusal.names}
