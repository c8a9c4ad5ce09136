"""Depthwise B-cos convolutions in pieces that stay in cache.

A channel of its own for every kernel means that the energies |x|^2 of the patches are as large as the input itself, and
so is everything that is computed from them: one step after the other over the whole of it, each waits for memory and
costs as much as the convolution. Samples and channels do not depend on each other here, so all steps are made for a few
of them at a time. The energies are computed again for the backward pass, which therefore keeps no more than the input
and the output. With r = |y| / (|x| |w|), so that |cos| = r^(1/B), the gradients are those of
:func:`bcos_fx.nn.functional.bcos_scale`; that of |x| goes on to x through the transposed sum over windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bcos_fx.nn.functional import bcos_scale, pieces, scale_gradients


@dataclass(frozen=True)
class Windows:
    """How the kernels move over an input padded with zeros, and what is added to keep |x| above 0.

    Attributes:
        kernel_size: one number per spatial dimension, as in the others.
        stride: see :class:`torch.nn.Conv2d`.
        padding: at both ends of each dimension.
        dilation: see :class:`torch.nn.Conv2d`.
        square_eps: added to the sum of squares, > 0.
        norm_eps: added to its root.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    square_eps: float
    norm_eps: float

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve each channel of x (N, C, ...) with its kernels (M C, 1, ...)."""
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, x.shape[1])

    def roots(self, x: Tensor) -> Tensor:
        """Return sqrt(sum x^2 + square_eps) of each patch (N, C, ...)."""
        bias = x.new_full((x.shape[1],), self.square_eps)
        # A fast convolution algorithm may round a sum of zeros to just below zero.
        return self.product(x.square(), self._ones(x), bias).clamp_min_(self.square_eps).sqrt_()

    def norms(self, roots: Tensor) -> Tensor:
        """Return |x| of each patch, given its root: the root itself where nothing is added to it."""
        return roots + self.norm_eps if self.norm_eps else roots

    def transposed_sums(self, values: Tensor, x: Tensor) -> Tensor:
        """Give the value of each patch (N, C, ...) to all positions of x in it, and add up."""
        to_x: Tensor = self.gradients(values, x, self._ones(x), (True, False))[0]
        return to_x

    def gradients(self, to_out: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> list[Any]:
        """Return the gradients of x and of weight, as far as they are wanted, given that of the product."""
        nothing = [0] * len(self.stride)
        options = (self.stride, self.padding, self.dilation, False, nothing, x.shape[1])
        found: tuple[Any, ...] = torch.ops.aten.convolution_backward(
            to_out, x, weight, None, *options, (*wanted, False)
        )
        return list(found[:2])

    def _ones(self, x: Tensor) -> Tensor:
        return x.new_ones(x.shape[1], 1, *self.kernel_size)


def depthwise(x: Tensor, weight: Tensor, weight_norm: Tensor | None, windows: Windows, b: float) -> Tensor:
    """Apply a depthwise B-cos convolution without bias.

    Args:
        x: (N, C, ...), float32 or float64; not changed.
        weight: (M C, 1, *kernel).
        weight_norm: |w| > 0 per output channel (M C, 1, ...), or None for 1.
        windows: stride, padding and the like.
        b: the alignment pressure B > 1.

    Returns:
        (N, M C, ...). Differentiable twice.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, weight_norm)):
        y: Tensor = _Depthwise.apply(x, weight, weight_norm, windows, b)
        return y
    return _forward(x, weight, weight_norm, windows, b)


def _independent(x: Tensor) -> Sequence[int]:
    """Return the dimensions that may be split: samples, and channels if each is contiguous in memory."""
    return (-x.dim(),) if x.stride(1) == 1 else (-x.dim(), 1 - x.dim())


def _cut_pieces(
    x: Tensor, out: Tensor, per_channel: Sequence[Tensor | None], *others: Tensor
) -> Iterator[tuple[Any, ...]]:
    """Yield pieces of x, out, others of x's or out's size, and what there is per output channel (M C, 1, ...)."""
    wide = [t.expand(len(out), *t.shape) for t in per_channel if t is not None]
    for piece in pieces(x, out, *others, *wide, dims=_independent(x)):
        narrow = iter(piece[2 + len(others) :])
        # The same for all samples: a view of the original's own memory.
        yield *piece[: 2 + len(others)], *(None if t is None else next(narrow)[0] for t in per_channel)


def _forward(x: Tensor, weight: Tensor, weight_norm: Tensor | None, windows: Windows, b: float) -> Tensor:
    out = windows.product(x, weight)
    for x_, out_, weight_norm_ in _cut_pieces(x, out, (weight_norm,)):
        bcos_scale(out_, windows.norms(windows.roots(x_)), weight_norm_, b)
    return out


class _Depthwise(torch.autograd.Function):
    """The layer as one step, which saves its input and its output."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, weight_norm: Tensor | None, windows: Windows, b: float) -> Tensor:
        return _forward(x, weight, weight_norm, windows, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Windows, float], output: Tensor) -> None:
        x, weight, weight_norm, ctx.windows, ctx.b = inputs
        ctx.save_for_backward(x, weight, weight_norm, output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, weight_norm, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the gradient is wanted
            return *_differentiable_gradients(ctx, g, x, weight, weight_norm), None, None
        windows: Windows = ctx.windows
        # The convolution's own gradients go through torch over the whole tensor; only what surrounds it runs by pieces.
        to_product, to_squares, to_norm = _scale_gradients(g, x, y, weight_norm, windows, ctx.b)
        to_x, to_weight = windows.gradients(to_product, x, weight, ctx.needs_input_grad[:2])
        if to_x is not None:
            for x_, _, to_x_, to_squares_ in _cut_pieces(x, y, (), to_x, to_squares):
                to_x_.addcmul_(x_, windows.transposed_sums(to_squares_, x_), value=2)
        return to_x, to_weight, to_norm, None, None


def _scale_gradients(
    g: Tensor, x: Tensor, y: Tensor, weight_norm: Tensor | None, windows: Windows, b: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of the product, of the sums of squares, and of the weights' norm."""
    to_product, to_squares = torch.empty_like(y), torch.empty_like(y[:, : x.shape[1]])
    to_norm = None if weight_norm is None else torch.zeros_like(weight_norm)
    parts = _cut_pieces(x, y, (weight_norm, to_norm), g, to_product, to_squares)
    for x_, y_, g_, to_product_, to_squares_, weight_norm_, to_norm_ in parts:
        root = windows.roots(x_)
        to_product_part, to_root, to_norm_part = scale_gradients(g_, y_, windows.norms(root), weight_norm_, b)
        to_product_.copy_(to_product_part.reshape(y_.shape))
        torch.div(to_root.reshape(root.shape), root.mul_(2), out=to_squares_)
        if to_norm_ is not None and to_norm_part is not None:
            to_norm_ += to_norm_part.reshape(to_norm_.shape)
    return to_product, to_squares, to_norm


def _differentiable_gradients(
    ctx: Any, g: Tensor, x: Tensor, weight: Tensor, weight_norm: Tensor | None
) -> list[Tensor | None]:
    """Compute the same gradients in steps that are differentiable one by one."""
    windows: Windows = ctx.windows
    y = bcos_scale(windows.product(x, weight), windows.norms(windows.roots(x)), weight_norm, ctx.b)
    inputs = (x, weight, weight_norm)
    wanted = [t for t, needed in zip(inputs, ctx.needs_input_grad[:3], strict=True) if needed and t is not None]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]
