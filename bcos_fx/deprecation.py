"""Former names of keywords: they work for one release, with a warning."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from bcos_fx.errors import UsageError, nearest

P = ParamSpec("P")
T = TypeVar("T")


def formerly(**names: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function take former names of its keywords too; its signature shows the new ones alone.

    Args:
        names: former name -> the name now.

    The function raises UsageError, with the nearest name, for a keyword that it never had, and where the former name
    is given beside the new one.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        known = list(signature.parameters)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            given: dict[str, Any] = dict(kwargs)
            for old in [name for name in names if name in given]:
                new = names[old]
                if new in signature.bind_partial(*args).arguments or new in given:
                    raise UsageError(f"{old}= and {new}= are the same, and both were given", hint=f"give {new}= alone")
                warnings.warn(f"{old}= is now {new}=", DeprecationWarning, stacklevel=2)
                given[new] = given.pop(old)
            for name in given:
                if name not in known:
                    raise UsageError(f"no option is named {name!r}", hint=nearest(name, known))
            return function(*args, **given)

        return call

    return decorate
