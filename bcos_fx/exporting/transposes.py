"""Transposes of linear maps as ordinary operations: the backward passes that a program of explanations contains.

The backward pass of an explanation view consists of transposed linear maps and of masks, for everything else in the
view is held fixed. PyTorch has an operation of its own for each (``convolution_backward``), which other runtimes do not
have. Each is written here by operations that they have: the transpose of a convolution is a transposed convolution,
that of a maximum puts each number where it was taken from, and that of a map that acts on each spatial dimension by
itself (average pooling, interpolation, padding) is one product of matrices per dimension.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten
Operation = Callable[..., Any]


def decompositions() -> dict[Any, Operation]:
    """Return operation -> the function that replaces it, as ``ExportedProgram.run_decompositions`` takes them."""
    table: dict[Any, Operation] = {_ATEN.convolution_backward.default: _convolution}
    for transpose, names in _TRANSPOSES.items():
        for name in names.split():
            (rank,) = (int(digit) for digit in name if digit.isdecimal())
            forward, backward = getattr(_ATEN, name).default, getattr(_ATEN, f"{name}_backward").default
            table[backward] = functools.partial(transpose, forward, rank)
    return table


def _convolution(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """Compute the gradient (N, C, ...) by the input; parameters are held fixed in a view, and have none."""
    if output_mask[1] or output_mask[2]:
        return NotImplemented
    given = (weight, None, stride, padding, dilation)
    if transposed:
        return _ATEN.convolution(gradient, *given, False, [0] * len(stride), groups), None, None
    # What the convolution did not reach at the far end, where the stride does not divide the size.
    rest = [
        size - ((steps - 1) * step - 2 * margin + gap * (width - 1) + 1)
        for size, steps, step, margin, gap, width in zip(
            x.shape[2:], gradient.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True
        )
    ]
    return _ATEN.convolution(gradient, *given, True, rest, groups), None, None


def _maximum(forward: Operation, rank: int, gradient: Tensor, x: Tensor, *options: Any) -> Tensor:
    """Put each number where the maximum was; the last option holds these places, counted in each channel by itself."""
    others, spatial = x.shape[:-rank], x.shape[-rank:]
    zeros = gradient.new_zeros((*others, math.prod(spatial)))
    return zeros.scatter_add(-1, options[-1].flatten(-rank), gradient.flatten(-rank)).reshape(x.shape)


def _of_input(forward: Operation, rank: int, gradient: Tensor, x: Tensor, *options: Any) -> Tensor:
    return _separable(lambda value: forward(value, *options), gradient, x.shape[-rank:])


def _to_size(forward: Operation, rank: int, gradient: Tensor, x: Tensor) -> Tensor:
    return _separable(lambda value: forward(value, gradient.shape[-rank:]), gradient, x.shape[-rank:])


def _resized(
    forward: Operation, rank: int, gradient: Tensor, size: object, given: Sequence[int], *options: Any
) -> Tensor:
    return _separable(lambda value: forward(value, size, *options), gradient, given[-rank:])


def _separable(apply: Callable[[Tensor], Tensor], gradient: Tensor, spatial: Sequence[int]) -> Tensor:
    """Transpose a linear map A_1 ⊗ A_2 ⊗ ... of the last dimensions, of sizes ``spatial`` before it.

    Let c_j be the first entry of A_j·1. For unit vectors along dimension i and ones along the others, the map gives at
    the first place of these M_i = A_i Π_{j≠i} c_j, and for ones alone C = Π c_j, so A = M_1 ⊗ M_2/C ⊗ M_3/C ⊗ ...
    """
    rank = len(spatial)
    corner = apply(gradient.new_ones(1, 1, *spatial)).flatten()[:1]
    for axis, size in enumerate(spatial):
        units = torch.eye(size, dtype=gradient.dtype, device=gradient.device)
        units = units.view(size, 1, *[size if other == axis else 1 for other in range(rank)]).expand(size, 1, *spatial)
        line: Any = (slice(None), 0, *[slice(None) if other == axis else 0 for other in range(rank)])
        matrix = apply(units)[line] if axis == 0 else apply(units)[line] / corner  # (inputs, outputs)
        gradient = torch.movedim(torch.movedim(gradient, axis - rank, -1) @ matrix.t(), -1, axis - rank)
    return gradient


_TRANSPOSES: dict[Operation, str] = {
    _maximum: "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d",
    _of_input: "avg_pool2d avg_pool3d reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d",
    _to_size: "_adaptive_avg_pool2d _adaptive_avg_pool3d",
    _resized: "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact1d _upsample_nearest_exact2d "
    "_upsample_nearest_exact3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa",
}
