"""W(x) the slow way: every layer as an explicit matrix at this x, multiplied in order. Nothing of bcos_fx is used.

A value is followed together with the affine map that made it: ``y = matrix @ x + sum of columns``, with one column per
constant. A layer multiplies the matrix and all columns by its own matrix, and may add a column.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Traced:
    """A flat value (D,) of one sample, with how the input (I,) and the constants make it."""

    value: Tensor
    matrix: Tensor
    constants: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, x: Tensor) -> Traced:
        return cls(x.flatten(), torch.eye(x.numel(), dtype=x.dtype))

    def mapped(self, layer: Tensor) -> Traced:
        """Multiply everything by a matrix."""
        return Traced(layer @ self.value, layer @ self.matrix, {n: layer @ c for n, c in self.constants.items()})

    def weighted(self, weights: Tensor) -> Traced:
        """Multiply everything by a diagonal."""
        return self.mapped(torch.diag(weights.flatten()))

    def plus(self, name: str, constant: Tensor) -> Traced:
        """Add a constant."""
        known = self.constants.get(name, torch.zeros_like(self.value))
        return Traced(self.value + constant, self.matrix, self.constants | {name: known + constant})

    def with_(self, other: Traced) -> Traced:
        """Add another value of the same input."""
        names = [*self.constants, *(name for name in other.constants if name not in self.constants)]
        zero = torch.zeros_like(self.value)
        joined = {name: self.constants.get(name, zero) + other.constants.get(name, zero) for name in names}
        return Traced(self.value + other.value, self.matrix + other.matrix, joined)


def conv_matrix(
    weight: Tensor, size: Sequence[int], *, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> tuple[Tensor, list[int]]:
    """The matrix of a 2-D convolution of (C, H, W), by one loop per entry; and the size of its result."""
    outputs, inputs, *kernel = weight.shape
    after = [(side + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for side, k in zip(size, kernel, strict=True)]
    matrix = torch.zeros(outputs, *after, inputs * groups, *size, dtype=weight.dtype)
    for o, i, a, b in itertools.product(range(outputs), range(inputs), *map(range, kernel)):
        channel = o // (outputs // groups) * inputs + i
        for y, x in itertools.product(*map(range, after)):
            row, column = y * stride + a * dilation - padding, x * stride + b * dilation - padding
            if 0 <= row < size[0] and 0 <= column < size[1]:
                matrix[o, y, x, channel, row, column] += weight[o, i, a, b]
    return matrix.reshape(outputs * after[0] * after[1], -1), after


def transposed_matrix(weight: Tensor, size: Sequence[int], *, stride: int) -> tuple[Tensor, list[int]]:
    """The matrix of a transposed 2-D convolution without padding: the transpose of the convolution's."""
    before = [(side - 1) * stride + k for side, k in zip(size, weight.shape[2:], strict=True)]
    matrix, after = conv_matrix(weight, before, stride=stride)
    assert after == list(size)
    return matrix.T, before


def aligned(matrix: Tensor, x: Tensor, b: float, scale: str) -> Tensor:
    """|cos(x, w)|^(b-1) for each row w of a matrix; each sees the inputs that its pattern says.

    A row's patch are the inputs at which its layer's kernel stands, which ``seen`` would tell; rows here have no
    zeros but outside of their patch.
    """
    factors = []
    for row in matrix:
        patch = x[row != 0]
        norm = patch.square().sum().sqrt() * (1 if scale == "raw" else row.square().sum().sqrt())
        factors.append((row @ x).abs() / norm if float(norm) else torch.zeros((), dtype=x.dtype))
    return torch.stack(factors) ** (b - 1) if b != 1 else torch.ones(len(matrix), dtype=x.dtype)


def bcos(into: Traced, matrix: Tensor, b: float, scale: str, whole_norm: Tensor | None = None) -> Traced:
    """A B-cos layer; ``whole_norm`` is |w| per row, where a border row shows part of its kernel only."""
    factor = aligned(matrix, into.value, b, scale)
    if whole_norm is not None and scale != "raw":
        factor = factor * (matrix.square().sum(1).sqrt() / whole_norm) ** (b - 1)
    return into.mapped(torch.diag(factor) @ matrix)


def normalised(into: Traced, groups: int, eps: float) -> Traced:
    """Layer or group norm without affine part, over ``groups`` equal parts: centring matrix, then 1/sigma."""
    size = len(into.value) // groups
    centring = torch.eye(size, dtype=into.value.dtype) - 1 / size
    centred = into.mapped(torch.block_diag(*[centring] * groups))
    sigma = torch.stack([(part.square().mean() + eps).sqrt() for part in centred.value.chunk(groups)])
    return centred.weighted((1 / sigma).repeat_interleave(size))


def activated(into: Traced, phi: object) -> Traced:
    """An activation as the diagonal of phi(x)/x."""
    y = phi(into.value)  # type: ignore[operator]
    return into.weighted(torch.where(into.value == 0, 0, y / torch.where(into.value == 0, 1, into.value)))
