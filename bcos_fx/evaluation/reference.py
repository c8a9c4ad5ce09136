"""The score of the Grid Pointing Game a second time: slow, in plain loops, to hold the fast one against.

It shares no step with :mod:`bcos_fx.evaluation.scoring` but the check of its arguments, and uses no tensor operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bcos_fx.evaluation.scoring import SMOOTH, grid_side


def gridpg_reference(maps: Tensor, n: int, *, smooth: int = SMOOTH) -> Tensor:
    """Return what :func:`bcos_fx.evaluation.gridpg_score` returns, computed number by number.

    Args:
        maps: (grids, n, H, W) contributions, summed over channels. Not changed.
        n: cells of a grid: 4 for 2×2, 9 for 3×3.
        smooth: width of the averaging box in pixels, odd.

    Returns:
        (grids, n) float64 in [0, 1], on the CPU.

    Raises:
        UsageError: as ``gridpg_score``.
    """
    side = grid_side(maps, n, smooth)
    scores = []
    for grid in maps.detach().double().cpu().tolist():
        row = []
        for k in range(n):
            row.append(_score_of_target(grid[k], k, side, smooth))
        scores.append(row)
    return torch.tensor(scores, dtype=torch.float64)


def _score_of_target(contributions: list[list[float]], k: int, side: int, smooth: int) -> float:
    height, width = len(contributions), len(contributions[0])
    own_row, own_column = k % side, k // side
    own = total = 0.0
    for y in range(height):
        for x in range(width):
            evidence = _mean_around(contributions, y, x, smooth)
            # Cut at 0 after smoothing, as published.
            if evidence <= 0:
                continue
            total += evidence
            if y // (height // side) == own_row and x // (width // side) == own_column:
                own += evidence
    return own / total if total > 0 else 0.0


def _mean_around(contributions: list[list[float]], y: int, x: int, smooth: int) -> float:
    """Compute the mean over the box around a pixel; pixels outside the map count as zeros."""
    reach = smooth // 2
    added = 0.0
    for row in range(y - reach, y + reach + 1):
        for column in range(x - reach, x + reach + 1):
            if 0 <= row < len(contributions) and 0 <= column < len(contributions[0]):
                added += contributions[row][column]
    return added / (smooth * smooth)
