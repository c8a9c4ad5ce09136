"""The op vocabulary: one canonical name for every spelling of an operation.

``nn.ReLU()``, ``F.relu(x)``, ``torch.relu(x)`` and ``x.relu()`` are one thing, ``relu``. The vocabulary is data
(``rules/ops.toml``), to which a program can add ops of its own (:mod:`bcos_fx.rewriting.core.declaration`); this module
reads a node of a graph as a :class:`Call` of one canonical op with named arguments.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from bcos_fx.errors import RuleError, nearest
from bcos_fx.rewriting.core.declaration import read_op
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.op import Op
from bcos_fx.rewriting.core.refused import refused_names
from bcos_fx.rewriting.core.spelling import is_own, resolve
from bcos_fx.rewriting.core.toml import read_toml
from bcos_fx.tracing.modules import qualified_name
from bcos_fx.tracing.program import executable
from bcos_fx.tracing.whole import Exactly


@dataclass(frozen=True)
class Call:
    """A node of a graph, read as a call of one canonical op.

    Attributes:
        op: the canonical op.
        node: the node itself.
        module: the module that the node calls, or None for a function or method.
        arguments: parameter name -> argument; data are nodes (or lists of them).
        root: holds the tensors that the graph reads.
    """

    op: Op
    node: fx.Node
    module: nn.Module | None
    arguments: Mapping[str, Any]
    root: nn.Module

    @property
    def name(self) -> str:
        """What is called: the op's name, or of a family of functions the function's own."""
        return name_of(self.op, self.node.target if self.module is None else type(self.module))

    @property
    def function(self) -> Callable[..., Any]:
        """What is called: the module, the function, or the method as a function."""
        return executable(self.node) if self.module is None else self.module

    def as_function(self, places: Mapping[fx.Node, int]) -> Callable[..., Tensor]:
        """Return the call as a function of values, ``places`` telling which of them stands for which node.

        It holds what the node reads now, so that it outlives a change of the node.
        """
        function, template = self.function, (self.node.args, dict(self.node.kwargs))

        def apply(*values: Tensor) -> Tensor:
            args, kwargs = fx.node.map_arg(template, lambda node: values[places[node]])
            result: Tensor = function(*args, **kwargs)
            return result

        return apply

    def nodes(self, parameter: str) -> list[fx.Node]:
        """Return the nodes that one argument holds (several for a list of tensors, none for a literal)."""
        nodes: list[fx.Node] = []
        fx.node.map_arg(self.arguments.get(parameter), nodes.append)
        return nodes

    @property
    def operands(self) -> list[fx.Node]:
        """The nodes that the call reads, in the order of its parameters."""
        return [node for name in self.arguments for node in self.nodes(name)]

    @property
    def inputs(self) -> list[fx.Node]:
        """The data that the call reads: its operands, stored tensors (parameters and buffers) left out."""
        return [node for node in self.operands if node.op != "get_attr"]

    @property
    def read(self) -> list[fx.Node]:
        """The nodes whose numbers the call reads, without those that only give a form."""
        form = {node for name in self.op.like for node in self.nodes(name)}
        form -= {node for name in self.arguments if name not in self.op.like for node in self.nodes(name)}
        return [node for node in self.node.all_input_nodes if node not in form]


def name_of(op: Op, called: object) -> str:
    """Return the op's name, or of a family of functions the name of the one that is called."""
    return str(getattr(called, "__name__", called)) if op.family else op.name


