"""The op vocabulary: one canonical name for every spelling of an operation.

``nn.ReLU()``, ``F.relu(x)``, ``torch.relu(x)`` and ``x.relu()`` are one thing, ``relu``. The vocabulary
is data (``rules/ops.toml``); this module resolves its names, reads a node of a graph as a :class:`Call`
of one canonical op with named arguments, and gives the op's linearity class.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from bcos_fx.errors import RuleError, nearest
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.refused import refused_names
from bcos_fx.rewriting.core.toml import Table, read_toml
from bcos_fx.tracing.modules import qualified_name

CLASSES = frozenset(
    "linear selection ratio gate product quotient normalise attention constant opaque".split(),
)
"""Linearity classes: how an op maps constants, values and gates (see :mod:`bcos_fx.rewriting.core.flow`)."""


@dataclass(frozen=True)
class Op:
    """One canonical operation.

    Attributes:
        name: the canonical name, as rules use it.
        linearity: one of :data:`CLASSES`.
        modules, functions, methods: dotted names of the spellings.
        parameters: names of the call's arguments in order.
        defaults: values of arguments that a call leaves out; an argument not listed defaults to None.
        aliases: other keywords for a parameter.
        attributes: parameter -> attribute of the module, where the names differ.
        inputs: parameters that a module takes in its call; its other parameters are its attributes.
        value: parameters through which a value flows; the rest may only weight it.
        gate: of a product: the factor that is taken for the gate where nothing else tells; by convention.
        constants: parameters that add a constant to the result, such as a bias.
        like: parameters of which only shape, dtype or device counts, such as the other tensor of ``x.to(other)``.
        variadic: the parameter that takes all remaining positional arguments, if any.
        rectifier: little of what is negative comes out again.
        view: it stands in explanation views only, so no file can hold it.
        peers: qualified names of other packages' module classes. They are compared, never imported, and no file can
            hold such a module.
        joined: the operands lie beside each other in the result (joined, written into one another): they are not
            broadcast to each other.
        family: its spellings are many functions of one kind, so that a message names the function.
        instead: of an op that carries no value: what a network can use in its place.
    """

    name: str
    linearity: str
    modules: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ("input",)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ("input",)
    value: tuple[str, ...] = ("input",)
    gate: str | None = None
    constants: tuple[str, ...] = ()
    like: tuple[str, ...] = ()
    variadic: str | None = None
    rectifier: bool = False
    view: bool = False
    peers: tuple[str, ...] = ()
    joined: bool = False
    family: bool = False
    instead: str | None = None


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
        if not self.op.family:
            return self.op.name
        called = self.node.target if self.module is None else type(self.module)
        return str(getattr(called, "__name__", called))

    def nodes(self, parameter: str) -> list[fx.Node]:
        """Return the nodes that one argument holds (several for a list of tensors, none for a literal)."""
        found: list[fx.Node] = []
        fx.node.map_arg(self.arguments.get(parameter), found.append)
        return found

    @property
    def inputs(self) -> list[fx.Node]:
        """The data that the call reads, in the order of its parameters, parameters of the model left out."""
        return [node for name in self.arguments for node in self.nodes(name) if node.op != "get_attr"]

    @property
    def read(self) -> list[fx.Node]:
        """The nodes whose numbers the call reads: all but those of which only the form counts."""
        return [node for name in self.arguments if name not in self.op.like for node in self.nodes(name)]


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
        stored = [op for op in ops.values() if not op.view]
        self.spellings = {resolve(name): name for op in stored for name in (*op.modules, *op.functions)}

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
    def peers(self) -> frozenset[str]:
        """Qualified names of other packages' classes that are known; tracing keeps such modules whole."""
        return frozenset(self._peers)

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
        if node.op == "call_module":
            module = root.get_submodule(str(node.target))
            given = arguments_of(op, node, node.args, node.kwargs)
            missing = [p for p in op.parameters if p not in given]
            options = {p: getattr(module, op.attributes.get(p, p), op.defaults.get(p)) for p in missing}
            return Call(op, node, module, given | options, root)
        return Call(op, node, None, arguments_of(op, node, node.args, node.kwargs), root)


def arguments_of(op: Op, node: fx.Node, args: Any, kwargs: Any) -> dict[str, Any]:
    """Give a node's arguments, or what stands for them, the names of the op's parameters."""
    parameters = op.inputs if node.op == "call_module" else op.parameters
    if op.variadic in parameters:
        at = parameters.index(op.variadic)
        rest = args[at:]
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


@functools.cache
def _roots() -> dict[str, Any]:
    return {
        "torch": torch,
        "nn": nn,
        "F": torch.nn.functional,
        "operator": operator,
        "builtins": builtins,
        "math": math,
        "aten": torch.ops.aten,
        "bcos": importlib.import_module("bcos_fx.nn"),
        "tracing": importlib.import_module("bcos_fx.tracing.functional"),
    }


def resolve(name: str) -> Any:
    """Return the class or function that a dotted name of ``ops.toml`` means.

    Only names below a fixed list of roots resolve, so a name can never import anything.

    Raises:
        RuleError: no such name.
    """
    root, *path = name.split(".")
    roots = _roots()
    if root not in roots:
        raise RuleError(f"{name!r} is below no known root", hint=nearest(root, roots))
    found: Any = roots[root]
    for part in path:
        if not hasattr(found, part):
            raise RuleError(f"{name!r} does not exist in torch {torch.__version__}")
        found = getattr(found, part)
    return found


def _read_op(name: str, table: Table) -> Op:
    parameters = table.strings("parameters", default=("input",))
    first = parameters[:1]
    op = Op(
        name=name,
        linearity=table.choice("class", CLASSES),
        modules=table.strings("modules"),
        functions=table.strings("functions"),
        methods=table.strings("methods"),
        parameters=parameters,
        defaults=table.mapping("defaults"),
        aliases=table.mapping("aliases"),
        attributes=table.mapping("attributes"),
        inputs=table.strings("inputs", default=first),
        value=table.strings("value", default=first),
        gate=table.text("gate", default=None),
        constants=table.strings("constants"),
        like=table.strings("like"),
        variadic=table.text("variadic", default=None),
        rectifier=table.flag("rectifier"),
        view=table.flag("view"),
        peers=table.strings("peers"),
        joined=table.flag("joined"),
        family=table.flag("family"),
        instead=table.text("instead", default=None),
    )
    table.finish()
    return op


@functools.cache
def vocabulary() -> Vocabulary:
    """Return the shipped vocabulary, read once."""
    document = read_toml(rules_directory() / "ops.toml")
    return Vocabulary({name: _read_op(name, document.table(name)) for name in document.keys()})
