"""Caches of other people's code. A recording must neither fill one, nor be answered from one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

from bcos_fx.tracing.closures import cell_contents

_Cache = type(functools.lru_cache(lambda: None))


@contextmanager
def bypass_caches(root: nn.Module) -> Iterator[None]:
    """While this lasts, functions with a ``functools.lru_cache`` in the modules' source files run without it.

    For everybody, other threads too: they get the same results, computed again.
    """
    # An entry filled while recording would keep symbolic sizes for later callers; an entry that answers hides calls.
    replaced: list[tuple[Any, str, Any]] = []
    try:
        for home in homes(root):
            for name, value in list(vars(home).items()):
                bare = _without_cache(value)
                if bare is not None:
                    replaced.append((home, name, value))
                    setattr(home, name, bare)
        yield
    finally:
        for home, name, value in replaced:
            setattr(home, name, value)


def homes(root: nn.Module) -> list[Any]:
    """Return the classes of all modules and the modules that define them, PyTorch's own left out."""
    kinds = {kind for module in root.modules() for kind in type(module).__mro__}
    foreign = [kind for kind in kinds if kind is not object and not kind.__module__.startswith(("torch.", "builtins"))]
    files = {id(home): home for kind in foreign if (home := sys.modules.get(kind.__module__)) is not None}
    return [*files.values(), *foreign]


def _without_cache(value: object) -> Callable[..., Any] | None:
    """Return the function behind a cache, or behind a wrapper that keeps its cache in its closure."""
    bare: Callable[..., Any] | None = getattr(value, "__wrapped__", None)
    if isinstance(value, _Cache):
        return bare
    cells = value.__closure__ or () if isinstance(value, FunctionType) and bare is not None else ()
    return bare if any(isinstance(cell_contents(cell), _Cache) for cell in cells) else None
