"""What is measured of every channel of values that come in batches: mean, variance, power, also of what is positive."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """Mean and variance of every channel over all that was added; float64, whatever comes in.

    Batches are merged by their counts, means and squared deviations (Chan, Golub and LeVeque, "Algorithms for
    Computing the Sample Variance", The American Statistician 1983, section 2), so nothing is lost where a mean is
    large beside its deviation.

    Attributes:
        count: how many values each channel has.
        mean: (C,).
        rectified_power: (C,), the mean of max(0, x)^2: what a rectifier lets through.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self.count = 0
        self.mean = self.rectified_power = self._squares = torch.zeros((), dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Add values; every batch has the same channels."""
        rows = values.detach().movedim(self._dim, 0).flatten(1).double()
        count = rows.shape[1]
        if count == 0:
            return
        mean = rows.mean(1)
        squares = (rows - mean.unsqueeze(1)).square_().sum(1)
        power = rows.clamp_min(0).square_().mean(1)
        total = self.count + count
        share = count / total
        before, power_before, squares_before = (
            t.to(mean.device) for t in (self.mean, self.rectified_power, self._squares)
        )
        apart = mean - before
        # What the batches before and this one vary by themselves, and what their means are apart.
        self._squares = squares_before + squares + apart.square() * (self.count * count / total)
        self.mean = before + apart * share
        self.rectified_power = power_before + (power - power_before) * share
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Unbiased variance (C,), float64, as batch norms keep it; 0 where there is one value."""
        return self._squares / max(self.count - 1, 1)

    @property
    def power(self) -> Tensor:
        """Mean of x^2 (C,), float64."""
        return self.mean.square() + self._squares / max(self.count, 1)

    def dead(self, precision: torch.dtype) -> Tensor:
        """Return which channels (C,) do not vary beyond the rounding of values that were computed in ``precision``."""
        rounding = 8 * torch.finfo(precision).eps
        return self.variance.sqrt() <= rounding * self.mean.abs()
