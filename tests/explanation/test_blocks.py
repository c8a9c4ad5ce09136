"""Pictures in blocks of pixels: sums stay, strided layers leave no dots, numbers do not change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.explanation.render.color import in_blocks, pictures, planes


def slow_blocks(values: Tensor, side: int) -> Tensor:
    """Block by block."""
    found = torch.empty_like(values)
    for top in range(0, values.shape[-2], side):
        for left in range(0, values.shape[-1], side):
            block = (..., slice(top, top + side), slice(left, left + side))
            found[block] = values[block].mean((-2, -1), keepdim=True)
    return found


@given(
    st.lists(st.integers(1, 3), max_size=2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 10), st.integers(0, 9)
)
def test_blocks_are_means_of_what_lies_in_them(outer: list[int], height: int, width: int, side: int, seed: int) -> None:
    shape = (*outer, height, width)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = in_blocks(values, side)
    torch.testing.assert_close(found, slow_blocks(values, side))
    torch.testing.assert_close(found.sum((-2, -1)), values.sum((-2, -1)))


@pytest.fixture(scope="module")
def explanation() -> bcos_fx.Explanation:
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
    network = nn.Sequential(stem, nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    converted = bcos_fx.bcosify(network.eval(), recipe="equivalent", example_inputs=torch.rand(2, 3, 32, 32))
    return bcos_fx.explain(converted, torch.rand(2, 3, 32, 32), [[0, 1], [0, 1]])


def grid(plane: Tensor) -> float:
    """The share of the power in a picture (H, W) that odd and even pixels differ by, the mean left out."""
    power = torch.fft.fft2(plane - plane.mean()).abs().square()
    half = [size // 2 for size in plane.shape]
    return float((power[half[0]].sum() + power[:, half[1]].sum()) / power.sum())


def test_blocks_of_the_stride_take_the_dots_away(explanation: bcos_fx.Explanation) -> None:
    dotted, smooth = planes(explanation)[0], planes(explanation.in_blocks(2))[0]
    assert grid(dotted) > 0.1
    assert grid(smooth) < 1e-6
    torch.testing.assert_close(smooth.sum(), dotted.sum())


def test_numbers_stay_and_pictures_change(explanation: bcos_fx.Explanation) -> None:
    found = explanation.in_blocks(2)
    assert torch.equal(found.contributions, explanation.contributions)
    assert torch.equal(found.weights, explanation.weights)
    assert repr(found) == repr(explanation)
    before, after = pictures(explanation), pictures(found)
    assert before.shape == after.shape == (4, 4, 32, 32)
    assert not torch.equal(before, after)
    hues = after[:, :3]
    torch.testing.assert_close(hues, slow_blocks(hues, 2))
    assert torch.equal(pictures(found[0]), after[:2])  # of one sample as of all
    assert torch.equal(pictures(found.in_blocks(1)), before)


@pytest.mark.parametrize("side", [0, -1, 1.5, True, "2"])
def test_what_is_no_block_is_refused(explanation: bcos_fx.Explanation, side: object) -> None:
    with pytest.raises(UsageError, match="an integer of at least 1"):
        explanation.in_blocks(side)  # type: ignore[arg-type]


def test_tables_have_no_blocks() -> None:
    network = bcos_fx.bcosify(nn.Sequential(nn.Linear(4, 3)).eval(), example_inputs=torch.rand(2, 4))
    with pytest.raises(UsageError, match="is not a picture"):
        bcos_fx.explain(network, torch.rand(2, 4)).in_blocks(2)


def test_blocks_larger_than_the_picture_are_refused(explanation: bcos_fx.Explanation) -> None:
    assert explanation.in_blocks(32).blocks == 32
    with pytest.raises(UsageError, match="33 pixels are larger than the 32 x 32 pixels"):
        explanation.in_blocks(33)
