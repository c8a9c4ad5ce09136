"""How sure a mean is."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_RESAMPLES, _AT_ONCE = 10_000, 500


def bootstrap(values: npt.NDArray[np.float64], *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13).

    Args:
        values: (S, ...): whole samples are drawn again, for the numbers of one depend on each other; NaN where nothing
            could be measured.
        level: the share of resampled means that lies inside, in (0, 1).
        seed: of the draws: the same values give the same interval.

    Returns:
        Its lower and upper end.
    """
    rows = values.reshape(len(values), -1)
    sums, counts = np.nansum(rows, 1), (~np.isnan(rows)).sum(1)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        drawn = draw.integers(len(rows), size=(_AT_ONCE, len(rows)))
        total, known = sums[drawn].sum(1), counts[drawn].sum(1)
        means.append(total[known > 0] / known[known > 0])
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
