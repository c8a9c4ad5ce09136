"""The two kernels of the B-cos transform: the energy of an input, and the scaling by |cos|^(B-1).

One unit computes y = |cos(x, w)|^(B-1) * (w.x) (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022,
section 3.1). With ``out`` = w.x, ``norm`` = |x| and ``weight_norm`` = |w| this is

    r = |out| / (weight_norm * norm),    y = out * r^(B-1).

Both kernels are written for what they touch in memory, because next to a convolution their arithmetic is
free: they work on pieces that stay in cache, the scaling overwrites ``out``, and its gradient needs y
alone, since |y| / (weight_norm * norm) = r^B gives r back. An activation is therefore never kept twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

# Elements per piece and thread: one MiB in float32, so that a piece and what is made of it stay near a core. Smaller
# pieces cost more calls than they save; larger ones wait for memory where caches are small.
_PIECE = 1 << 18
# Channels are added up in this many folds, into an array that much smaller than the input.
_FOLDS = 4


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which norms are computed: float32 for the 16-bit floats, else the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def default_eps(dtype: torch.dtype) -> float:
    """Return the eps in |x| = sqrt(sum x^2 + eps): the smallest normal number of the dtype of norms.

    It only keeps 0/0 out. Its root is 1e-19 in float32, so an activation of 1e-13 is still measured exactly.
    """
    return torch.finfo(statistics_dtype(dtype)).tiny


def default_tolerance(dtype: torch.dtype) -> float:
    """Return the largest relative error that rounding may leave: 1e-9 in float64, 1e-4 in float32, 2e-2 in 16 bits."""
    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 2e-2)


def pieces(
    *tensors: Tensor, whole: Tensor | None = None, dims: Sequence[int] | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors alike, along dimensions that they share, until the first fits the caches; not for a compiler.

    ``whole`` broadcasts against every piece, so dimensions in which it varies are not cut. ``dims``, counted from the
    end, are the only ones to cut, if they are given.
    """
    first = tensors[0]
    # A compiler is asked first: comparing a size that it keeps open would fix it.
    if not torch.compiler.is_compiling() and first.numel() > (fitting := _PIECE * torch.get_num_threads()):
        for dim in range(-first.dim(), 0) if dims is None else dims:
            length = first.shape[dim]
            varies = whole is not None and whole.dim() >= -dim and whole.shape[dim] > 1
            if length > 1 and not varies and all(t.shape[dim] == length for t in tensors):
                # Rounded up. A dimension shorter than that is cut into single indices, and each piece is cut further
                # below.
                count = -(-first.numel() // fitting)
                for piece in zip(*(t.chunk(count, dim) for t in tensors), strict=True):
                    yield from pieces(*piece, whole=whole, dims=dims)
                return
    yield tensors


def _sum_squares(x: Tensor, dim: int) -> Tensor:
    """Sum x^2 over one dimension, kept with size 1, without an array of x's size in between."""
    dtype = statistics_dtype(x.dtype)
    if torch.compiler.is_compiling():  # which fuses this, and differentiates it
        return x.to(dtype).square().sum(dim, keepdim=True)
    if x.stride(dim) == 1:  # a fused, vectorized reduction exists for the innermost dimension only
        norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=dtype)
        return norm.square_()
    # What fits the caches is not worth the calls.
    first, *rest = (part.to(dtype) for part in x.chunk(_FOLDS if x.numel() > _PIECE else 1, dim))
    total = first * first
    for part in rest:
        # narrow(), as the last fold may be shorter than the first.
        total.narrow(dim, 0, part.shape[dim]).addcmul_(part, part)
    return total.sum(dim, keepdim=True)


