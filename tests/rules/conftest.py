"""Ops of a program's own are registered in these tests alone: other tests meet the shipped vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bcos_fx.rewriting.core import ops, registry, spelling

_STORES = (spelling._REGISTERED, ops._DECLARED, registry.BUILDERS._entries, registry.PREDICATES._entries)
Kept = list[dict[str, object]]


def kept() -> Kept:
    return [dict(store) for store in _STORES]


def put_back(before: Kept) -> None:
    for store in _STORES:
        store.clear()
    add(before)


def add(entries: Kept) -> None:
    for store, more in zip(_STORES, entries, strict=True):
        store.update(more)  # type: ignore[arg-type]
    ops.forget_vocabulary()


registry.load_shipped()
_SHIPPED = kept()
from tests.rules import own_ops  # noqa: E402, F401 - registers, as a user's import does

_OWN = kept()
put_back(_SHIPPED)


@pytest.fixture(scope="module", autouse=True)
def _own_ops() -> Iterator[None]:
    """Register the ops of own_ops.py for the tests of one file."""
    before = kept()
    add(_OWN)
    yield
    put_back(before)


@pytest.fixture
def unspoiled() -> Iterator[None]:
    """Put back afterwards what a test registers or takes away."""
    before = kept()
    yield
    put_back(before)
