"""The score of the Grid Pointing Game, as published: how much of the evidence for a class lies in the class's own cell.

Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 5 (the "localization metric"); "B-cos Alignment for
Inherently Interpretable CNNs and Vision Transformers", TPAMI 2024, section 5. Smoothing comes before negative
contributions are cut, so evidence against a class weakens the evidence for it that lies within the box.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from bcos_fx.errors import UsageError

SMOOTH = 15
"""Width in pixels of the box that published contributions are averaged over."""


def gridpg_score(maps: Tensor, n: int, *, smooth: int = SMOOTH) -> Tensor:
    """Return the share of positive contributions that lies in the own cell of each target.

    Contributions are averaged over a box (stride 1, what lies outside the map counts as 0), cut at 0 and added up in
    each cell; the score of target k is cell k's share in the sum of all cells, and 0 where that sum is not positive.

    Args:
        maps: (grids, n, H, W) contributions, summed over channels; those of target k belong to the cell at row k mod √n
            and column k div √n. Not changed.
        n: cells of a grid, which is also the number of targets: 4 for 2×2, 9 for 3×3.
        smooth: width of the box in pixels, odd; 1: not averaged.

    Returns:
        (grids, n) float64 in [0, 1], on the device of ``maps``.

    Raises:
        UsageError: ``n`` is not a square number, the shape does not fit it, ``smooth`` is even, or a number is NaN or
            infinite.
    """
    side = grid_side(maps, n, smooth)
    positive = _averaged(maps.double(), smooth).clamp_min(0)
    grids, _, height, width = maps.shape
    # (grids, targets, row, y, column, x): the sums over y and x are those of cells.
    cells = positive.reshape(grids, n, side, height // side, side, width // side).sum((3, 5))
    cells = cells.transpose(2, 3).flatten(2)  # column by column, so that cell k is the k-th
    # Cell k of target k: the diagonal of targets and cells.
    own, total = cells.diagonal(dim1=1, dim2=2), cells.sum(2)
    return torch.where(total > 0, own / torch.where(total > 0, total, 1), 0)


def _averaged(maps: Tensor, width: int) -> Tensor:
    """Average over a box. Rows, then columns: 2 · width additions instead of width², and zeros stay exactly zero."""
    for box in ((width, 1), (1, width)):
        maps = F.avg_pool2d(maps, box, stride=1, padding=(box[0] // 2, box[1] // 2), count_include_pad=True)
    return maps


def grid_side(maps: Tensor, n: int, smooth: int) -> int:
    """Return √n for maps and settings that :func:`gridpg_score` can score."""
    side = math.isqrt(n) if isinstance(n, int) and not isinstance(n, bool) and n > 0 else 0
    if not side or side * side != n:
        raise UsageError(f"a grid of {n!r} cells is not a square", hint="give a square number: 4 for 2x2, 9 for 3x3")
    if smooth < 1 or smooth % 2 == 0:
        raise UsageError(f"smooth is {smooth!r}", hint="give an odd number of pixels, 15 as published, or 1 for none")
    if maps.dim() != 4 or maps.shape[1] != n:
        raise UsageError(
            f"maps of shape {tuple(maps.shape)} are not contributions to {n} targets",
            hint=f"give (grids, {n}, H, W), summed over channels",
        )
    if maps.shape[2] % side or maps.shape[3] % side or not maps.numel():
        raise UsageError(
            f"maps of {maps.shape[2]}x{maps.shape[3]} pixels cannot be cut into {side}x{side} cells of one size",
            hint=f"height and width have to be multiples of {side}",
        )
    if not bool(torch.isfinite(maps).all()):
        raise UsageError("the maps hold NaN or infinity", hint="the method or the network broke on this input")
    return side