def stored(x: Tensor) -> Tensor:
    """Return x; of few numbers that many values are made of, a compiler then computes each number once.

    It would put the roots and quotients that lead to x into the loop over those values otherwise.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return x
    if torch.is_grad_enabled() and x.requires_grad:  # a view of strides is slow to differentiate
        return x
    return x.as_strided(x.shape, x.stride())


def _strided_view(x: Tensor, steps: Sequence[int]) -> Tensor:
    """Return a view of every ``steps``-th position of x along its last dimensions."""
    if any(step > 1 for step in steps):
        wanted: Any = (..., *(slice(None, None, step) for step in steps))
        x = x[wanted]
    return x


def _split_channels(x: Tensor, dim: int, groups: int) -> Tensor:
    """Return a view of x with channels as (groups, rest)."""
    return torch.unflatten(x, dim, (groups, x.shape[dim] // groups))


def _energy(x: Tensor, dim: int, groups: int, steps: Sequence[int]) -> Tensor:
    x = _strided_view(x, steps)
    if groups == x.shape[dim]:
        return x.to(statistics_dtype(x.dtype)).square()
    if groups == 1:
        return _sum_squares(x, dim)
    return _sum_squares(_split_channels(x, dim, groups), dim).squeeze(dim)


class _Energy(torch.autograd.Function):
    """x itself and its sum of squares, so that the gradient of the sum is added to that of x where that lies.

    Only its input is saved, which a convolution has saved anyway. Twice differentiable.
    """

    @staticmethod
    def forward(x: Tensor, dim: int, groups: int, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
        return x[...], _energy(x, dim, groups, steps)  # an alias; view_as would lose the layout of a batch of 1

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int, Sequence[int]], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.dim, ctx.groups, ctx.steps = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, to_x: Tensor, to_energy: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # a graph of the gradient is asked for
            to_x = to_x.clone()
        # to_x is newly allocated: it has just been computed for the alias that energy() gave out.
        part, seen = (_split_channels(_strided_view(t, ctx.steps), ctx.dim, ctx.groups) for t in (to_x, x))
        part.addcmul_(seen, to_energy.unsqueeze(ctx.dim), value=2)
        return to_x, None, None, None


def energy(x: Tensor, *, dim: int, groups: int = 1, steps: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """Sum x^2 over the channels of each group.

    Args:
        x: floating point, any shape; not changed.
        dim: the channel dimension, counted from the end (-1 for features, -1 - k for k spatial dimensions).
        groups: how many equal, consecutive groups the channels fall into; must divide them.
        steps: one number per spatial dimension: how far apart the wanted positions are, from 0 on; empty for all.

    Returns:
        x again, and x's shape (at the wanted positions) with ``groups`` in place of the channels, in float32 for 16-bit
        inputs, else in x's dtype. The map whose weights are multiplied with x must be given the x that is returned, and
        nothing else: on the way back the energy's gradient is written over its own.
    """
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        shared, total = _Energy.apply(x, dim, groups, steps)
        return shared, total
    return x, _energy(x, dim, groups, steps)


class _BcosScale(torch.autograd.Function):
    """The scaling by r^(B-1), and its gradients from y: b r^(b-1) g, -(b-1) y g / norm, -(b-1) y g / weight_norm."""

    @staticmethod
    def forward(out: Tensor, norm: Tensor, weight_norm: Tensor | None, b: float) -> Tensor:
        return _scale(out, norm, weight_norm, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, float], output: Tensor) -> None:
        out, norm, weight_norm, ctx.b = inputs
        ctx.mark_dirty(out)
        ctx.save_for_backward(output, norm, weight_norm)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        y, norm, weight_norm = ctx.saved_tensors
        # Grad mode is on here only if a graph of the gradient is asked for.
        gradients = _differentiable_gradients if torch.is_grad_enabled() else scale_gradients
        to_out, to_norm, to_weight = gradients(gradient, y, norm, weight_norm, ctx.b)
        to_weight = None if to_weight is None else to_weight.reshape(weight_norm.shape)
        return to_out.reshape(y.shape), to_norm.reshape(norm.shape), to_weight, None


Gradients = tuple[Tensor, Tensor, Tensor | None]


def scale_gradients(g: Tensor, y: Tensor, norm: Tensor, weight_norm: Tensor | None, b: float) -> Gradients:
    """Return the gradients of :func:`bcos_scale`, in its arguments' shapes by group, given that of its result y."""
    y, norm, weight_norm = _by_group(y, norm, weight_norm)
    smaller = norm * b ** (-b / (b - 1))  # puts the factor b of the gradient inside the root
    to_out, to_norm = torch.empty_like(y), torch.empty_like(norm)
    to_weight = None if weight_norm is None else torch.zeros_like(weight_norm)
    parts = (y, g.reshape(y.shape), smaller, to_out, to_norm)
    scratch: Tensor | None = None
    for y_, g_, smaller_, to_out_, to_norm_ in pieces(*parts, whole=weight_norm):
        ratio = _power_(_ratio(y_, smaller_, weight_norm, out=_scratch_for(scratch, y_)), (b - 1) / b)
        torch.mul(ratio, g_, out=to_out_)
        scratch = moment = torch.mul(y_.to(norm.dtype), g_, out=ratio)
        to_norm_.copy_(moment.sum_to_size(to_norm_.shape))
        if to_weight is not None:
            to_weight += moment.sum_to_size(to_weight.shape)
    # Both norms' gradients are y g times a factor that is the same for all pieces, so it comes once at the end.
    to_norm *= (1 - b) / norm
    if to_weight is not None and weight_norm is not None:
        to_weight *= (1 - b) / weight_norm
    return to_out, to_norm, to_weight


