"""Running a graph: node by node, or as a function whose source holds none of the graph's own names.

fx writes the names of nodes, modules, methods and keywords into Python source. A graph may come from a file, so none
of its texts may reach Python's compiler, which also folds letters (NFKC): a name that was checked is not the name that
runs. Here every text is data. The source of :func:`compile_graph` consists of names that this module makes (``n0``,
``c1``) and of plain numbers; modules and tensors are looked up among those that are registered, never among attributes.
"""

from __future__ import annotations

import builtins
import math
import operator
import types
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from bcos_fx.errors import UsageError

Function = Callable[..., Any]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

ATTRIBUTES: Mapping[str, Function] = {
    name: operator.attrgetter(name)
    for name in "shape dtype device layout ndim T mT H mH real imag is_cuda requires_grad values indices".split()
}
"""What a graph may read of a value. Attributes are data only: through others any function of Python is in reach."""

LARGEST_INTEGER = 2**63
"""Arithmetic on sizes stays below this; torch itself counts in 64 bits."""

MOST_ITEMS = 100_000
"""So many items may a tuple or list have that arithmetic on sizes makes."""


# ---------------------------------------------------------------- what a path leads to


def module_at(root: nn.Module, path: str) -> nn.Module:
    """Return the registered submodule at a dotted path; the root itself for an empty one.

    Raises:
        AttributeError: no module is registered there.
    """
    module: nn.Module | None = root
    for part in path.split(".") if path else ():
        module = None if module is None else module._modules.get(part)
    if module is None:
        raise AttributeError(f"no module is registered at {path!r}")
    return module


def attribute(root: nn.Module, path: str) -> Any:
    """Return the parameter, buffer or module that is registered at a dotted path, or the tensor kept there.

    Raises:
        AttributeError: there is none.
    """
    owner, _, name = path.rpartition(".")
    return _stored_value(module_at(root, owner), name)


def _stored_value(owner: nn.Module, name: str) -> Any:
    for registered in (owner._parameters, owner._buffers, owner._modules):
        if name in registered:
            return registered[name]
    # Replicas of torch.nn.DataParallel keep their tensors as plain attributes, parametrisations as properties.
    stored = vars(owner).get(name)
    if stored is None and "parametrizations" in owner._modules:
        stored = getattr(owner, name)
    if not isinstance(stored, Tensor):
        raise AttributeError(f"no tensor is registered as {name!r}")
    return stored


# ---------------------------------------------------------------- what a node calls


def executable(node: fx.Node) -> Function:
    """Return what computes a node that calls a function or a method, from its arguments.

    Functions of Python itself are replaced by forms that check the kinds and sizes of what they are given: a power of
    two numbers, or a tuple times a number, can take all time and memory there is.
    """
    if node.op == "call_method":
        return _method(str(node.target))
    function = cast("Function", node.target)
    return _CHECKED.get(function, function)


