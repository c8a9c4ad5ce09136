"""What rule files may name: the builders and predicates that are registered in Python.

The shipped ones register where they are defined, in :mod:`bcos_fx.rewriting.builders` and
:mod:`bcos_fx.rewriting.predicates`; every module of these packages is imported when a name is first looked up, so a
new one needs no entry in a list.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from bcos_fx.rewriting.core.build import Builder
from bcos_fx.rewriting.core.match import Predicate
from bcos_fx.rewriting.core.spelling import check_same_place

T = TypeVar("T")

SHIPPED = ("bcos_fx.rewriting.builders", "bcos_fx.rewriting.predicates")
"""The packages whose modules register what the shipped rule files name."""


@functools.cache
def load_shipped() -> None:
    """Import every module of the packages in :data:`SHIPPED`."""
    for package in SHIPPED:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)


class Registry(Mapping[str, T]):
    """Name -> what is registered under it; the shipped names are there from the first look-up on."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers what it decorates under a name, and returns it.

        The same definition may be run again, as in a notebook.

        Raises:
            RuleError: another function bears the name.
        """

        def register(entry: T) -> T:
            check_same_place(self._kind, name, self._entries.get(name), entry)
            self._entries[name] = entry
            return entry

        return register

    def __getitem__(self, name: str) -> T:
        load_shipped()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        load_shipped()
        return iter(self._entries)

    def __len__(self) -> int:
        load_shipped()
        return len(self._entries)


BUILDERS: Registry[Builder] = Registry("builder")
PREDICATES: Registry[Predicate] = Registry("predicate")

builder = BUILDERS.register
"""Register a builder under the name that rules use."""

predicate = PREDICATES.register
"""Register a predicate under the name that rules use."""
