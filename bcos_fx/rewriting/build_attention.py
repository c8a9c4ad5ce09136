"""Builders and predicates that take ``nn.MultiheadAttention`` apart: projections are layers, what is between has none.

The module keeps the weights of three linear layers in one tensor, and adds three biases to its inputs: as one layer
its constants cannot be told apart, and nothing inside it can become a B-cos layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from bcos_fx.nn.attention import Attention
from bcos_fx.nn.construction import construct
from bcos_fx.rewriting.build import Build, Refused, builder, new_parameter
from bcos_fx.rewriting.match import Verdict
from bcos_fx.rewriting.ops import Call
from bcos_fx.rewriting.predicates import predicate
from bcos_fx.rewriting.reader import GraphReader

_PROJECTIONS = ("query", "key", "value")
_MASKS = ("key_padding_mask", "attn_mask")


@predicate("attends-to-all")
def attends_to_all(reader: GraphReader, call: Call) -> Verdict:
    """The attention has no mask, and no keys and values of its own."""
    given = [name for name in _MASKS if call.arguments.get(name) is not None]
    if given or call.arguments.get("is_causal"):
        return f"it is called with a mask ({', '.join(given) or 'is_causal'})"
    attention = call.module
    if isinstance(attention, nn.MultiheadAttention) and (attention.bias_k is not None or attention.add_zero_attn):
        return "it has keys and values of its own (add_bias_kv, add_zero_attn)"
    return True


def _attention(build: Build) -> nn.MultiheadAttention:
    if not isinstance(build.layer, nn.MultiheadAttention):
        raise Refused("it is no nn.MultiheadAttention")
    return build.layer


def _packed(attention: nn.MultiheadAttention, index: int) -> Tensor:
    """The weight of one projection: a part of the tensor that holds all three, where they have one width."""
    own: Tensor | None = getattr(attention, f"{_PROJECTIONS[index][0]}_proj_weight")
    return attention.in_proj_weight.chunk(3)[index] if own is None else own


def _projection(build: Build, index: int) -> nn.Module:
    attention = _attention(build)
    weight = _packed(attention, index)
    like = attention.out_proj.weight if attention.in_proj_weight is None else attention.in_proj_weight
    bias = attention.in_proj_bias
    options = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": bias is not None}
    layer = construct(nn.Linear, options)
    layer.weight = new_parameter(weight, like)
    if bias is not None:
        layer.bias = new_parameter(bias.chunk(3)[index], bias)
    return layer.train(attention.training)


@builder("query-projection")
def query_projection(build: Build) -> nn.Module:
    """The linear layer that an attention applies to its queries, with a copy of its part of the weights."""
    return _projection(build, 0)


@builder("key-projection")
def key_projection(build: Build) -> nn.Module:
    """The linear layer that an attention applies to its keys, with a copy of its part of the weights."""
    return _projection(build, 1)


@builder("value-projection")
def value_projection(build: Build) -> nn.Module:
    """The linear layer that an attention applies to its values, with a copy of its part of the weights."""
    return _projection(build, 2)


@builder("attention-without-weights")
def attention_without_weights(build: Build) -> nn.Module:
    """What an attention does between its projections."""
    attention = _attention(build)
    core = Attention(attention.num_heads, batch_first=attention.batch_first, dropout=attention.dropout)
    return core.train(attention.training)


@builder("output-projection")
def output_projection(build: Build) -> nn.Module:
    """The linear layer at the end of an attention, with its own Parameters."""
    return _attention(build).out_proj
