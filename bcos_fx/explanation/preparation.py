"""Prepare networks for analysis and explanation, which handle one form of them.

A converted network has it already; any other module is traced, and its layers and norms take our form at B = 1, which
is the same function. Neither the network nor its parameters are changed, and parameters stay the same objects.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from bcos_fx.errors import UsageError, nearest
from bcos_fx.network import BcosNetwork
from bcos_fx.rewriting.core.ending import Ending, read_ending
from bcos_fx.rewriting.core.flow import EXPLAINED
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.main_input import main_input
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.passes import Engine
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import Recipe
from bcos_fx.rewriting.core.rewrite import end_at
from bcos_fx.rewriting.core.rulefile import load_rules, view_rules
from bcos_fx.tracing.program import everything_read

_FILES = ("canonical", "interop-bcos", "norm", "linear", "explain")
_LIKE = 5
_EDGES = ("placeholder", "get_attr", "output")

SourceNames = str | Sequence[str] | None
"""What outputs are explained by: the main input, an input or a layer by name, or several of them."""


@dataclass(frozen=True)
class Prepared:
    """A graph ready to be analyzed.

    Attributes:
        graph_module: the graph, over the network's own parameters.
        starts: what outputs are explained by: name of an input or a layer -> the encoded input, the input, or the
            layer's result.
        end: what is explained, for people: ``output``, ``logits`` or a layer's name.
        scores: what is explained are probabilities: each of these names, as ``output``, explains scores before them.
    """

    graph_module: fx.GraphModule
    starts: Mapping[str, fx.Node]
    end: str
    scores: tuple[str, ...]


def recipe() -> Recipe:
    """Return the rules of explanation views: those that the program has registered, then the shipped ones."""
    shipped = _shipped()
    return dataclasses.replace(shipped, rules=(*view_rules(), *shipped.rules))


LOGITS = "logits"
"""What ``output`` calls the scores before a network's probabilities."""


# Rule files do not change while a program runs; the rules that it registers itself may.
@functools.cache
def _shipped() -> Recipe:
    files = [rules_directory() / f"{name}.toml" for name in _FILES]
    return Recipe(
        name="explanation",
        description="The view that explanations are computed on.",
        source="Böhle, Fritz and Schiele, B-cos Networks, CVPR 2022, sec. 3.2",
        rules=tuple(load_rules(files)),
        options=Options(input="none"),
        fixed={},
        hashes={},
    )


def prepare(
    network: BcosNetwork | fx.GraphModule, *, output: str | None = None, source: SourceNames = None
) -> Prepared:
    """Prepare a network for analysis; it is not changed.

    Args:
        network: a converted network, or a freshly traced graph, which becomes part of the result.
        output: what is explained: None for the network's output, ``logits`` for the value before a final softmax or
            sigmoid, or the name of a layer or node.
        source: what it is explained by: None for the main input, or the name of an input, a layer or a node; or
            several of these names.

    Raises:
        UsageError: nothing has that name, it holds integers, or the source does not lead to the output.
    """
    graph_module = network.graph_module() if isinstance(network, BcosNetwork) else network
    # Before the rules run: they may rename or merge the layers that the caller names.
    if output == LOGITS:
        _end_in_scores(graph_module)
    elif output is not None:
        end_at(graph_module, find_layer(graph_module, output))
    scores = (LOGITS,) if _ending(graph_module).scores else _reader(graph_module).flow.before_gates
    # These phases give layers and norms our form at B = 1: the same function, with parts that can be held fixed.
    Engine(recipe()).run(graph_module, ("canonical", "norm", "linear"))
    starts = _starts(graph_module, source)
    for start in starts.values():
        # From here on values count as linear in the source, whatever was computed before.
        start.meta[EXPLAINED] = True
    return Prepared(graph_module, starts, output or "output", scores)


def _starts(graph_module: fx.GraphModule, source: SourceNames) -> dict[str, fx.Node]:
    if source is None:
        start = _main_entry(graph_module)
        _check_leads_somewhere(graph_module, start, str(input_of(start).target))
        return {str(input_of(start).target): start}
    names = [source] if isinstance(source, str) else list(source)
    if not names or len(set(names)) < len(names):
        raise UsageError(f"the sources are {names}", hint="name at least one input or layer, and none twice")
    starts = {name: _find_source(graph_module, name) for name in names}
    for name, start in starts.items():
        _check_leads_somewhere(graph_module, start, name)
    if len(set(starts.values())) < len(starts):
        raise UsageError(f"two of the sources {names} are the same value", hint="name each of them once")
    return starts


def _find_source(graph_module: fx.GraphModule, name: str) -> fx.Node:
    """Find an input (its encoding, if it has one) or a layer's result by name."""
    inputs = {str(node.target): node for node in graph_module.graph.find_nodes(op="placeholder")}
    called = {str(node.target) for node in graph_module.graph.find_nodes(op="call_module")}
    is_input = name in inputs and (_is_floating(inputs[name]) or name not in called)  # a layer may have its name
    start = entry(inputs[name], graph_module) if is_input else _find_layer(graph_module, name, tuple(inputs))
    if not _is_floating(start):
        raise UsageError(
            f"{name!r} holds integers (token indices, a mask), which no weight multiplies",
            hint='explain by what is made of them: source="the embedding layer\'s name"',
        )
    return start


