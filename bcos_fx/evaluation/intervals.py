"""How sure a mean is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_RESAMPLES, _AT_ONCE = 10_000, 500


def bootstrap(values: npt.NDArray[np.float64], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: (S,) or (S, K): whole rows are drawn anew, for the numbers of one row depend on each other.
        level: the share of resampled means that lies inside, in (0, 1).
        seed: of the draws: the same values give the same interval.

    Returns:
        Its lower and upper end.
    """
    rows = values.reshape(len(values), -1).mean(1)
    draw = np.random.default_rng(seed)
    means = np.concatenate(
        [rows[draw.integers(len(rows), size=(_AT_ONCE, len(rows)))].mean(1) for _ in range(_RESAMPLES // _AT_ONCE)]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
