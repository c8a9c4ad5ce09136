"""Which layers belong to attention, and which constants go: what B-cosification, as published, does not treat alike.

Attention weights values by what it computes from queries and keys. As published (Arya et al., "B-cosification", NeurIPS
2024, section 5, and its code) the layer that makes the values stays linear as those of queries and keys do, the layer
behind the attention becomes B-cos, and in an attention pool neither does. Layers are found by where they stand in the
graph, never by their names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import fx

from bcos_fx.rewriting.core.flow import CONSTANT, VALUE
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import predicate
from bcos_fx.rewriting.predicates.conditions import on_value_path
from bcos_fx.tracing.program import Walk

# Products of matrices: one number by number (mul) weights a map, as a gate does, and mixes nothing.
_MIXING = ("matmul", "einsum")
# Ops of the class linear that give other numbers than they read.
_COMPUTING = (
    "linear",
    "conv",
    "bcos_",
    "mean",
    "sum",
    "cumsum",
    "avg_pool",
    "adaptive_avg_pool",
    "interpolate",
    "upsample",
)


@predicate("is-stripped-here")
def is_stripped_here(reader: GraphReader, call: Call) -> Verdict:
    """Check that ``bias`` applies to all constants, or to those on value paths and the node is on one."""
    return True if reader.options.bias == "strip-all" else on_value_path(reader, call)


@predicate("is-to-be-raised")
def is_to_be_raised(reader: GraphReader, call: Call) -> Verdict:
    """Check that the layer is raised: with ``projections`` = output not an attention's values, nor after a pool."""
    # What came as a B-cos network is raised nowhere, so there is nothing to leave out.
    if reader.options.projections != "output" or reader.has_peer_layers:
        return True
    past = _past_moves(reader, call.node, forwards=True)
    readers = [(source, other) for source, other in past if reader.flow.on_value_path(other)]
    in_attention = all(_mixes(reader, mixer) for _, mixer in readers)
    # Queries and keys may come out of the same layer, in pieces of its result.
    if in_attention and any(_reads_values(reader, mixer, source) for source, mixer in readers):
        return "it makes the values of an attention, which stay linear as published (projections = 'output')"
    for _, mixer in _past_moves(reader, call.node, forwards=False):
        if _mixes(reader, mixer) and _is_pool(reader, mixer, call.node):
            return "it stands behind an attention pool, which is linear as published (projections = 'output')"
    return True


@predicate("means-over-tokens")
def means_over_tokens(reader: GraphReader, call: Call) -> Verdict:
    """Check for a mean over all but samples and features, of tokens (N, L, C) or a map of them (N, H, W, C)."""
    shape, dims = reader.shape(call.inputs[0]), call.arguments["dim"]
    dims = (dims,) if isinstance(dims, int) else dims
    if shape is None or len(shape) < 3 or not isinstance(dims, tuple | list) or call.arguments.get("dtype") is not None:
        return False
    if not all(isinstance(dim, int) for dim in dims):
        return False
    if sorted(dim % len(shape) for dim in dims) != [*range(1, len(shape) - 1)]:
        return False
    if reader.has_peer_layers:
        return "the network came as a B-cos network, so its classifier stays where it is"
    return True


@predicate("is-last-layer")
def is_last_layer(reader: GraphReader, call: Call) -> Verdict:
    """Check that the layer's result is the network's output, perhaps after a softmax or sigmoid."""
    users, seen = list(call.node.users), call.node
    while len(users) == 1 and users[0].op != "output" and _is_end(reader, users[0]):
        seen, users = users[0], list(users[0].users)
    if len(users) == 1 and users[0].op == "output":
        return True
    other = next((user.name for user in users if user.op != "output"), seen.name)
    return f"{other} reads its result, so it is not the classifier at the end"


def _is_end(reader: GraphReader, node: fx.Node) -> bool:
    call = reader.call(node)
    return call is not None and (
        call.op.linearity == "gate" or call.op.name in ("identity", "logit_layer", "log_softmax")
    )


def _past_moves(reader: GraphReader, node: fx.Node, *, forwards: bool) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield what reads a node's numbers, or made them, past what only moves them; each after its neighbor."""
    for other in list(node.users) if forwards else _values(reader, node):
        if other.meta.get("type") in ("size", "other"):
            continue
        if _moves(reader, other):
            yield from _past_moves(reader, other, forwards=forwards)
        else:
            yield node, other


def _values(reader: GraphReader, node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if reader.flow.kinds.get(source.name) == VALUE]


def _moves(reader: GraphReader, node: fx.Node) -> bool:
    """Return whether a node gives its one input's numbers in another order, or some of them."""
    call = reader.call(node)
    if call is None or call.op.linearity != "linear" or node.op == "output" or call.op.name.startswith(_COMPUTING):
        return False
    if call.module is not None and next(call.module.parameters(), None) is not None:
        return False
    return len([n for n in node.all_input_nodes if n.meta.get("type") not in ("size", "other")]) == 1


def _mixes(reader: GraphReader, node: fx.Node) -> bool:
    """Return whether a node is an attention, or a product of values with a computed matrix of weights."""
    call = reader.call(node)
    if call is None:
        return False
    if call.op.linearity == "attention":
        return True
    kinds = [reader.flow.kinds[n.name] for name in call.op.value for n in call.nodes(name)]
    return call.op.name in _MIXING and VALUE in kinds and CONSTANT not in kinds and len(kinds) == 2


def _reads_values(reader: GraphReader, mixer: fx.Node, source: fx.Node) -> bool:
    call = reader.call(mixer)
    if call is None or not _mixes(reader, mixer):
        return False
    parameters = [name for name in call.arguments if source in call.nodes(name)]
    return any(not reader.flow.is_gate(call, name, source) for name in parameters)


def _is_pool(reader: GraphReader, attention: fx.Node, layer: fx.Node) -> bool:
    """Return whether everything passes the attention, without a residual around it, and one place is left after it."""
    outputs = [node for node in reader.graph_module.graph.nodes if node.op == "output"]
    # The output is followed back with the attention removed: an input that is still reached passes it by.
    walk = Walk(outputs)
    for node in walk:
        walk.go_on([source for source in _values(reader, node) if source is not attention])
    around = any(node.op == "placeholder" for node in walk.reached)
    return not around and _one_place_is_left(reader, layer)


def _one_place_is_left(reader: GraphReader, layer: fx.Node) -> bool:
    """Return whether the layer's result, or the part that is picked out of it first, is one vector per sample."""
    shape, sample = reader.shape(layer), next(n for n in reader.graph_module.graph.nodes if n.op == "placeholder")
    batch = (reader.shape(sample) or (0,))[0]
    if shape is None:
        return False
    vector = batch * shape[-1] if reader.op(layer) != "conv2d" else batch * shape[1]
    left = [layer, *(source for source, _ in _past_moves(reader, layer, forwards=True))]
    shapes = [reader.shape(node) for node in left]
    return any(shape is not None and math.prod(shape) == vector for shape in shapes)
