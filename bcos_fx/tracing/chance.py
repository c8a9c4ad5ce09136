"""Which calls draw random numbers: a generator has moved on while they ran."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

DRAWS = "draws"
"""Key of a node's meta: in the run that was recorded it took numbers from a random generator."""


class Draws:
    """Runs calls, and notes of each whether it drew random numbers.

    The state of the generators decides, not the name of the call: dropout draws where it is trained, and whatever a
    library calls its own noise draws too.
    """

    def __init__(self) -> None:
        self.drew = False

    def run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call and return its result."""
        given = (*args, *kwargs.values())
        devices = torch.cuda.default_generators if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
        generators = [
            torch.default_generator,
            *devices,
            *(value for value in given if isinstance(value, torch.Generator)),
        ]
        before = [generator.get_state() for generator in generators]
        result = call(*args, **kwargs)
        after = [generator.get_state() for generator in generators]
        self.drew = not all(map(torch.equal, before, after))
        return result

    def note(self, node: fx.Node) -> bool:
        """Write onto a node, in place, whether the call that was run last drew, and return it."""
        drew, self.drew = self.drew, False
        node.meta[DRAWS] = drew
        return drew
