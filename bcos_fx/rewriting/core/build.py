"""What a builder reads and returns.

A builder reads the match and returns a module; it never touches the graph or a module that is in it. Where it
finds that the rewrite cannot be done it raises :class:`Refused`, which becomes a near miss with that reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from bcos_fx.rewriting.core.match import Hit
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.tracing.program import attribute


class Refused(Exception):
    """The builder cannot make the module, for the reason given."""


@dataclass(frozen=True)
class Build:
    """What a builder is given: the whole match, the call it builds from, and the graph to read."""

    hit: Hit
    call: Call
    reader: GraphReader

    @property
    def options(self) -> Options:
        """The conversion's options."""
        return self.reader.options

    @property
    def layer(self) -> nn.Module:
        """The module that the call calls."""
        if self.call.module is None:
            raise Refused(f"{self.call.node.name} is no module")
        return self.call.module

    def tensor(self, parameter: str) -> Tensor | None:
        """Return the stored tensor behind an argument of a functional call."""
        value = self.call.arguments.get(parameter)
        if not isinstance(value, fx.Node):
            return None
        found = attribute(self.reader.graph_module, str(value.target))
        return found if isinstance(found, Tensor) else None


@dataclass(frozen=True)
class Part:
    """A new module for a part of an old one, which others may still need.

    Attributes:
        name: it stands inside the old one's place, under this name.
        module: the new module.
    """

    name: str
    module: nn.Module


@dataclass(frozen=True)
class Rewired:
    """A new module, and calls elsewhere in the graph that read something else because of it.

    Attributes:
        module: the new module.
        calls: node -> its positional and named arguments from now on.
        values: node between -> what it gives then in the example run, a tensor (for its shape) or a size.
    """

    module: nn.Module
    calls: Mapping[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]]
    values: Mapping[fx.Node, Any]


Builder = Callable[[Build], nn.Module | Part | Rewired]
