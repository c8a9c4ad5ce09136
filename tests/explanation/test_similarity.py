"""The cosine to a text as what is explained: it adds up, because the norm is held fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.explanation import cosine
from bcos_fx.text import TextEmbeddings
from tests.explanation.networks import MEAN, STD, Small

WIDTH, NAMES = 5, ("a green bird", "sky", "sea")


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    """A converted image tower of embeddings (N, 5), B = 2."""
    torch.manual_seed(0)
    network = Small().train()
    network(torch.randn(16, 3, 12, 12))
    return bcos_fx.bcosify(network.eval(), recipe="bcos-v2", mean=MEAN, std=STD).double()


@pytest.fixture(scope="module")
def places() -> nn.Module:
    """One of embeddings for each place, (N, 5, 12, 12), with biases."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, WIDTH, 1)).eval()
    return bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 12, 12), recipe="equivalent").double()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(2)).double()


@pytest.fixture(scope="module")
def texts() -> TextEmbeddings:
    vectors = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(3))
    return TextEmbeddings(NAMES, vectors / vectors.norm(dim=1, keepdim=True), "made-up")


def explained(network: nn.Module, images: Tensor, *given: Any, **options: Any) -> bcos_fx.explanation.Explanation:
    return bcos_fx.explain(network, images, cosine(*given, **options))


@pytest.mark.parametrize("power", [1, 2, 5.5])
def test_contributions_add_up_to_the_score(
    tower: nn.Module, images: Tensor, texts: TextEmbeddings, power: float
) -> None:
    found = explained(tower, images, texts, power=power)
    cosines = nn.functional.cosine_similarity(tower(images).unsqueeze(1), texts.vectors.double(), dim=2)
    torch.testing.assert_close(found.output, cosines.abs() ** (power - 1) * cosines)
    contributed = found.contributions.abs().sum((2, 3))
    assert float((found.residual.abs() / contributed).max()) <= 1e-9
    assert float((contributed / found.output.abs()).min()) > 1e-3
    assert found.complete
    assert found.names == NAMES
    assert found.prediction is not None
    assert torch.equal(found.prediction, cosines.argmax(1))
    assert [found.target_name(place) for place in range(3)] == list(NAMES)


def test_with_the_norm_not_held_fixed_contributions_add_up_to_nothing(tower: nn.Module, images: Tensor) -> None:
    """As in published code, which differentiates the normalised embedding: it does not change when z grows."""
    text = torch.randn(WIDTH, generator=torch.Generator().manual_seed(4)).double()
    unfrozen = bcos_fx.explain(tower, images, lambda z: (z / z.norm(dim=1, keepdim=True)) @ (text / text.norm()))
    added = unfrozen.contributions.sum((1, 2)) + unfrozen.constants.total()
    torch.testing.assert_close(added, torch.zeros(3).double())
    assert not unfrozen.complete
    held = explained(tower, images, text)
    torch.testing.assert_close(held.contributions.sum((1, 2)) + held.constants.total(), held.output)
    torch.testing.assert_close(held.output, unfrozen.output)
    assert float(held.output.abs().min()) > 1e-3


@pytest.mark.parametrize("location", ["max", "mean"])
def test_embeddings_of_places(places: nn.Module, images: Tensor, texts: TextEmbeddings, location: str) -> None:
    found = explained(places, images, texts, location=location, power=2)
    each = nn.functional.cosine_similarity(places(images).unsqueeze(1), texts.vectors.double()[..., None, None], dim=2)
    each = (each * each.abs()).flatten(2)
    torch.testing.assert_close(found.output, each.amax(2) if location == "max" else each.mean(2))
    assert float(found.residual.abs().max()) <= 1e-9
    if location == "max":  # nothing further away than the kernel reaches has a say
        assert int((found.contributions != 0).sum((2, 3)).max()) <= 9


def test_an_embedding_of_nothing_is_like_nothing(images: Tensor) -> None:
    outputs = torch.zeros(1, WIDTH, requires_grad=True)
    assert float(cosine(torch.ones(WIDTH))(outputs).detach()) == 0


def test_one_text_alone_has_one_number_for_each_image(tower: nn.Module, images: Tensor, tmp_path: Path) -> None:
    found = explained(tower, images, torch.ones(WIDTH), names=["light"])
    assert found.output.shape == (3,)
    assert found.target_name() == "light"
    pytest.importorskip("matplotlib")
    assert found.save(tmp_path / "light.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        (torch.zeros(2, WIDTH), {}, "not text embeddings"),
        (torch.ones(0, WIDTH), {}, "not text embeddings"),
        (torch.ones(2, WIDTH, 1), {}, "not text embeddings"),
        (torch.ones(2, WIDTH), {"names": ["one"]}, "1 names were given for 2 texts"),
        (torch.ones(WIDTH), {"power": 0.5}, "power is 0.5"),
        (torch.ones(WIDTH), {"location": "maxx"}, "location is 'maxx'"),
        (torch.ones(WIDTH + 1), {}, "have 6 numbers, the network's output has shape"),
    ],
)
def test_what_cannot_be_asked(
    tower: nn.Module, images: Tensor, given: Tensor, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        explained(tower, images, given, **options)


def test_places_need_a_location(places: nn.Module, images: Tensor) -> None:
    with pytest.raises(UsageError, match="an embedding for each place"):
        explained(places, images, torch.ones(WIDTH))
