"""What a builder reads and returns.

A builder reads the match and returns a module; it never touches the graph or a module that is in it. Where it
finds that the rewrite cannot be done it raises :class:`Refused`, which becomes a near miss with that reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from bcos_fx.rewriting.core.match import Hit
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.spelling import resolve
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
        """The module that the call calls; of a function or method the module that computes the same.

        Raises:
            Refused: the vocabulary knows no such module, or it has tensors or options that the call does not give it.
        """
        if self.call.module is not None:
            return self.call.module
        lost = _options_lost(self.call)
        if lost:
            raise Refused(f"{self.call.node.name} is given {lost[0]}, which its module does not take")
        return module_form(self.call)

    def tensor(self, parameter: str) -> Tensor | None:
        """Return the stored tensor behind an argument of a functional call."""
        value = self.call.arguments.get(parameter)
        return self._stored_tensor(value) if isinstance(value, fx.Node) else None

    def stored(self, name: str) -> Tensor:
        """Return the stored tensor that a pattern node of the op ``parameter`` matched.

        Raises:
            Refused: no pattern node of that name matched one.
        """
        node = self.hit.nodes.get(name)
        tensor = None if node is None else self._stored_tensor(node)
        if tensor is None:
            raise Refused(f"{name!r} is not a pattern node that matched a stored tensor")
        return tensor

    def _stored_tensor(self, node: fx.Node) -> Tensor | None:
        if node.op != "get_attr":
            return None
        stored = attribute(self.reader.graph_module, str(node.target))
        return stored if isinstance(stored, Tensor) else None


def _options_lost(call: Call) -> list[str]:
    """Return the arguments of a call that its module has no option for, except those left at their defaults."""
    accepted = inspect.signature(resolve(call.op.modules[0]).__init__).parameters if call.op.modules else {}
    options = {n: value for n, value in call.arguments.items() if n not in call.op.inputs and n != "inplace"}
    given = {n for n, value in options.items() if isinstance(value, fx.Node) or value != call.op.defaults.get(n)}
    return [name for name in options if name in given and call.op.attributes.get(name, name) not in accepted]


def module_form(call: Call) -> nn.Module:
    """Return the module that computes what a call of a function or method does: its op's first, with the same options.

    Raises:
        Refused: the op has no module, or its module would need tensors or other values that are not plain.
    """
    sentence = f"{call.node.name} is a call of {call.name}"
    if not call.op.modules:
        raise Refused(f"{sentence}, which no module computes; a builder can read build.call.arguments instead")
    cls = resolve(call.op.modules[0])
    accepted = inspect.signature(cls.__init__).parameters
    options = {
        call.op.attributes.get(name, name): value
        for name, value in call.arguments.items()
        if name not in call.op.inputs and call.op.attributes.get(name, name) in accepted and name != "inplace"
    }
    computed = [name for name, value in options.items() if isinstance(value, fx.Node)]
    if computed:
        tensor = computed[0]
        raise Refused(f"{sentence} whose {tensor} is a tensor: build the module from build.tensor({tensor!r})")
    try:
        module: nn.Module = cls(**options)
    except TypeError as error:
        raise Refused(f"{sentence}, and {cls.__name__} is made of other options: {error}") from error
    return module


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
