"""What stays one call in a graph because a program asked for it: its own classes, and its own functions.

PyTorch reports calls of its own functions to the recorder. A function of another package is reported too where it goes
through the same protocol (:mod:`torch.overrides`), as :func:`keep_whole` makes it; outside of a recording it is the
function that it was.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.overrides import handle_torch_function, has_torch_function

from bcos_fx.tracing.arguments import tensors

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Exactly:
    """A class whose instances stay one node; those of its subclasses, which may compute something else, do not."""

    kind: type[nn.Module]


def keep_whole(function: F, name: str) -> F:
    """Return a function that computes the same, and is one node of a graph when it is called on tensors.

    Args:
        function: takes tensors, beside each other or in lists, and changes none of them.
        name: what the graph calls it; with a dot in it, so that it cannot be taken for one of PyTorch's own.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        read = tuple(tensors((args, kwargs)))
        if has_torch_function(read):
            return handle_torch_function(call, read, *args, **kwargs)
        return function(*args, **kwargs)

    call.__name__ = name
    return call  # type: ignore[return-value]
