"""A pixel's class as what is explained: networks that give scores for each place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.cli.explain import _number


class Dense(nn.Module):
    """An encoder, a decoder, and scores for each pixel, in one of five forms."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.down = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(6, 6, 2, stride=2)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Any:
        deep = self.down(x).relu()
        if self.form == "interpolated":
            return F.interpolate(self.head(deep), size=x.shape[-2:], mode="bilinear", align_corners=False)
        scores = self.head(self.up(deep).relu())
        if self.form == "dictionary":
            return {"out": scores, "aux": deep}
        if self.form == "skip":
            return scores + F.pad(x, (0, 0, 0, 0, 0, 1))
        return scores.permute(0, 2, 3, 1) if self.form == "channels last" else scores


FORMS = ["transposed", "interpolated", "dictionary", "skip", "channels last"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("unit", [(3, 5, 2), (0, 0, 0), (1, 7, 9)])
def test_a_pixel_is_explained_by_its_own_gradient(form: str, unit: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    network = Dense(form).double().eval()
    x = torch.rand(2, 3, 8, 10, dtype=torch.float64)
    chosen = "out" if form == "dictionary" else None
    made = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", input="none", output_key=chosen)
    unit = (*unit[1:], unit[0]) if form == "channels last" else unit
    found = bcos_fx.explain(made, x, unit)
    leaf = x.clone().requires_grad_()
    given = network(leaf)["out"] if form == "dictionary" else network(leaf)
    numbers = given[:, unit[0], unit[1], unit[2]]
    torch.testing.assert_close(found.output, numbers.detach())
    numbers.sum().backward()
    torch.testing.assert_close(found.weights, leaf.grad, rtol=1e-9, atol=1e-12)
    assert found.complete
    assert found.target_name() == f"output {unit}"


def test_a_pixel_can_be_typed() -> None:
    assert _number("3,120,88") == (3, 120, 88)
    assert _number("3, 1") == (3, 1)
    assert _number("17") == 17
    assert _number("tabby, tabby cat") == "tabby, tabby cat"


@pytest.mark.parametrize("unit", [(4, 0, 0), (0, 8, 0), (0, 0, -1), (0, 0, 0, 0), ()])
def test_a_pixel_that_is_none_is_refused_with_the_shape(unit: tuple[int, ...]) -> None:
    network = Dense("transposed").eval()
    with pytest.raises(bcos_fx.errors.UsageError, match=r"\(4, 8, 10\)"):
        bcos_fx.explain(network, torch.rand(1, 3, 8, 10), unit)


def test_a_figure_of_a_pixel_shows_its_sum() -> None:
    network = Dense("transposed").eval()
    found = bcos_fx.explain(network, torch.rand(1, 3, 8, 10), (3, 5, 2), names=("sky", "road", "car", "tree"))
    texts = " ".join(text.get_text() for ax in found.plot().axes for text in ax.texts)
    assert "tree at 5, 2" in texts
