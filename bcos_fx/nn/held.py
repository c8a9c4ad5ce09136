"""Layers of an explanation view as autograd steps that keep, and compute, no more than W(x) needs.

A view asks for the gradient by the input alone. torch's own steps are made for training: a convolution keeps its input
for the weight's gradient, and a factor that is a constant here is computed for a whole tensor at a time. The steps here
return torch's values to the last bit, so that a view's forward can stand for the network's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bcos_fx.nn.functional import statistics_dtype

# Up to so many input channels, as images have, torch's gradient of a strided convolution leaves most of a vector empty.
_FEW_CHANNELS = 8


class _FrozenScale(torch.autograd.Function):
    """A scaling in place by a factor that is held fixed."""

    @staticmethod
    def forward(out: Tensor, factor: Tensor, scale: Callable[[Tensor, Tensor], object]) -> Tensor:
        scale(out, factor)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_dirty(output)
        # The factor and not the output: what comes next may then be written over the output.
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient * ctx.saved_tensors[0]).to(gradient.dtype), None, None


def frozen_scale(out: Tensor, scale: Callable[[Tensor, Tensor | None], object]) -> Tensor:
    """Scale a linear map's output, which is overwritten, by a factor that is held fixed.

    Args:
        out: newly allocated.
        scale: called once with ``out`` and a tensor of its shape, in the dtype of norms, or None; multiplies ``out`` by
            the factor and writes the factor to the tensor.

    Returns:
        ``out``; its gradient by what came in is the factor.
    """
    if not (torch.is_grad_enabled() and out.requires_grad):
        scale(out, None)
        return out
    factor = torch.empty_like(out, dtype=statistics_dtype(out.dtype), requires_grad=False)
    scaled: Tensor = _FrozenScale.apply(out, factor, scale)
    return scaled


class _FrozenConvolution(torch.autograd.Function):
    """A convolution with a weight that is held fixed: it keeps the weight, and not its input."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        return torch.convolution(x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, *ctx.options = inputs
        ctx.shape = x.shape
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _gradient_by_input(gradient, ctx.shape, weight, *ctx.options), None, None, None, None, None


def frozen_convolution(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Convolve x (N, C, ...), padded with zeros, as torch does; gradients reach x alone."""
    y: Tensor = _FrozenConvolution.apply(x, weight.detach(), stride, padding, dilation, groups)
    return y


def _gradient_by_input(
    gradient: Tensor,
    shape: Sequence[int],
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Return the gradient of a convolution by its input of that shape, by the cheapest of three ways."""
    kernel = weight.shape[2:]
    if max(stride) > 1 and set(kernel) == {1} and not any(padding):
        # Only every stride-th pixel is read: the gradient is that of a dense layer, with zeros in between.
        read: Any = (..., *(slice(None, None, step) for step in stride))
        ones = [1] * len(stride)
        sparse = gradient.new_zeros(shape)
        dense = (*shape[:2], *gradient.shape[2:])
        sparse[read] = _gradient_by_input(gradient, dense, weight, ones, padding, dilation, groups)
        return sparse
    few = shape[1] <= _FEW_CHANNELS and len(set(stride)) == 1 < stride[0] <= min(kernel)
    if few and gradient.is_cpu and len(stride) == 2 and groups == 1 and set(dilation) == {1}:
        return _gradient_by_phases(gradient, shape, weight, stride[0], padding)
    # Its input matters by its shape only, where the weight's gradient is not asked for.
    like = weight.new_empty(1).expand(shape)
    options = (stride, padding, dilation, False, [0] * len(stride), groups, (True, False, False))
    by_input: Tensor = torch.ops.aten.convolution_backward(gradient, like, weight, None, *options)[0]
    return by_input


def _gradient_by_phases(
    gradient: Tensor, shape: Sequence[int], weight: Tensor, step: int, padding: Sequence[int]
) -> Tensor:
    """Compute the gradient of a strided 2-d convolution as one dense convolution, whose channels are then interleaved.

    A pixel at step q + phase is read by kernel places phase, phase + step, ...: so the pixels of one phase are a dense
    convolution of the gradient with those places, in falling order.
    """
    taps = [-(-size // step) for size in weight.shape[2:]]
    filled = F.pad(weight, (0, taps[1] * step - weight.shape[3], 0, taps[0] * step - weight.shape[2]))
    phases = filled.unflatten(3, (taps[1], step)).unflatten(2, (taps[0], step)).permute(1, 3, 5, 0, 2, 4).flip(-1, -2)
    dense = F.conv2d(gradient, phases.flatten(0, 2), padding=[count - 1 for count in taps])
    pixels = F.pixel_shuffle(dense, step)
    top, left = padding
    # Crops the padding; pixels that no window reaches get 0.
    margins = (-left, shape[3] + left - pixels.shape[3], -top, shape[2] + top - pixels.shape[2])
    return F.pad(pixels, margins)
