"""Multi-head attention as what it is made of: three linear layers, attention without weights, a fourth linear layer.

``nn.MultiheadAttention`` and other modules call one function of PyTorch for all of it. A layer inside that function
could neither become a B-cos layer nor have its bias counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional

from bcos_fx.errors import TraceError
from bcos_fx.tracing.source import current_source

PartContext = Callable[[str], AbstractContextManager[None]]
"""While what it returns lasts, calls are recorded as made by a part, of that name, of the module that is running."""


def multi_head_attention(
    part: PartContext,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Compute ``torch.nn.functional.multi_head_attention_forward`` (Vaswani et al., NeurIPS 2017, section 3.2.2).

    The arguments are that function's own, after ``part``, which names the projections in the recording. Inside, samples
    come first: the constants of a layer are counted by sample, and so must stand apart.

    Returns:
        What that function returns, but that a query which attends to nothing at all gives 0 instead of not a number.

    Raises:
        TraceError: keys or values are given projected (``static_k``, ``static_v``).
    """
    if static_k is not None or static_v is not None:
        raise TraceError(
            "attention to keys and values that are projected already (static_k, static_v) is not known",
            where=str(current_source()),
            hint="call scaled_dot_product_attention with them instead",
        )
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    # The chunks are recorded calls on the packed parameter, so that all three projections go on training that one.
    weights = separate if use_separate_proj_weight or in_proj_weight is None else in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    batched = query.dim() == 3
    projected = []
    for name, tensor, weight, bias in zip("qkv", (query, key, value), weights, biases, strict=True):
        with part(f"{name}_proj"):
            projected.append(functional.linear(_samples_first(tensor), _required_weight(weight, name), bias))
    queries, keys, values = projected

    causal = is_causal and key_padding_mask is None and not need_weights  # then the flag is taken at its word
    mask = None if causal else _one_mask(attn_mask, key_padding_mask, num_heads, queries.dtype, batched=batched)
    # The order of PyTorch's function: the learned key and value first, the zero after the heads are split.
    if bias_k is not None and bias_v is not None:
        keys, values, mask = _appended(keys, bias_k), _appended(values, bias_v), _unmasked(mask)
    queries, keys, values = (_heads(tensor, num_heads) for tensor in (queries, keys, values))
    if add_zero_attn:
        keys, values, mask = functional.pad(keys, _ONE_ROW), functional.pad(values, _ONE_ROW), _unmasked(mask)

    shares = None
    if need_weights:
        # 1 / sqrt(width of a head): out_proj reads all heads side by side.
        shares = _shares(queries * math.sqrt(num_heads / out_proj_weight.shape[1]), keys, mask)
    if shares is not None and dropout_p > 0:  # the caller is given the weights as they were dropped
        shares = functional.dropout(shares, dropout_p, training)
        attended = torch.matmul(shares, values)
    else:
        drop = dropout_p if training else 0.0
        attended = functional.scaled_dot_product_attention(queries, keys, values, mask, drop, causal)
    with part("out_proj"):
        output = functional.linear(attended.transpose(1, 2).flatten(2), out_proj_weight, out_proj_bias)
    if shares is not None and average_attn_weights:
        shares = shares.mean(dim=1)
    if batched:
        return output.transpose(0, 1).contiguous(), shares
    return output.squeeze(0), None if shares is None else shares.squeeze(0)


_ONE_ROW = (0, 0, 0, 1)


def _samples_first(tensor: Tensor) -> Tensor:
    """Turn (L, N, E), or (L, E) of one sample, into (N, L, E)."""
    return tensor.transpose(0, 1) if tensor.dim() == 3 else tensor.unsqueeze(0)


def _required_weight(weight: Tensor | None, name: str) -> Tensor:
    if weight is None:
        raise TraceError(f"multi-head attention is called without a weight for its {name}", where=str(current_source()))
    return weight


def _appended(tensor: Tensor, row: Tensor) -> Tensor:
    """Put one more key or value, the same for all samples, at the end of (N, S, E)."""
    return torch.cat([tensor, row.expand(tensor.shape[0], -1, -1)], dim=1)


def _unmasked(mask: Tensor | None) -> Tensor | None:
    """Let every query attend to one more key."""
    return None if mask is None else functional.pad(mask, (0, 1))


def _heads(tensor: Tensor, number: int) -> Tensor:
    """Cut (N, L, E) into (N, heads, L, E / heads)."""
    return torch.unflatten(tensor, 2, (number, -1)).transpose(1, 2)


def _shares(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the weight of each key for each scaled query, (N, heads, L, S)."""
    scores = torch.matmul(queries, keys.transpose(-2, -1))
    return torch.softmax(scores if mask is None else scores + mask, dim=-1)


def _one_mask(
    attention: Tensor | None, padding: Tensor | None, heads: int, dtype: torch.dtype, *, batched: bool
) -> Tensor | None:
    """Add both masks to one that broadcasts to (N, heads, L, S): 0 where a query attends, -inf where it does not."""
    attention, padding = (mask if mask is None else _additive(mask, dtype) for mask in (attention, padding))
    if attention is not None and attention.dim() == 3:
        attention = torch.unflatten(attention, 0, (-1, heads))
    if padding is None:
        return attention
    padding = padding.unsqueeze(-2).unsqueeze(-2)  # (N, 1, 1, S), or (1, 1, S) of one sample
    if not batched:
        padding = padding.unsqueeze(0)
    return padding if attention is None else attention + padding


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert a mask to one that is added to scores; a boolean mask is True where nothing is attended to."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))
