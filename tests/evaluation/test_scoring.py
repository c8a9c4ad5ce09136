"""The score of the Grid Pointing Game, against a slow one and against what can be known without computing it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bcos_fx.errors import UsageError
from bcos_fx.evaluation import gridpg_reference, gridpg_score
from bcos_fx.evaluation.scoring import SMOOTH


def random_maps(grids: int, n: int, size: int, seed: int) -> Tensor:
    """Maps as different as networks make them: of both signs, sparse, in steps (ties), and without any evidence."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(grids, n, size, size, generator=generator)
    maps[1::4] *= torch.rand(maps[1::4].shape, generator=generator) < 0.02
    maps[2::4] = (maps[2::4] * 2).round()
    maps[3::4] = maps[3::4] + 0.3
    maps[0, 0] = -maps[0, 0].abs()
    maps[-1, -1] = 0
    return maps


@pytest.mark.parametrize(("n", "size", "grids"), [(1, 9, 2), (4, 16, 12), (9, 15, 8)])
def test_the_fast_score_is_the_slow_one(n: int, size: int, grids: int) -> None:
    maps = random_maps(grids, n, size, seed=n)
    fast, slow = gridpg_score(maps, n), gridpg_reference(maps, n)
    assert fast.shape == (grids, n)
    torch.testing.assert_close(fast, slow, atol=1e-9, rtol=0)
    assert float(slow[0, 0]) == 0.0
    assert float(slow[-1, -1]) == 0.0
    assert n == 1 or float(slow.std()) > 0.01


def test_cells_need_not_be_square_nor_smoothing_published() -> None:
    maps = random_maps(4, 4, 12, seed=0)[:, :, :, :8]
    for smooth in (1, 3, 5):
        torch.testing.assert_close(gridpg_score(maps, 4, smooth=smooth), gridpg_reference(maps, 4, smooth=smooth))


def perfect(side: int, cell: int, margin: int) -> Tensor:
    """One grid whose targets have evidence of 1 in the own cell alone, ``margin`` pixels from its borders."""
    n = side * side
    maps = torch.zeros(1, n, side * cell, side * cell)
    for k in range(n):
        top, left = (k % side) * cell, (k // side) * cell
        maps[0, k, top + margin : top + cell - margin, left + margin : left + cell - margin] = 1
    return maps


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_perfect_map_scores_exactly_one_and_its_negative_nothing(side: int) -> None:
    maps = perfect(side, 40, 8)
    assert gridpg_score(maps, side * side).tolist() == [[1.0] * side**2]
    assert gridpg_score(maps * 1e-30, side * side).tolist() == [[1.0] * side**2]
    assert gridpg_score(-maps, side * side).tolist() == [[0.0] * side**2]


def test_smoothing_leaks_seven_pixels_over_the_borders() -> None:
    assert SMOOTH // 2 == 7
    assert float(gridpg_score(perfect(2, 40, 7), 4).min()) == 1.0
    leaking = gridpg_score(perfect(2, 20, 6), 4)
    assert float(leaking.max()) < 1.0
    torch.testing.assert_close(leaking, gridpg_reference(perfect(2, 20, 6), 4))


def test_a_filled_cell_leaks_what_the_slow_score_says() -> None:
    filled = perfect(2, 16, 0)
    torch.testing.assert_close(gridpg_score(filled, 4), gridpg_reference(filled, 4), atol=1e-12, rtol=0)
    assert 0.5 < float(gridpg_score(filled, 4).min()) < 0.9


@pytest.mark.parametrize("side", [2, 3])
def test_a_uniform_map_scores_chance_on_average(side: int) -> None:
    n = side * side
    scores = gridpg_score(torch.full((2, n, side * 16, side * 16), 0.7), n)
    torch.testing.assert_close(scores.mean(1), torch.full((2,), 1 / n, dtype=torch.float64), atol=1e-15, rtol=0)


def test_smoothing_comes_before_negative_contributions_are_cut() -> None:
    maps = torch.zeros(1, 4, 32, 32)
    maps[0, 0, 8, 8], maps[0, 0, 8, 9] = 1.0, -1.0  # two neighbours: all but one column of either box cancels
    maps[0, 0, 24, 24] = 1.0
    cut_first = gridpg_score(maps.clamp_min(0), 4)[0, 0]
    score = gridpg_score(maps, 4)[0, 0]
    assert float(cut_first) == 0.5
    torch.testing.assert_close(score, torch.tensor(15 / (15 + 15 * 15)).double())


def test_the_cell_of_target_k_is_at_row_k_mod_side_and_column_k_div_side() -> None:
    maps = torch.zeros(1, 4, 32, 32)
    maps[:, :, 24, 8] = 1  # row 1, column 0: cell 1
    assert gridpg_score(maps, 4).tolist() == [[0.0, 1.0, 0.0, 0.0]]
    assert gridpg_reference(maps, 4).tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_maps_are_not_changed() -> None:
    maps = random_maps(2, 4, 8, seed=1)
    before = maps.clone()
    gridpg_score(maps, 4)
    gridpg_reference(maps, 4)
    assert torch.equal(maps, before)


@pytest.mark.parametrize(
    ("shape", "n", "smooth", "said"),
    [
        ((1, 5, 10, 10), 5, 15, "not a square"),
        ((1, 4, 10, 10), 0, 15, "not a square"),
        ((1, 4, 10, 10), 9, 15, r"\(grids, 9, H, W\)"),
        ((4, 10, 10), 4, 15, r"\(grids, 4, H, W\)"),
        ((1, 4, 10, 9), 4, 15, "2x2 cells"),
        ((0, 4, 10, 10), 4, 15, "2x2 cells"),
        ((1, 4, 10, 10), 4, 14, "odd"),
    ],
)
def test_what_cannot_be_scored_is_refused(shape: tuple[int, ...], n: int, smooth: int, said: str) -> None:
    for score in (gridpg_score, gridpg_reference):
        with pytest.raises(UsageError, match=said):
            score(torch.zeros(shape), n, smooth=smooth)


def test_numbers_that_are_none_are_refused() -> None:
    maps = torch.zeros(1, 4, 4, 4)
    maps[0, 1, 2, 2] = torch.nan
    with pytest.raises(UsageError, match="NaN"):
        gridpg_score(maps, 4)
