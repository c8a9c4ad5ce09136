"""Image encoding [x, 1 - x] and the normalization that needs no constant.

B-cos networks read a color image in [0, 1] as e = [x, 1 - x], so that color is a direction (Böhle, Fritz and
Schiele, "B-cos Networks", CVPR 2022, section 4). Because x + (1 - x) = 1, any affine x' = A x + m is linear in e:

    x' = (A + M) x + M (1 - x)    with M of row sums m,

so the normalized, again encoded [x', -x'] is N e with a fixed matrix N and no bias. A kernel w that read x' reads it
as [w/2, -w/2] (Arya et al., "B-cosification", NeurIPS 2024, section 3.2). All matrices are computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError

Numbers = Sequence[float] | Tensor
Matrix = Sequence[Sequence[float]] | Tensor


class InputEncoding(nn.Module):
    """e = [x, 1 - x]: twice the channels.

    Args:
        dim: the channel dimension, 1 for (N, C, ...).
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Encode x (N, C, ...), values in [0, 1], as (N, 2C, ...)."""
        # In planes: pixels of so few channels are slow to write one by one; the first convolution arranges them.
        x = x.contiguous()
        return torch.cat([x, 1 - x], self.dim)

    def extra_repr(self) -> str:
        """Return the dimension."""
        return f"dim={self.dim}"


class InputDecoding(nn.Module):
    """Half the first half of the channels minus half the second: [x', -x'] to x'.

    Args:
        dim: the channel dimension, 1 for (N, C, ...).
    """

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, encoded: Tensor) -> Tensor:
        """Decode (N, 2C, ...) as (N, C, ...)."""
        plus, minus = encoded.chunk(2, self.dim)
        return (plus - minus) / 2

    def extra_repr(self) -> str:
        """Return the dimension."""
        return f"dim={self.dim}"


class InputNormalisation(nn.Module):
    """The fixed, bias-free map N from e = [x, 1 - x] to [x', -x'] with x' = matrix x + offset.

    Zeros are mapped to zeros, so padding may come before or after it. The numbers are kept exactly, and rounded to
    whatever precision the module is moved to; the state holds nothing of it.

    Args:
        matrix: (C', C), finite. A diagonal one puts each offset on its own channel; any other spreads it evenly over
            the input channels.
        offset: (C',), finite.
        device: where the map lies.
        dtype: the precision of the map.
        dim: the channel dimension, 1 for (N, C, ...).

    Attributes:
        encoded: buffer (2C', 2C), N itself in the module's precision.

    Raises:
        UsageError: shapes that do not fit, or numbers that are not finite.
    """

    encoded: Tensor

    def __init__(
        self,
        matrix: Matrix,
        offset: Numbers,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        dim: int = 1,
    ) -> None:
        super().__init__()
        self.dim = dim
        affine, shift = _checked_affine(matrix, offset)
        self.matrix: list[list[float]] = affine.tolist()
        self.offset: list[float] = shift.tolist()
        self._by_channel = _is_diagonal(affine)
        rounded = _encoded_matrix(affine, shift).to(device=device, dtype=dtype or torch.get_default_dtype())
        self.register_buffer("encoded", rounded, persistent=False)

    @classmethod
    def from_mean_std(
        cls,
        mean: Numbers,
        std: Numbers,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build from x' = (x - mean) / std, per channel, both (C,) and in the units of x.

        Raises:
            UsageError: different lengths, numbers that are not finite, or a std that is not positive.
        """
        center, spread = _vector(mean, "mean"), _vector(std, "std")
        if center.shape != spread.shape or not bool((spread > 0).all()):
            raise UsageError(
                f"mean {mean} and std {std} do not fit", hint="give one mean and one positive std a channel"
            )
        return cls(torch.diag(1 / spread), -center / spread, device, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # From the exact numbers each time: going to float16 and back must not leave float16's rounding behind.
        self.encoded = _encoded_matrix(*_checked_affine(self.matrix, self.offset)).to(self.encoded)
        return self

    def forward(self, encoded: Tensor) -> Tensor:
        """Map e (N, 2C, ...) to [x', -x'] (N, 2C', ...), the channels along ``dim``.

        Raises:
            UsageError: the input's channels are not 2C.
        """
        dim, wanted = self.dim, self.encoded.shape[1]
        if encoded.dim() <= max(dim, 1) or encoded.shape[dim] != wanted:
            form = f"(N, {wanted}, ...)" if dim == 1 else f"{wanted} in dimension {dim}"
            raise UsageError(
                f"the input has shape {tuple(encoded.shape)}, not {form}",
                where="InputNormalisation",
                hint="put an InputEncoding before it",
            )
        if not self._by_channel:
            return torch.einsum("oc,nc...->no...", self.encoded, encoded.movedim(dim, 1)).movedim(1, dim)
        # Each x' reads its own x and 1 - x alone; as a product with N this takes up to 40 times as long.
        channels, ones = len(self.matrix), [1] * (encoded.dim() - 1 - dim % encoded.dim())
        factors = self.encoded[:channels].reshape(channels, 2, channels).sum(2)  # of what is 0 but on two diagonals
        plus, minus = encoded.contiguous().chunk(2, dim)
        mapped = plus * factors[:, 0].view(-1, *ones) + minus * factors[:, 1].view(-1, *ones)
        return torch.cat([mapped, -mapped], dim=dim)

    def extra_repr(self) -> str:
        """Return the numbers of channels of x and x'."""
        numbers = f"{len(self.matrix[0])}, {len(self.matrix)}"
        return numbers if self.dim == 1 else f"{numbers}, dim={self.dim}"


def widen(weight: Tensor) -> Tensor:
    """Return the kernel [w/2, -w/2] (out, 2C', *k): on [x', -x'] it gives what ``weight`` (out, C', *k) gives on x'."""
    return torch.cat([weight / 2, -weight / 2], dim=1)


def fold(weight: Tensor, matrix: Matrix, offset: Numbers) -> Tensor:
    """Return the kernel on e = [x, 1 - x] that equals ``weight`` on x' = matrix x + offset: widen(weight) after N.

    Args:
        weight: (out, C', *k), one group.
        matrix: (C', C).
        offset: (C',).

    Returns:
        A new tensor (out, 2C, *k) in weight's dtype, rounded once from float64.

    Raises:
        UsageError: shapes that do not fit.
    """
    affine, shift = _checked_affine(matrix, offset)
    if weight.dim() < 2 or weight.shape[1] != affine.shape[0]:
        raise UsageError(f"a kernel {tuple(weight.shape)} does not read {affine.shape[0]} channels")
    encoded = _encoded_matrix(affine, shift).to(weight.device)
    return torch.einsum("op...,pc->oc...", widen(weight.double()), encoded).to(weight.dtype)


def _encoded_matrix(affine: Tensor, offset: Tensor) -> Tensor:
    """Return N (2C', 2C) for x' = affine x + offset."""
    outputs, inputs = affine.shape
    if _is_diagonal(affine):
        spread = torch.diag(offset)
    else:
        spread = (offset / inputs).unsqueeze(1).expand(outputs, inputs)
    half = torch.cat([affine + spread, spread], dim=1)
    return torch.cat([half, -half])


def _is_diagonal(affine: Tensor) -> bool:
    return affine.shape[0] == affine.shape[1] and torch.equal(affine, torch.diag(affine.diagonal()))


def _checked_affine(matrix: Matrix, offset: Numbers) -> tuple[Tensor, Tensor]:
    affine, shift = torch.as_tensor(matrix, dtype=torch.float64).cpu(), _vector(offset, "offset")
    if affine.dim() != 2 or affine.shape[0] != shift.shape[0]:
        raise UsageError(
            f"matrix {tuple(affine.shape)} and offset {tuple(shift.shape)} do not fit",
            hint="for x' = A x + m give A (C', C) and m (C',)",
        )
    if not bool(affine.isfinite().all()):
        raise UsageError("the matrix holds numbers that are not finite")
    return affine, shift


def _vector(values: Numbers, name: str) -> Tensor:
    vector = torch.as_tensor(values, dtype=torch.float64).cpu()
    if vector.dim() != 1 or not bool(vector.isfinite().all()):
        raise UsageError(f"{name} is {values}, not a list of finite numbers")
    return vector
