"""What is measured of every channel of values that come in batches: mean, variance, power, also of what is positive."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and variance of every channel over all that was added; float64, whatever comes in.

    Batches are merged by their counts, means and squared deviations (Chan, Golub and LeVeque, "Algorithms for
    Computing the Sample Variance", The American Statistician 1983, section 2), so nothing is lost where a mean is
    large beside its deviation.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._count = 0
        self._rectified = torch.zeros((), dtype=torch.float64)
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Add values; every batch has the same channels."""
        rows = values.detach().movedim(self._dim, 0).flatten(1).double()
        count = rows.shape[1]
        if count == 0:
            return
        mean = rows.mean(1)
        squares = (rows - mean.unsqueeze(1)).square_().sum(1)
        total = self._count + count
        apart = mean - self._mean.to(mean.device)
        self._squares = self._squares.to(mean.device) + squares + apart.square() * (self._count * count / total)
        self._mean = self._mean.to(mean.device) + apart * (count / total)
        power = rows.clamp_min(0).square_().mean(1)
        self._rectified = self._rectified.to(mean.device) + (power - self._rectified.to(mean.device)) * (count / total)
        self._count = total

    @property
    def count(self) -> int:
        """How many values each channel has."""
        return self._count

    @property
    def mean(self) -> Tensor:
        """Mean (C,), float64."""
        return self._mean

    @property
    def variance(self) -> Tensor:
        """Unbiased variance (C,), float64, as batch norms keep it; 0 where there is one value."""
        return self._squares / max(self._count - 1, 1)

    @property
    def power(self) -> Tensor:
        """Mean of x^2 (C,), float64."""
        return self._mean.square() + self._squares / max(self._count, 1)

    @property
    def rectified_power(self) -> Tensor:
        """Mean of max(0, x)^2 (C,), float64: what a rectifier lets through."""
        return self._rectified

    def dead(self, precision: torch.dtype) -> Tensor:
        """Return which channels (C,) do not vary beyond the rounding of values that were computed in ``precision``."""
        rounding = 8 * torch.finfo(precision).eps
        return self.variance.sqrt() <= rounding * self.mean.abs()