def _find_layer(graph_module: fx.GraphModule, name: str, inputs: Sequence[str]) -> fx.Node:
    """Find a layer; the error for an unknown name lists the inputs too, because they are sources as well."""
    try:
        return find_layer(graph_module, name)
    except UsageError as error:
        # A mistyped input is proposed before a layer, since most sources are inputs.
        close = difflib.get_close_matches(name, inputs, n=1, cutoff=0.6)
        kind = "inputs are" if len(inputs) > 1 else "input is"
        raise UsageError(
            f"{error.what}, and its {kind} {', '.join(inputs)}",
            hint=f"did you mean {close[0]!r}?" if close else error.hint,
        ) from error


def find_layer(graph_module: fx.GraphModule, name: str) -> fx.Node:
    """Return the node that gives a layer's result.

    Args:
        graph_module: the graph.
        name: of a node, or the path of a module; of the nodes inside a module the last is its result.

    Raises:
        UsageError: nothing has that name; names the nearest.
    """
    nodes: list[fx.Node] = [node for node in graph_module.graph.nodes if node.op not in _EDGES]
    inside: fx.Node | None = None
    for node in nodes:
        path = node.meta.get("module_path") or ""
        if node.op == "call_module" and name == str(node.target):
            return _result(node, nodes)
        if name == node.name:
            return node
        if any(place == name or place.startswith(f"{name}.") for place in (path, str(node.target))):
            inside = node
    if inside is None:
        called = [str(node.target) for node in graph_module.graph.find_nodes(op="call_module")]
        close = difflib.get_close_matches(name, called, n=_LIKE, cutoff=0.4)
        hint = f"for example {', '.join(close)}" if close else nearest(name, called)
        raise UsageError(f"the network has no layer named {name!r}", hint=hint)
    return inside


def _result(layer: fx.Node, nodes: list[fx.Node]) -> fx.Node:
    """Return the node with the result of a layer as traced: the flattening, if the layer was moved before a pooling."""
    origin = layer.meta.get("origin")
    return layer if origin is None else [node for node in nodes if node.meta.get("origin") == origin][-1]


def _ending(graph_module: fx.GraphModule) -> Ending:
    return read_ending(graph_module.graph.output_node().all_input_nodes[0], _reader(graph_module).call)


def _reader(graph_module: fx.GraphModule) -> GraphReader:
    return GraphReader(graph_module, vocabulary(), Options())


def _end_in_scores(graph_module: fx.GraphModule) -> None:
    """Put the scores in the place of the probabilities that they are made into, in place.

    What moves probabilities is copied for the scores: the copies have names of their own, because a node's name stands
    for one value in the view and in the network.
    """
    graph, ending = graph_module.graph, _ending(graph_module)
    output = graph.output_node()
    scores: dict[fx.Node, fx.Node] = {}
    with graph.inserting_before(output):
        for node in list(graph.nodes):
            if node in ending.scores:
                before = scores.get(ending.scores[node], ending.scores[node])
                scores[node] = _negated(before) if node in ending.falling else before
            # A reshape of probabilities has to happen to the scores as well, once for each.
            elif node in ending.moved and not scores.keys().isdisjoint(node.all_input_nodes):
                scores[node] = graph.node_copy(node, lambda source: scores.get(source, source))
    (end,) = output.all_input_nodes
    end_at(graph_module, scores.get(end, end))


def _negated(node: fx.Node) -> fx.Node:
    negated = node.graph.call_function(operator.neg, (node,))
    negated.meta.update(node.meta)
    return negated


def entry(node: fx.Node, graph_module: fx.GraphModule) -> fx.Node:
    """Return the node at which an input begins to be linear: its encoding [x, 1 - x], if it has one, or itself."""
    for user in node.users:
        op = vocabulary().of(user, graph_module)
        if op is not None and op.name == "input_encoding":
            return user
    return node


def input_of(start: fx.Node) -> fx.Node:
    """Return the input that an entry belongs to."""
    return start if start.op == "placeholder" else start.all_input_nodes[0]


def _main_entry(graph_module: fx.GraphModule) -> fx.Node:
    """Return the main input, or its encoding if it has one."""
    nodes = list(graph_module.graph.nodes)
    inputs = main_input(nodes, {node: vocabulary().call(node, graph_module) for node in nodes})
    if not inputs:
        raise UsageError(
            "the network reads integers (token indices), which no weight multiplies",
            hint='explain it by the embeddings: source="the embedding layer\'s name"',
        )
    return entry(inputs[0], graph_module)


def _is_floating(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return dtype is None or bool(dtype.is_floating_point or dtype.is_complex)


def _check_leads_somewhere(graph_module: fx.GraphModule, start: fx.Node, name: str) -> None:
    if start not in everything_read([graph_module.graph.output_node()]):
        raise UsageError(f"{name!r} does not lead to the explained value", hint="name an earlier layer")