class Vocabulary:
    """All known ops, found by name, module class, function or method."""

    def __init__(self, ops: Mapping[str, Op]) -> None:
        self.ops = dict(ops)
        self._modules: dict[type, Op] = {}
        self._functions: dict[object, Op] = {}
        self._methods: dict[str, Op] = {}
        self._peers: dict[str, Op] = {}
        for op in ops.values():
            self._modules |= {resolve(name): op for name in op.modules}
            self._functions |= {resolve(name): op for name in op.functions}
            self._methods |= dict.fromkeys(op.methods, op)
            self._peers |= dict.fromkeys(op.peers, op)
        self.members = self._members()
        self._own = [resolve(name) for op in ops.values() for name in op.modules if is_own(name)]
        # The first is the shipped one: what a program declares replaces none of them.
        self._forms = {
            vars(kind)["plain_class"]: kind for kind in reversed(self._modules) if "plain_class" in vars(kind)
        }
        stored = [op for op in ops.values() if not op.view]
        self.spellings = {resolve(name): name for op in stored for name in (*op.modules, *op.functions)}

    def _members(self) -> frozenset[str]:
        """Return the names of functions in families, by which rules may name one of them alone."""
        spelled = [name for op in self.ops.values() if op.family for name in (*op.functions, *op.methods)]
        return frozenset(name.rpartition(".")[2] for name in spelled) - set(self.ops)

    def __getitem__(self, name: str) -> Op:
        """Return the op of that name.

        Raises:
            RuleError: no op has that name.
        """
        if name not in self.ops:
            raise RuleError(f"no op is named {name!r}", hint=nearest(name, self.ops))
        return self.ops[name]

    def __iter__(self) -> Iterator[Op]:
        return iter(self.ops.values())

    @property
    def leaves(self) -> tuple[str | Exactly, ...]:
        """The classes beside PyTorch's and bcos_fx's whose modules are one op, and which tracing has to keep whole."""
        return (*self._peers, *map(Exactly, self._own))

    def of_class(self, kind: type[nn.Module]) -> Op | None:
        """Return the op of a class of layers."""
        return self._modules.get(kind)

    def form_of(self, plain: type[nn.Module]) -> type[nn.Module] | None:
        """Return the class that takes the place of a layer of ``plain`` in B-cos networks, by its ``plain_class``."""
        return self._forms.get(plain)

    def bearer(self, op: Op) -> Op | None:
        """Return another op of this vocabulary that has a spelling of ``op``, if any has."""
        taken = [self._modules.get(resolve(name)) for name in op.modules]
        taken += [self._functions.get(resolve(name)) for name in op.functions]
        taken += [self._methods.get(name) for name in op.methods]
        return next((other for other in taken if other is not None and other.name != op.name), None)

    def of(self, node: fx.Node, root: nn.Module) -> Op | None:
        """Return the op that a node means, or None for one that no entry knows.

        Placeholders, parameters and outputs are the ops ``input``, ``parameter`` and ``output``.
        """
        if node.op == "call_module":
            kind = type(root.get_submodule(str(node.target)))
            return self._modules.get(kind) or self._peers.get(qualified_name(kind))
        if node.op == "call_function":
            return self._functions.get(node.target)
        if node.op == "call_method":
            return self._methods.get(str(node.target))
        return BOUNDARY[node.op]

    def refusal(self, node: fx.Node, root: nn.Module) -> str:
        """Return why no entry knows a node, and what could stand in its place, as far as that is known."""
        called = type(root.get_submodule(str(node.target))) if node.op == "call_module" else node.target
        refused = refused_names().get(getattr(called, "__name__", str(called)))
        return "the op vocabulary does not know this operation" if refused is None else str(refused)

    def call(self, node: fx.Node, root: nn.Module) -> Call | None:
        """Read a node as a :class:`Call`, or None where no entry knows it."""
        op = self.of(node, root)
        if op is None:
            return None
        given = arguments_of(op, node, node.args, node.kwargs)
        if node.op != "call_module":
            return Call(op, node, None, given, root)
        # What a function takes as arguments a module has as attributes.
        module = root.get_submodule(str(node.target))
        missing = [p for p in op.parameters if p not in given]
        options = {p: getattr(module, op.attributes.get(p, p), op.defaults.get(p)) for p in missing}
        return Call(op, node, module, given | options, root)


def arguments_of(op: Op, node: fx.Node, args: Any, kwargs: Any) -> dict[str, Any]:
    """Give a node's arguments, or what stands for them, the names of the op's parameters."""
    parameters = op.inputs if node.op == "call_module" else op.parameters
    if op.variadic in parameters:
        at = parameters.index(op.variadic)
        rest = args[at:]
        # x.reshape(2, 3) and x.reshape((2, 3)) are one call.
        packed = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
        args = (*args[:at], tuple(packed)) if rest else args
    bound: dict[str, Any] = dict(zip(parameters, args, strict=False))
    bound |= {op.aliases.get(name, name): value for name, value in kwargs.items()}
    return {p: op.defaults.get(p) for p in parameters if node.op != "call_module"} | bound


BOUNDARY = {
    "placeholder": Op("input", "linear", parameters=()),
    "get_attr": Op("parameter", "constant", parameters=()),
    "output": Op("output", "linear"),
}
"""The ops of a graph's edges, by fx's own kind of node."""


_DECLARED: dict[str, Op] = {}


@functools.cache
def vocabulary() -> Vocabulary:
    """Return the shipped vocabulary with the ops that this program has declared besides."""
    return Vocabulary(_shipped() | _DECLARED)


@functools.cache
def _shipped() -> dict[str, Op]:
    document = read_toml(rules_directory() / "ops.toml")
    return {name: read_op(name, document.table(name), shipped=True) for name in document.keys()}


def declare(op: Op) -> None:
    """Add an op to the vocabulary of this program. The same place may declare it again, as a notebook does.

    Raises:
        RuleError: another op has its name, or one of its spellings.
    """
    old = vocabulary().ops.get(op.name)
    if old is not None and old.declared != op.declared:
        raise RuleError(
            f"two ops are named {op.name!r}",
            where=f"{op.declared} and {old.declared or 'rules/ops.toml of bcos_fx'}",
            hint="rename yours",
        )
    other = vocabulary().bearer(op)
    if other is not None:
        raise RuleError(
            f"what the op {op.name!r} is spelled as is the op {other.name!r} already",
            where=f"{op.declared} and {other.declared or 'rules/ops.toml of bcos_fx'}",
            hint=f"use {other.name!r} in your rules",
        )
    _DECLARED[op.name] = op
    forget_vocabulary()


def forget_vocabulary() -> None:
    """Make :func:`vocabulary` resolve its spellings again: something else is registered under one of them."""
    vocabulary.cache_clear()
