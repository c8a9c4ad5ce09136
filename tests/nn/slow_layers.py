"""Slow references for the layers, straight from their definitions: no convolution, no norm kernel, no bcos_fx."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def source_index(position: int, size: int, mode: str) -> int | None:
    """The input position that a (possibly padded) position shows; None where the padding is zero."""
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    return -position if position < 0 else 2 * (size - 1) - position


def pad(x: Tensor, before: Sequence[int], after: Sequence[int], mode: str) -> Tensor:
    """Pad the last dimensions of x one position at a time."""
    rank = len(before)
    for axis in range(rank):
        dim = x.dim() - rank + axis
        size = x.shape[dim]
        slices = []
        for position in range(-before[axis], size + after[axis]):
            source = source_index(position, size, mode)
            slices.append(x.select(dim, 0) * 0 if source is None else x.select(dim, source))
        x = torch.stack(slices, dim)
    return x


def unit(patch: Tensor, kernel: Tensor, b: float, scale: str, eps: float) -> Tensor:
    """One B-cos unit on patches (N, K) with one kernel (K,)."""
    product = patch @ kernel
    if b == 1:
        return product
    norm = (patch.square().sum(1) + eps).sqrt()
    if scale != "raw":
        norm = norm * kernel.square().sum().sqrt()
    zero = product == 0  # where the value is 0, and the gradient is 0 by definition
    ratio = torch.where(zero, 1.0, product.abs() / norm)
    return torch.where(zero, 0.0, product * ratio ** (b - 1))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, b: float, scale: str, eps: float) -> Tensor:
    """A B-cos linear layer, one output feature at a time."""
    rows = x.reshape(-1, x.shape[-1])
    y = torch.stack([unit(rows, kernel, b, scale, eps) for kernel in weight], 1)
    return (y if bias is None else y + bias).reshape(*x.shape[:-1], weight.shape[0])


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    mode: str,
    b: float,
    scale: str,
    eps: float,
) -> Tensor:
    """A B-cos convolution of a batch, one output channel and position at a time."""
    x = pad(x, before, after, mode)
    kernel_size, outputs = weight.shape[2:], weight.shape[0]
    extents = [
        (x.shape[2 + i] - dilation[i] * (kernel_size[i] - 1) - 1) // stride[i] + 1 for i in range(len(kernel_size))
    ]
    columns = []
    for position in itertools.product(*map(range, extents)):
        window = x
        for i, place in enumerate(position):
            taps = [place * stride[i] + dilation[i] * tap for tap in range(kernel_size[i])]
            window = window.index_select(2 + i, torch.tensor(taps))
        values = []
        for channel in range(outputs):
            group = channel // (outputs // groups)
            patch = window.chunk(groups, 1)[group].flatten(1)
            value = unit(patch, weight[channel].flatten(), b, scale, eps)
            values.append(value if bias is None else value + bias[channel])
        columns.append(torch.stack(values, 1))
    return torch.stack(columns, 2).reshape(x.shape[0], outputs, *extents)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    b: float,
    scale: str,
    eps: float,
) -> Tensor:
    """A transposed B-cos convolution: zeros between the inputs, the flipped kernel, stride 1."""
    rank = x.dim() - 2
    for i in range(rank):
        slices = []
        for position in range(x.shape[2 + i]):
            slices += [x.select(2 + i, position)] + [x.select(2 + i, position) * 0] * (stride[i] - 1)
        x = torch.stack(slices[: len(slices) - stride[i] + 1], 2 + i)
    kernels = [part.transpose(0, 1).flip(*range(2, 2 + rank)) for part in weight.chunk(groups, 0)]
    reach = [dilation[i] * (weight.shape[2 + i] - 1) - padding[i] for i in range(rank)]
    return conv(
        x,
        torch.cat(kernels),
        bias,
        stride=[1] * rank,
        before=reach,
        after=[reach[i] + output_padding[i] for i in range(rank)],
        dilation=dilation,
        groups=groups,
        mode="zeros",
        b=b,
        scale=scale,
        eps=eps,
    )
