"""Builders and predicates that bring attention to one form."""

from __future__ import annotations

from torch import fx, nn

from bcos_fx import nn as bnn
from bcos_fx.rewriting.build import Build, Refused, builder
from bcos_fx.rewriting.match import Verdict
from bcos_fx.rewriting.ops import Call
from bcos_fx.rewriting.predicates import predicate
from bcos_fx.rewriting.reader import GraphReader


@predicate("undoes-a-transpose")
def undoes_a_transpose(reader: GraphReader, call: Call) -> Verdict:
    """The two dimensions that it exchanges are those that the transpose before it exchanged."""
    before = reader.call(call.inputs[0])
    while before is not None and before.op.name == "clone":
        before = reader.call(before.inputs[0])
    shape = reader.shape(call.node)
    if before is None or before.op.name != "transpose" or shape is None:
        return False
    return _exchanged(call, len(shape)) == _exchanged(before, len(shape))


def _exchanged(call: Call, rank: int) -> set[int]:
    return {int(call.arguments[name]) % rank for name in ("dim0", "dim1")}


@builder("attention-with-dropout")
def attention_with_dropout(build: Build) -> nn.Module:
    """Attention that drops in train mode the share of its weights that the call was seen to drop then."""
    given = build.call.arguments
    options = {name: given[name] for name in ("is_causal", "scale", "enable_gqa")}
    if any(isinstance(value, fx.Node) for value in options.values()):
        raise Refused("an option of it is computed while the network runs")
    attention = bnn.Attention(build.call.node.meta["training_value"], **options)
    return attention.train(build.reader.graph_module.training)