def _method(name: str) -> Function:
    def call(value: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(value, name)(*args, **kwargs)

    return call


def _read_attribute(value: object, name: str) -> Any:
    if name not in ATTRIBUTES:
        raise UsageError(f"the attribute {str(name)[:40]!r} may not be read")
    return ATTRIBUTES[name](value)


def _with_size_check(function: Function, grows: Callable[[Any, Any], bool]) -> Function:
    def call(left: object, right: object) -> Any:
        if isinstance(left, Tensor) or isinstance(right, Tensor):
            return function(left, right)
        _check_kinds(left, right)
        if grows(left, right):
            raise UsageError(f"{function.__name__} of two sizes gives more than any tensor can have")
        return function(left, right)

    return call


def _check_kinds(*values: Any) -> None:
    for value in values:
        if isinstance(value, str | bytes | dict):
            raise UsageError(f"no arithmetic is done on a {type(value).__name__}")
        if type(value) is int and not -LARGEST_INTEGER <= value < LARGEST_INTEGER:
            raise UsageError("a number in the graph is larger than any size")


def _power_grows(base: object, exponent: object) -> bool:
    if not (type(base) is int and type(exponent) is int):
        return False
    return abs(exponent) * math.log2(max(abs(base), 1) + 1) > 2 * math.log2(LARGEST_INTEGER)


def _product_grows(left: object, right: object) -> bool:
    return _length(left) * _count(right) > MOST_ITEMS or _length(right) * _count(left) > MOST_ITEMS


def _sum_grows(left: object, right: object) -> bool:
    return _length(left) + _length(right) > MOST_ITEMS


def _length(value: object) -> int:
    return len(value) if isinstance(value, tuple | list) else 0


def _count(value: object) -> int:
    return value if type(value) is int else 0


_CHECKED: dict[Function, Function] = {
    operator.pow: _with_size_check(operator.pow, _power_grows),
    operator.mul: _with_size_check(operator.mul, _product_grows),
    operator.add: _with_size_check(operator.add, _sum_grows),
    # Never grows, but on a text it would be formatting, which the check of kinds refuses.
    operator.mod: _with_size_check(operator.mod, lambda left, right: False),
    builtins.getattr: _read_attribute,
}


ARITHMETIC = frozenset(
    function for module in (operator, math) for function in vars(module).values() if callable(function)
)
"""Functions of Python that a graph applies to sizes as well as to tensors."""


def run_node(node: fx.Node, root: nn.Module, args: Any, kwargs: Any) -> Any:
    """Compute what a node that calls or reads something gives, from the values of its arguments."""
    if node.op == "call_module":
        return module_at(root, str(node.target))(*args, **kwargs)
    if node.op == "get_attr":
        return attribute(root, str(node.target))
    return executable(node)(*args, **kwargs)


# ---------------------------------------------------------------- a graph as one function


def steps(root: nn.Module, known: Mapping[fx.Node, Any], end: fx.Node) -> Iterator[tuple[fx.Node, Any]]:
    """Run what the value of a node is computed from, and yield every node that is run, with its value; ``end`` last.

    Args:
        root: holds the modules and tensors of the graph that ``end`` is in; not changed.
        known: node -> value. What lies before these nodes is not run, unless something else needs it.
        end: the node.

    Values are dropped after their last use, so no more is kept than an ordinary forward pass keeps.
    """
    needed = Walk([] if end in known else [end])
    for node in needed:
        needed.go_on([source for source in node.all_input_nodes if source not in known])
    # How many of the nodes that will run still read each value.
    left = Counter(source for node in needed.reached for source in node.all_input_nodes)
    values = dict(known)
    for node in end.graph.nodes:
        if node not in needed.reached:
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        values[node] = run_node(node, root, args, kwargs)
        yield node, values[node]
        for source in node.all_input_nodes:
            left[source] -= 1
            if not left[source] and source is not end:
                del values[source]


def evaluate(root: nn.Module, known: Mapping[fx.Node, Any], end: fx.Node) -> Any:
    """Return the value of a node, computed from nodes whose values are known; see :func:`steps`."""
    value = known.get(end)
    for _, value in steps(root, known, end):  # noqa: B007 - the last one is that of the node
        pass
    return value


class Walk:
    """Nodes, each once, to which more can be added while they are iterated over.

    The caller gives the nodes to go on to, and not a function that finds them: a call into a later room would make this
    one depend on it.
    """

    def __init__(self, starts: Iterable[fx.Node]) -> None:
        self.reached = set(starts)
        self._pending = list(self.reached)

    def __iter__(self) -> Iterator[fx.Node]:
        while self._pending:
            yield self._pending.pop()

    def go_on(self, nodes: Collection[fx.Node]) -> None:
        """Add nodes that were not reached yet."""
        new = set(nodes) - self.reached
        self.reached |= new
        self._pending += new


def everything_read(starts: Iterable[fx.Node]) -> set[fx.Node]:
    """Return nodes, and all that they are computed from."""
    walk = Walk(starts)
    for node in walk:
        walk.go_on(node.all_input_nodes)
    return walk.reached


def compile_graph(graph: fx.Graph) -> Function:
    """Return a function ``(root, *inputs)`` that runs a graph over the modules and tensors of ``root``.

    Values are dropped after their last use. The function holds no module or tensor, so that it serves copies too.
    """
    return _Source(graph).function()


class _Source:
    """Python source for a graph, made of names of our own; everything else lies in ``constants``."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._names = {node: f"n{place}" for place, node in enumerate(graph.nodes)}
        self._inputs = {self._names[n]: str(n.target) for n in graph.nodes if n.op == "placeholder"}
        self._taken = {"root", *self._names.values()}
        self._texts: dict[str, str] = {}
        self._constants: dict[str, Any] = {}
        self._parameters: list[str] = []
        self._lines: list[str] = []

    def function(self) -> Function:
        """Return the function that runs the source."""
        self._write_lines()
        body = "\n    ".join([*self._lines, "return None"])
        source = f"def forward({', '.join(['root', *self._parameters])}):\n    {body}\n"
        (code,) = [item for item in compile(source, "<graph>", "exec").co_consts if isinstance(item, types.CodeType)]
        named = code.replace(co_name="forward", co_varnames=tuple(map(self._public_name, code.co_varnames)))
        defaults = tuple(node.args[0] for node in self._graph.nodes if node.op == "placeholder" and node.args)
        return types.FunctionType(named, self._constants | {"__builtins__": builtins}, argdefs=defaults)

    def _write_lines(self) -> None:
        last = {source: node for node in self._graph.nodes for source in node.all_input_nodes}
        for node in self._graph.nodes:
            self._write(node)
            done = [self._names[source] for source in node.all_input_nodes if last[source] is node]
            if done and node.op != "output":
                self._lines.append(f"{' = '.join(done)} = None")

    def _public_name(self, name: str) -> str:
        """Return the name by which callers give an input; it is put back after the compiler, as any other text."""
        wanted = self._inputs.get(name, name)
        return name if wanted in self._taken else wanted

    def _write(self, node: fx.Node) -> None:
        name = self._names[node]
        if node.op == "placeholder":
            self._parameters.append(name)
        elif node.op == "output":
            self._lines.append(f"return {self._expression(node.args[0])}")
        elif node.op == "get_attr":
            owner, _, stored = str(node.target).rpartition(".")
            self._lines.append(f"{name} = {self._constant(_stored_value)}({self._path(owner)}, {self._text(stored)})")
        else:
            called = self._path(str(node.target)) if node.op == "call_module" else self._constant(executable(node))
            self._lines.append(f"{name} = {called}({self._arguments(node)})")

    def _arguments(self, node: fx.Node) -> str:
        given = [self._expression(value) for value in node.args]
        if node.kwargs:
            named = [f"{self._text(key)}: {self._expression(value)}" for key, value in node.kwargs.items()]
            given.append(f"**{{{', '.join(named)}}}")
        return ", ".join(given)

    def _path(self, path: str) -> str:
        return "root" + "".join(f"._modules[{self._text(part)}]" for part in path.split(".") if part)

    def _expression(self, value: Any) -> str:
        """Return the source text of an argument: nodes, plain numbers and containers, anything else as a constant."""
        kind = type(value)
        if isinstance(value, fx.Node):
            return self._names[value]
        if value is None or kind is bool or (kind is int and abs(value) < LARGEST_INTEGER):
            return repr(value)
        if kind is float and math.isfinite(value):
            return repr(value)
        if kind is str:
            return self._text(value)
        return self._container(value) or self._constant(value)

    def _container(self, value: Any) -> str | None:
        kind = type(value)
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self._expression(k)}: {self._expression(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return f"[{', '.join(map(self._expression, value))}]"
        if kind is tuple:
            return "(" + "".join(f"{self._expression(item)}, " for item in value) + ")"
        if isinstance(value, slice):
            return self._container_source(slice, [value.start, value.stop, value.step])
        if isinstance(value, torch.Size):
            return self._container_source(torch.Size, [tuple(value)])
        if isinstance(value, tuple):  # a named one
            return self._container_source(kind, list(value))
        return None

    def _container_source(self, kind: Function, items: list[Any]) -> str:
        return f"{self._constant(kind)}({', '.join(map(self._expression, items))})"

    def _text(self, text: str) -> str:
        if text not in self._texts:
            self._texts[text] = self._constant(text)
        return self._texts[text]

    def _constant(self, value: object) -> str:
        name = f"c{len(self._constants)}"
        self._constants[name] = value
        return name


def form_of_run(network: nn.Module, inputs: Sequence[Any]) -> Hashable | None:
    """Return what decides which operations a run of a network consists of, for the same graph.

    Args:
        network: in eval mode.
        inputs: that it is run on; their numbers do not matter.

    Returns:
        The code of all parts, autocast, and the form of the inputs; None where hooks, compilation or a forward of one
        module's own take part.
    """
    modules = list(network.modules())
    if any(getattr(torch_module, f"_global{name}") for name in _HOOKS) or any(map(_is_altered, modules)):
        return None
    code = tuple((type(module).__call__, type(module).forward) for module in modules)
    form = tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else type(x) for x in inputs)
    kinds = {x.device.type for x in inputs if isinstance(x, Tensor)}
    return code, form, tuple(sorted((kind, torch.is_autocast_enabled(kind)) for kind in kinds))


def _is_altered(module: nn.Module) -> bool:
    attributes = vars(module)
    return any(attributes.get(name) for name in (*_HOOKS, "forward", "_compiled_call_impl"))
