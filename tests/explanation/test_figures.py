"""Figures and galleries: every kind of input, every target, the same bytes each time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.explanation import Explanation, difference
from bcos_fx.explanation.render import color as colour
from bcos_fx.explanation.render.html import cards
from tests.explanation.networks import converted, images

NAMES = ("fish", "dog", "tabby, tabby cat", "car", "cup")


class Pooled(nn.Module):
    """A convolution, its mean over all places, and a linear head with large negative biases."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)
        nn.init.constant_(self.head.bias, -5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).relu().flatten(2).mean(2))


def pictured(channels: int, target: Any = None) -> Explanation:
    torch.manual_seed(channels)
    network = Pooled(nn.Conv2d(channels, 4, 3), 4).eval()
    return bcos_fx.explain(network, torch.rand(1, channels, 9, 7), target, names=("a", "b", "c"))


def shown(found: Explanation, panel: int = 0) -> np.ndarray[Any, Any]:
    return np.asarray(found.plot().axes[panel].images[0].get_array())


def colours_drawn(found: Explanation, panel: int = 0) -> np.ndarray[Any, Any]:
    image = found.plot().axes[panel].images[0]
    return np.asarray(image.to_rgba(image.get_array(), bytes=True))


def test_a_grey_input_is_drawn_in_grey() -> None:
    drawn = colours_drawn(pictured(1))[..., :3].astype(int)
    assert np.ptp(drawn, axis=-1).max() == 0
    wanted = (pictured(1).inputs[0, 0] * 255).round().numpy()
    assert abs(drawn[..., 0] - wanted).max() <= 1


@pytest.mark.parametrize("channels", [2, 5, 6, 7])
def test_an_input_of_other_channels_is_drawn_as_their_mean(channels: int) -> None:
    found = pictured(channels)
    assert f"mean of {channels} channels" in found.plot().axes[0].get_title()
    drawn = colours_drawn(found)[..., 0].astype(int)
    assert abs(drawn - (found.inputs[0].mean(0) * 255).round().numpy()).max() <= 1
    assert shown(found).shape != shown(found, 1).shape, "the contributions have colours"


def test_values_outside_of_a_picture_are_scaled_and_named() -> None:
    network = Pooled(nn.Conv2d(3, 4, 3), 4).eval()
    found = bcos_fx.explain(network, torch.linspace(-2, 6, 3 * 64).view(1, 3, 8, 8))
    assert "-2 to 6" in found.plot().axes[0].get_title()
    assert (shown(found).min(), shown(found).max()) == (0, 255)


def test_the_highest_output_has_the_longest_bar_below_zero_too() -> None:
    found = pictured(3)
    assert found.scores is not None
    assert found.scores.max() < 0
    lengths = [patch.get_width() for patch in found.plot().axes[2].patches]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] > 0


def test_an_explained_class_below_the_highest_has_its_bar() -> None:
    first = pictured(3)
    assert first.scores is not None
    lowest = int(first.scores.argmin())
    ax = pictured(3, lowest).plot(top=1).axes[2]
    assert [text.get_text() for text in ax.get_yticklabels()] == [first.target_name(), "abc"[lowest]]


@pytest.mark.parametrize("top", [0, 2.5, "3", True])
def test_only_an_integer_of_bars_is_drawn(top: Any) -> None:
    with pytest.raises(bcos_fx.BcosFxError, match=f"top is {top!r}"):
        pictured(3).plot(top=top)


def test_an_integer_of_numpy_counts_bars() -> None:
    assert len(pictured(3).plot(top=np.int64(2)).axes[2].get_yticklabels()) >= 2


def test_a_difference_keeps_both_names() -> None:
    found = pictured(3, difference(0, 2))
    assert found.target_name() == "a - c"
    assert "a - c: " in repr(found)
    assert "a - c" in found.plot().axes[2].get_xlabel()
    assert "a - c" in cards(found)[0]
    assert found.scores is not None
    torch.testing.assert_close(found.output, found.scores[:, 0] - found.scores[:, 2])


def test_a_difference_from_the_others_is_named() -> None:
    assert pictured(3, difference(0)).target_name() == "a - mean of the others"
    assert pictured(3, difference()).target_name() == "predicted class - mean of the others"


@pytest.mark.parametrize(("target", "count"), [("top3", 3), ("all", 5)])
def test_every_target_has_a_row_with_all_panels(target: str, count: int) -> None:
    found = bcos_fx.explain(converted(), images()[:1], target, names=NAMES)
    assert found.output.shape == (1, count)
    axes = [ax for ax in found.plot().axes if ax.get_label() != "<colorbar>"]
    assert len(axes) == 4 * count
    titles = [ax.get_title() for ax in axes[1::4]]
    assert titles == [f"W(x) for {found.target_name(place)}" for place in range(count)]
    made = cards(found)
    assert len(made) == count
    for place, card in enumerate(made):
        assert f'data-target="{found.target_name(place)}"' in card
        assert card.count("<img") == 3


def test_all_outputs_come_in_their_order() -> None:
    found = bcos_fx.explain(converted(), images(), "all")
    assert found.scores is not None
    assert torch.equal(found.output, found.scores)
    assert found.target is not None
    assert found.target.tolist() == [[0, 1, 2, 3, 4]] * 3


def test_one_of_several_targets_is_what_it_is_alone() -> None:
    several = bcos_fx.explain(converted(), images(), [[3, 1]] * 3)
    one, alone = several.of_target(1), bcos_fx.explain(converted(), images(), 1)
    assert not one.several
    torch.testing.assert_close(one.contributions, alone.contributions)
    torch.testing.assert_close(one.constants.total(), alone.constants.total())
    with pytest.raises(IndexError):
        one.of_target(1)


