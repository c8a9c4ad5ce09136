"""What a node calls, as a function of the arguments that it is given."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from bcos_fx.rewriting.core.ops import Call


def as_function(call: Call) -> Callable[..., Any]:
    """Return what a call calls: its module, its function, or its method as a function."""
    if call.module is not None:
        return call.module
    if call.node.op == "call_method":
        return functools.partial(_method, str(call.node.target))
    function: Callable[..., Any] = call.node.target  # type: ignore[assignment]
    return function


def _method(name: str, first: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(first, name)(*args, **kwargs)