def _differentiable_gradients(g: Tensor, y: Tensor, norm: Tensor, weight_norm: Tensor | None, b: float) -> Gradients:
    """Compute the same gradients as plain expressions, for a second derivative; that is taken as 0 where y = 0."""
    y, norm, weight_norm = _by_group(y, norm, weight_norm)
    zero = y == 0
    ratio = torch.where(zero, 1, y).abs() / norm
    if weight_norm is not None:
        ratio = ratio / weight_norm
    g = g.reshape(y.shape)
    to_out = torch.where(zero, 0, b * ratio ** ((b - 1) / b)) * g
    moment = (1 - b) * (y * g)
    to_weight = None if weight_norm is None else (moment / weight_norm).sum_to_size(weight_norm.shape)
    return to_out.to(y.dtype), (moment / norm).sum_to_size(norm.shape), to_weight


def bcos_scale(out: Tensor, norm: Tensor, weight_norm: Tensor | None, b: float) -> Tensor:
    """Turn linear outputs into B-cos outputs: y = out * (|out| / (weight_norm * norm))^(b-1).

    Args:
        out: what a linear map without bias returned; **overwritten** by the result, so no other use may follow.
        norm: |x| > 0 per output position, broadcastable to ``out`` except for channels in groups: one per group.
        weight_norm: |w| > 0 per output channel, broadcastable to ``out`` without its batch; None for 1.
        b: the alignment pressure B > 1.

    Returns:
        ``out`` itself, now y. Differentiable twice; the gradients where y = 0 are 0.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, norm, weight_norm)):
        scaled: Tensor = _BcosScale.apply(out, norm, weight_norm, b)
        return scaled
    return _scale(out, norm, weight_norm, b)


def bcos_scale_by(out: Tensor, norm: Tensor, weight_norm: Tensor | None, b: Tensor) -> Tensor:
    """Compute :func:`bcos_scale` for B as a tensor of one number, >= 1, that gets a gradient too; overwrite nothing.

    The ratio is kept at the smallest normal number, so that neither its logarithm nor its inverse is infinite.
    """
    grouped, norm, weight_norm = _by_group(out, norm, weight_norm)
    ratio = grouped.abs() / norm
    if weight_norm is not None:
        ratio = ratio / weight_norm
    scaled = grouped * ratio.clamp_min(torch.finfo(ratio.dtype).tiny).pow(b.to(ratio.dtype) - 1)
    return scaled.to(out.dtype).reshape(out.shape)


def alignment(out: Tensor, norm: Tensor, weight_norm: Tensor | None, b: float) -> Tensor:
    """Compute the dynamic factor |cos|^(b-1) of :func:`bcos_scale`, in out's shape; nothing is overwritten.

    Written for views that detach it. Its own gradient is infinite at out = 0 for 1 < b < 2.
    """
    grouped, norm, weight_norm = _by_group(out, norm, weight_norm)
    return _power_(_ratio(grouped, norm, weight_norm), b - 1).to(out.dtype).reshape(out.shape)


def _scale(out: Tensor, norm: Tensor, weight_norm: Tensor | None, b: float) -> Tensor:
    grouped, norm, weight_norm = _by_group(out, norm, weight_norm)
    ratio: Tensor | None = None
    for piece, norm_ in pieces(grouped, norm, whole=weight_norm):
        ratio = _power_(_ratio(piece, norm_, weight_norm, out=_scratch_for(ratio, piece)), b - 1)
        piece.mul_(ratio)
    return out


def _scratch_for(scratch: Tensor | None, piece: Tensor) -> Tensor | None:
    """Return the previous piece's scratch tensor, or None if this piece has another shape, as the last one may."""
    return scratch if scratch is not None and scratch.shape == piece.shape else None


def _ratio(values: Tensor, norm: Tensor, weight_norm: Tensor | None, *, out: Tensor | None = None) -> Tensor:
    """Return |values| / norm / weight_norm, new or in ``out``; in this order nothing overflows."""
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        # Roots of sums of squares in float32 lie between 1e-19 and 2e19, so their inverses are as safe.
        ratio = values.abs() / norm if norm.shape == values.shape else values.abs() * stored(norm.reciprocal())
        return ratio if weight_norm is None else ratio * stored(weight_norm.reciprocal())
    # Divisions wait for memory anyway, and inverses would be another call.
    ratio = torch.div(values, norm, out=out).abs_()
    return ratio if weight_norm is None else ratio.div_(weight_norm)


def _power_(base: Tensor, exponent: float) -> Tensor:
    """Compute base^exponent in place; for the usual B = 2 without the general power."""
    if exponent == 1:
        return base
    return base.sqrt_() if exponent == 0.5 else base.pow_(exponent)


def _by_group(out: Tensor, norm: Tensor, weight_norm: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return views in which channels are (groups, channels per group), so that one norm per group broadcasts."""
    for dim, (groups, channels) in enumerate(zip(norm.shape, out.shape, strict=True)):
        if 1 < groups < channels:
            split = (groups, channels // groups)
            weight_norm = None if weight_norm is None else torch.unflatten(weight_norm, dim - out.dim(), split)
            return torch.unflatten(out, dim, split), norm.unsqueeze(dim + 1), weight_norm
    return out, norm, weight_norm
