"""Grids as images, and windows over them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bcos_fx.errors import UsageError
from bcos_fx.evaluation import Method
from bcos_fx.evaluation.localisation import composed, windowed


@pytest.mark.parametrize("side", [1, 2, 3])
def test_image_k_stands_at_row_k_mod_side_and_column_k_div_side(side: int) -> None:
    images = torch.rand(side * side, 3, 4, 6)
    grid = composed(images, side)
    assert grid.shape == (3, 4 * side, 6 * side)
    for k, image in enumerate(images):
        top, left = 4 * (k % side), 6 * (k // side)
        assert torch.equal(grid[:, top : top + 4, left : left + 6], image)


def test_a_grid_is_full() -> None:
    with pytest.raises(UsageError, match="do not fill"):
        composed(torch.zeros(3, 1, 2, 2), 2)


def _places(images: Tensor, targets: Tensor) -> Tensor:
    """Contributions that differ by target and place in the window: nothing that adds up could hide a wrong place."""
    rows = torch.arange(images.shape[2]).view(1, 1, -1, 1)
    columns = torch.arange(images.shape[3]).view(1, 1, 1, -1)
    return images.sum(1, keepdim=True) * (1 + rows + 10 * columns) * targets.view(*targets.shape, 1, 1)


def test_windows_are_added_up_where_they_overlap() -> None:
    seen: list[int] = []

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(images))
        return _places(images, targets)

    image, targets = torch.rand(2, 3, 8, 12), torch.tensor([[1, 4], [2, 3]])
    found = windowed(Method("made up", {"a": 1}, maps), 4, 6).maps(image, targets)
    assert seen == [25, 25]  # two cells a side: 25 windows, as published
    expected = torch.zeros(2, 2, 8, 12)
    for n in range(2):
        padded = torch.zeros(3, 12, 18)
        padded[:, 2:10, 3:15] = image[n]
        added = torch.zeros(2, 12, 18)
        for top in range(0, 9, 2):
            for left in range(0, 13, 3):
                window = padded[:, top : top + 4, left : left + 6]
                added[:, top : top + 4, left : left + 6] += _places(window[None], targets[n : n + 1])[0]
        expected[n] = added[:, 2:10, 3:15]
    torch.testing.assert_close(found, expected)


def test_windows_are_named_among_the_settings_and_have_a_half() -> None:
    method = Method("made up", {"a": 1}, _places)
    assert windowed(method, 4, 6).settings == {"a": 1, "windows": "4x6, stride half"}
    assert windowed(method, 4, 6).name == "made up"
    with pytest.raises(UsageError, match="no half"):
        windowed(method, 5, 4)
