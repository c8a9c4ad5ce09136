"""The published B-cosification written down slowly: loops over patches, every factor by hand, nothing of ``bcos_fx``.

What the publication calls explanation mode is the ``detach`` here: factors, statistics and attention are held fixed,
and the gradient of an output is W(x). Networks read six channels z, normalised; weights come from plain modules.
Layers: a convolution has |x| = sqrt(sum x^2 + 1e-6), a linear layer |x| + 1e-12, weights are taken as they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

B = 2.0


def scaled(product: Tensor, norm: Tensor) -> Tensor:
    factor = (product.abs() / norm) ** (B - 1)
    return factor.detach() * product


def conv(x: Tensor, weight: Tensor, stride: int = 1, padding: int = 0, eps: float = 1e-6) -> Tensor:
    """A B-cos convolution, position by position."""
    n, c, height, width = x.shape
    k = weight.shape[-1]
    wide = x.new_zeros(n, c, height + 2 * padding, width + 2 * padding)
    wide[:, :, padding : padding + height, padding : padding + width] = x
    rows = []
    for top in range(0, wide.shape[2] - k + 1, stride):
        row = []
        for left in range(0, wide.shape[3] - k + 1, stride):
            patch = wide[:, :, top : top + k, left : left + k].reshape(n, -1)
            norm = ((patch * patch).sum(1, keepdim=True) + eps).sqrt()
            row.append(scaled(patch @ weight.reshape(len(weight), -1).T, norm))
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


def linear(x: Tensor, weight: Tensor, eps: float = 1e-12) -> Tensor:
    return scaled(x @ weight.T, (x * x).sum(-1, keepdim=True).sqrt() + eps)


def batch_norm(x: Tensor, norm: Any) -> Tensor:
    """Without the mean, and without the shift."""
    return x / (norm.running_var + norm.eps).sqrt()[:, None, None] * norm.weight[:, None, None]


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt().detach() * norm.weight


def group_norm(x: Tensor, norm: Any) -> Tensor:
    """One group: over channels and positions."""
    mean = x.mean((1, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean((1, 2, 3), keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt().detach() * norm.weight[:, None, None]


def gelu(x: Tensor) -> Tensor:
    return (0.5 * (1 + torch.erf(x / math.sqrt(2)))).detach() * x


def average(x: Tensor, k: int = 3, stride: int = 2, padding: int = 1) -> Tensor:
    n, c, height, width = x.shape
    wide = x.new_zeros(n, c, height + 2 * padding, width + 2 * padding)
    wide[:, :, padding : padding + height, padding : padding + width] = x
    tops, lefts = range(0, wide.shape[2] - k + 1, stride), range(0, wide.shape[3] - k + 1, stride)
    return torch.stack(
        [torch.stack([wide[:, :, t : t + k, s : s + k].mean((2, 3)) for s in lefts], -1) for t in tops], -2
    )


def widened(weight: Tensor) -> Tensor:
    """Of a convolution over three channels, for six."""
    return torch.cat([weight, -weight], 1) / 2


def widened_patches(weight: Tensor) -> Tensor:
    """Of a Linear over patches whose features run channels last: [w/2, -w/2] for each pixel."""
    pixels = weight.reshape(len(weight), -1, 3)
    return torch.cat([pixels / 2, -pixels / 2], 2).reshape(len(weight), -1)


def logit_bias(classes: int) -> float:
    return -math.log(classes - 1)


def small_cnn(net: Any, z: Tensor) -> Tensor:
    y = average(batch_norm(conv(z, widened(net.stem.weight), 2, 1), net.norm).relu())
    inner = batch_norm(conv(y, net.first.weight, 1, 1), net.norm1).relu()
    y = (batch_norm(conv(inner, net.second.weight, 1, 1), net.norm2) + y).relu()
    y = conv(y, net.fc.weight[:, :, None, None]).mean((2, 3))
    return y + logit_bias(y.shape[1])


def attention(x: Tensor, block: Any) -> Tensor:
    """Queries, keys and values plain; the projection behind them B-cos."""
    q, k, v = (layer_norm(x, block.norm) @ block.to_qkv.weight.T).chunk(3, -1)
    size = q.shape[-1] // block.heads
    heads = []
    for head in range(block.heads):
        part = slice(head * size, (head + 1) * size)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(-1)
        heads.append(weights.detach() @ v[..., part])
    return linear(torch.cat(heads, -1), block.to_out.weight)


def small_vit(net: Any, z: Tensor) -> Tensor:
    if net.stem is not None:
        z = gelu(group_norm(conv(z, widened(net.stem.weight), 2, 1), net.stem_norm))
        weight = net.embed.weight
    else:
        weight = widened_patches(net.embed.weight)
    p = net.patch
    grid = [[z[:, :, t : t + p, s : s + p] for s in range(0, z.shape[3], p)] for t in range(0, z.shape[2], p)]
    patches = torch.stack([patch.permute(0, 2, 3, 1).flatten(1) for row in grid for patch in row], 1)
    x = linear(patches, weight) + net.positions
    for block in net.blocks:
        x = attention(x, block) + x
        inner = gelu(linear(layer_norm(x, block.norm2), block.linear1.weight))
        x = linear(inner, block.linear2.weight) + x
    tokens = linear(layer_norm(x, net.head_norm), net.head.weight)
    return tokens.mean(1) + logit_bias(tokens.shape[-1])


def small_clip(net: Any, z: Tensor) -> Tensor:
    """A convolution, then an attention pool that is linear throughout: no biases, no positions, no B."""
    y = batch_norm(conv(z, widened(net.stem.weight), 2, 1), net.norm).relu()
    x = y.flatten(2).transpose(1, 2)
    x = torch.cat([x.mean(1, keepdim=True), x], 1)
    q, k, v = x[:, :1] @ net.q_proj.weight.T, x @ net.k_proj.weight.T, x @ net.v_proj.weight.T
    size = q.shape[-1] // net.heads
    heads = []
    for head in range(net.heads):
        part = slice(head * size, (head + 1) * size)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)).softmax(-1)
        heads.append(weights.detach() @ v[..., part])
    return torch.cat(heads, -1)[:, 0] @ net.c_proj.weight.T
