"""Builders and predicates that bring attention to one form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from bcos_fx import nn as bnn
from bcos_fx.nn.construction import construct
from bcos_fx.rewriting.builders.layers import new_parameter
from bcos_fx.rewriting.core.build import Build, Part, Refused
from bcos_fx.rewriting.core.match import Hit, Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder, predicate


@predicate("undoes-a-transpose")
def undoes_a_transpose(reader: GraphReader, call: Call) -> Verdict:
    """Check that the two dimensions exchanged are those that the transpose before it exchanged."""
    before = reader.call(call.inputs[0])
    while before is not None and before.op.name == "clone":
        before = reader.call(before.inputs[0])
    shape = reader.shape(call.node)
    if before is None or before.op.name != "transpose" or shape is None:
        return False
    return _exchanged(call, len(shape)) == _exchanged(before, len(shape))


def _exchanged(call: Call, rank: int) -> set[int]:
    return {int(call.arguments[name]) % rank for name in ("dim0", "dim1")}


@predicate("restores-rows")
def restores_rows(reader: GraphReader, call: Call) -> Verdict:
    """Check that what was reshaped to rows before a layer regains its shape, but for the number of features."""
    layer = call.inputs[0]
    flat = layer.all_input_nodes[0]
    before, after = reader.shape(flat.all_input_nodes[0]), reader.shape(call.node)
    rows = reader.shape(flat)
    if before is None or after is None or rows is None or len(before) < 3:
        return False
    return before[:-1] == after[:-1] and before[-1] == rows[-1] and reader.shape(layer) == (*rows[:-1], after[-1])


@builder("attention-with-dropout")
def attention_with_dropout(build: Build) -> nn.Module:
    """Build an attention that drops in train mode the share of its weights that the call was seen to drop."""
    given = build.call.arguments
    options = {name: given[name] for name in ("is_causal", "scale", "enable_gqa")}
    if any(isinstance(value, fx.Node) for value in options.values()):
        raise Refused("an option of it is computed while the network runs")
    attention = bnn.Attention(build.call.node.meta["training_value"], **options)
    return attention.train(build.reader.graph_module.training)


# ---------------------------------------------------------------- layers whose result is cut into pieces


@predicate("packs-values-with-gates")
def packs_values_with_gates(reader: GraphReader, call: Call) -> Verdict:
    """Check that the node is one piece of a layer's result, where some pieces are values and others only weights.

    Also the last piece that is left, where the others have layers of their own by now. A network that came as a B-cos
    network keeps its layers, whose weights go back to where they came from.
    """
    if reader.has_peer_layers or reader.options.projections == "output":  # then the values stay plain, as the gates do
        return False
    fork = call.inputs[0]
    pieces = _pieces(reader, fork)
    if pieces is None or not isinstance(call.arguments["index"], int):
        return False
    carries = {reader.flow.on_value_path(user) for user in fork.users}
    taken = {int(user.args[1]) % pieces for user in fork.users}  # type: ignore[arg-type]
    return len(carries) == 2 or (True in carries and len(taken) < pieces)


def _pieces(reader: GraphReader, fork: fx.Node) -> int | None:
    """Return how many pieces a node is read in; None if something reads it otherwise, or what it is made of."""
    if not all(reader.op(user) == "getitem" and isinstance(user.args[1], int) for user in fork.users):
        return None
    node = fork
    # Between the layer and the pieces nothing may be read by others: its features are taken apart.
    while reader.op(node) in ("unbind", "split", "chunk", "permute", "reshape"):
        if node is not fork and len(node.users) > 1:
            return None
        node = node.all_input_nodes[0]
    call = reader.call(fork)
    if call is None or call.op.name not in ("split", "chunk"):
        tensor = fork if call is None or call.op.name != "unbind" else call.inputs[0]
        shape = reader.shape(tensor)
        return None if shape is None else shape[_dim(call, len(shape))]
    return len(_sizes(reader, call))


def _dim(call: Call | None, rank: int) -> int:
    """Return the dimension along which a node is split; a node that is indexed is split along the first."""
    dim = None if call is None else call.arguments.get("dim")
    return int(dim) % rank if isinstance(dim, int) else 0


def _sizes(reader: GraphReader, call: Call) -> list[int]:
    """Return the sizes of the pieces of a split or chunk, as in the example run."""
    shape = reader.shape(call.inputs[0]) or (0,)
    # torch itself cuts, so that uneven chunks come out as they do in the network.
    whole = torch.empty(shape[_dim(call, len(shape))], device="meta")
    how = call.arguments["chunks" if call.op.name == "chunk" else "split_size"]
    if not (isinstance(how, int) or all(isinstance(size, int) for size in how)):
        return []
    cut = whole.chunk(how) if call.op.name == "chunk" else torch.split(whole, how)
    return [len(piece) for piece in cut]


@dataclass(frozen=True)
class _Slice:
    """How one piece comes from a layer's result.

    Attributes:
        rows: which of the layer's features it reads, in order.
        pieces: how many there are.
        sizes: what these features are cut into.
        order: of the dimensions after that.
    """

    rows: list[int]
    pieces: int
    sizes: tuple[int, ...]
    order: tuple[int, ...]


def _sliced_rows(hit: Hit, reader: GraphReader) -> _Slice:
    index = int(hit.calls["piece"].arguments["index"])
    projection = reader.shape(hit.nodes["projection"])
    if projection is None:
        raise Refused("the shape of its result is not known")
    rank, features = len(projection), torch.arange(projection[-1])
    if "cut" not in hit.nodes:
        pieces = hit.calls["pieces"]
        sizes = _sizes(reader, pieces)
        if _dim(pieces, rank) != rank - 1:
            raise Refused("it is not split along its features")
        return _Slice(torch.split(features, sizes)[index].tolist(), len(sizes), (), ())
    cut = reader.shape(hit.nodes["cut"])
    if cut is None or cut[: rank - 1] != projection[:-1]:
        raise Refused("more than its features is reshaped")
    order = [*range(len(cut))]
    if "order" in hit.nodes:
        order = [int(d) % len(cut) for d in hit.calls["order"].arguments["dims"]]
    axis = order.pop(_dim(hit.calls.get("pieces"), len(cut)))
    if axis < rank - 1:
        raise Refused("its pieces are not parts of its features")
    rest = tuple(size for dim, size in enumerate(cut) if dim >= rank - 1 and dim != axis)
    # The features are numbered and sent through the network's own reshaping: what arrives names the rows.
    rows = features.reshape(cut[rank - 1 :]).select(axis - rank + 1, index).flatten()
    return _Slice(rows.tolist(), cut[axis], rest, tuple(d - (d > axis) for d in order))


@builder("part-of-a-projection")
def part_of_a_projection(build: Build) -> Part:
    """Build a linear layer for one of the pieces that a layer's result is split into, with a copy of its weights."""
    layer, cut = build.layer, _sliced_rows(build.hit, build.reader)
    if not isinstance(layer, nn.Linear):
        raise Refused("it is not a linear layer")
    options = {"in_features": layer.in_features, "out_features": len(cut.rows), "bias": layer.bias is not None}
    part = construct(nn.Linear, options)
    part.weight = new_parameter(layer.weight[cut.rows], layer.weight)
    if layer.bias is not None:
        part.bias = new_parameter(layer.bias[cut.rows], layer.bias)
    index = int(build.hit.calls["piece"].arguments["index"]) % cut.pieces
    name = {3: "qkv", 2: "kv"}.get(cut.pieces) if "cut" in build.hit.nodes else None
    return Part(str(index) if name is None else name[index], part.train(layer.training))


@builder("heads-of-a-part")
def heads_of_a_part(build: Build) -> nn.Module:
    """Build the reshaping of a layer's pieces for one of them."""
    cut = _sliced_rows(build.hit, build.reader)
    if len(cut.sizes) < 2 and cut.order == tuple(range(len(cut.order))):
        return nn.Identity()
    return bnn.Heads(cut.sizes, cut.order)
