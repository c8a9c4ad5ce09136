"""What is loaded when it is first used: names of a package (torch takes seconds to import), libraries of extras."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from bcos_fx.errors import MissingExtraError


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__`` (PEP 562).

    Args:
        package: its name.
        homes: name -> the module that has it. No module of the package may bear the name of one of them, for importing
            it would put the module in the function's place.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return load


def renamed(old: str, new: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a module that exists only under its former name: it warns, and passes on.

    Args:
        old: the module.
        new: the module that has its contents now.
        names: former name -> the name now, of all that was documented.
    """

    def load(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        warnings.warn(f"{old}.{name} is now {new}.{names[name]}", DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new), names[name])

    return load


def check_installed(name: str, extra: str, purpose: str, *, package: str | None = None) -> None:
    """Raise MissingExtraError where a library of an extra (its ``package``) is not installed; import nothing."""
    if importlib.util.find_spec(name) is None:
        raise MissingExtraError(package or name, extra, purpose)


def library(name: str, extra: str, purpose: str) -> Any:
    """Import a library that an extra brings.

    Raises:
        MissingExtraError: it is not installed, or what it needs is not.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or name).partition(".")[0], extra, purpose) from error