def test_cards_are_called_what_they_show() -> None:
    found = bcos_fx.explain(converted(), images(), [0, 1, 4], names=NAMES)
    for card, name in zip(cards(found), ("fish", "dog", "cup"), strict=True):
        assert re.search(rf"<figcaption><b>sample \d</b> {name}", card)
    assert "sample" not in cards(found[1])[0]


# ---------------------------------------------------------------- one dimension, three, and tables


def test_a_long_signal_is_a_line_and_a_short_one_bars() -> None:
    network = Pooled(nn.Conv1d(1, 4, 3), 4).eval()
    long, short = (bcos_fx.explain(network, torch.rand(1, 1, size)) for size in (500, 20))
    assert [ax.get_xlabel() for ax in long.plot().axes[:2]] == ["position"] * 2
    assert not long.plot().axes[1].patches
    heights = [patch.get_height() for patch in short.plot().axes[1].patches]
    assert heights == pytest.approx(short.contributions[0].tolist(), rel=1e-5)
    assert "img" in cards(long)[0]
    assert "position 3" in cards(short)[0]


def test_tokens_are_written_below_their_bars() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3)).eval()
    found = bcos_fx.explain(network, torch.rand(1, 3, 4), (1, 2)).with_tokens(["the", "$cat", "<b>"])
    labels = [text.get_text() for text in found.plot().axes[0].get_xticklabels()]
    assert labels == ["the", "$cat", "<b>"]
    assert found.target_name() == "output (1, 2)"


@pytest.mark.parametrize("features", [5, 30])
def test_a_table_is_drawn_by_name_and_keeps_its_sum(features: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    found = bcos_fx.explain(network, torch.rand(1, features)).with_tokens([f"column {i}" for i in range(features)])
    ax = found.plot().axes[0]
    widths = [patch.get_width() for patch in ax.patches]
    assert sum(widths) == pytest.approx(float(found.contributions.sum()), rel=1e-4)
    labels = [text.get_text() for text in ax.get_yticklabels()]
    largest = int(found.contributions[0].abs().argmax())
    assert labels[0] == f"column {largest} = {float(found.inputs[0, largest]):.3g}"
    assert (labels[-1] == "19 others") == (features == 30)


@pytest.mark.parametrize(
    ("layer", "shape", "word"), [("volume", (2, 20, 6, 5), "slice"), ("clip", (20, 2, 6, 5), "frame")]
)
def test_frames_and_slices_stand_beside_each_other(layer: str, shape: tuple[int, ...], word: str) -> None:
    class Whole(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(1, 2) if layer == "clip" else x)

    found = bcos_fx.explain(Whole(nn.Conv3d(2, 4, 3), 4).eval(), torch.rand(1, *shape), 0)
    figure = found.plot()
    assert figure.axes[1].get_xlabel() == f"{word} 0, 3, 5, 8, 11, 14, 16, 19"
    assert shown(found, 1).shape[:2] == (6, 8 * 5 + 7)
    eighth = colour.signed(colour.planes(found))[0, :, :, 42:]
    drawn = torch.from_numpy(shown(found, 1)[:, 42:] / 255).permute(2, 0, 1).float()
    torch.testing.assert_close(drawn, eighth, rtol=0, atol=0.01)
    torch.testing.assert_close(colour.planes(found)[0, :, 42:], found.contributions[0, 19])


# ---------------------------------------------------------------- cost


def test_smoothing_takes_two_lines_and_gives_the_same_as_a_square(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weights = torch.randn(2, 6, 33, 41, dtype=torch.float64)
    contributions = torch.randn(2, 33, 41, dtype=torch.float64)
    sizes: list[tuple[int, int]] = []
    pool = F.avg_pool2d

    def counted(values: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
        sizes.append(size)
        return pool(values, size, **options)

    monkeypatch.setattr(F, "avg_pool2d", counted)
    made = colour.colored(weights, contributions, smooth=9)
    assert sum(height * width for height, width in sizes) <= 2 * 9
    raw = torch.where(contributions.unsqueeze(1) > 0, weights.norm(dim=1, keepdim=True), 0)
    square = pool(raw, 9, stride=1, padding=4)  # zeros beyond the border, as published
    full = torch.quantile(square.flatten(1), 0.995, dim=1).view(-1, 1, 1, 1)
    torch.testing.assert_close(made[:, 3:], (square / full).clamp(0, 1), rtol=1e-12, atol=1e-12)


def test_an_image_of_more_pixels_than_a_quantile_takes() -> None:
    values = torch.zeros(1, 4100, 4100)
    values[0, 0, 0] = 1
    assert colour.signed(values)[0, :3, 0, 0].tolist() == pytest.approx([0.76, 0.13, 0.16])


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".pdf", ".svg", ".png", ".html"])
def test_a_file_has_the_same_bytes_each_time(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = pictured(3)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    first = found.save(tmp_path / f"a{suffix}").read_bytes()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400000")
    assert found.save(tmp_path / f"b{suffix}").read_bytes() == first


def test_a_pdf_has_fonts_that_editors_read(tmp_path: Path) -> None:
    contents = pictured(3).save(tmp_path / "a.pdf").read_bytes()
    assert b"/Type3" not in contents
    assert b"/CIDFontType2" in contents
    assert mpl.rcParams["pdf.fonttype"] == mpl.rcParamsDefault["pdf.fonttype"], "the caller's settings stay"
