"""Pixel deletion and insertion: known curves, a loop written out, and maps that must be ranked rightly."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from bcos_fx.errors import UsageError
from bcos_fx.evaluation.deletion import Curves, imputed, pixel_deletion, pixel_ranks, plot_curves
from tests.evaluation.made_methods import Weighted, made, uniform

IMAGES = torch.rand(3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
NETWORK = Weighted(torch.rand(4, 2, 5, 6, generator=torch.Generator().manual_seed(1)))
TARGETS = torch.tensor([[0, 1], [3, 2], [1, 1]])
PERFECT = made(NETWORK.contributions, "perfect")
RANDOM = made(lambda images, targets: torch.rand(*targets.shape, 5, 6), "chance")


def delete(method=PERFECT, **options):
    return pixel_deletion(method, NETWORK, IMAGES, TARGETS, **{"score": "logit", "steps": 6, **options})


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("imputation", ["zero", "mean", "blur"])
@pytest.mark.parametrize("direction", ["deletion", "insertion"])
@pytest.mark.parametrize("order", ["most", "least"])
def test_curves_are_those_of_a_loop(direction: str, order: str, imputation: str, batch_size: int) -> None:
    found = delete(direction=direction, order=order, imputation=imputation, batch_size=batch_size)
    background = imputed(IMAGES, imputation)
    assert found.shares.tolist() == pytest.approx([0, 5 / 30, 10 / 30, 15 / 30, 20 / 30, 25 / 30, 1])
    for n, row in enumerate(TARGETS.tolist()):
        for k, target in enumerate(row):
            contribution = NETWORK.contributions(IMAGES[n : n + 1], torch.tensor([[target]]))[0, 0]
            places = sorted(
                ((float(contribution[i, j]), i, j) for i in range(5) for j in range(6)), reverse=order == "most"
            )
            image, other = (IMAGES[n], background[n]) if direction == "deletion" else (background[n], IMAGES[n])
            image, curve = image.clone(), []
            for step in range(7):
                curve.append(float(NETWORK(image[None])[0, target].detach()))
                for _, i, j in places[5 * step : 5 * step + 5]:
                    image[:, i, j] = other[:, i, j]
            assert found.curves[n, k].tolist() == pytest.approx(curve, abs=1e-5)
            trapezoids = sum((a + b) / 2 / 6 for a, b in itertools.pairwise(curve))
            assert float(found.auc[n, k]) == pytest.approx(trapezoids, abs=1e-5)


def test_a_perfect_map_beats_every_other() -> None:
    """The logit is a sum over pixels: taking the largest first is the steepest way down, and only then."""
    best, worst, chance = delete(), delete(order="least"), delete(RANDOM)
    assert bool((best.auc < chance.auc).all())
    assert bool((chance.auc < worst.auc).all())
    assert bool((best.curves.diff(dim=2) <= 1e-6).all())
    assert bool((best.curves.diff(dim=2).diff(dim=2) >= -1e-5).all())  # ever less is lost: convex
    reverse = made(lambda images, targets: -NETWORK.contributions(images, targets))
    torch.testing.assert_close(delete(reverse).curves, worst.curves)
    inserted = delete(direction="insertion")
    torch.testing.assert_close(inserted.curves, best.curves[..., :1] - best.curves)
    assert inserted.mean > delete(RANDOM, direction="insertion").mean


def test_a_uniform_map_is_a_random_order_and_not_that_of_rows() -> None:
    maps = uniform(IMAGES, TARGETS)
    ranks = pixel_ranks(maps, 0)
    assert ranks.flatten(2).sort(-1).values.equal(torch.arange(30).expand(3, 2, 30))
    assert not ranks[0, 0].flatten().equal(torch.arange(30))
    assert torch.equal(ranks, pixel_ranks(maps, 0))
    assert not torch.equal(ranks, pixel_ranks(maps, 1))
    torch.testing.assert_close(delete(made(uniform)).curves, delete(order="random").curves)
    # On the mean over many orders it is a straight line, whose area is half the logit.
    areas = torch.stack([delete(order="random", seed=seed).auc for seed in range(200)]).mean(0)
    whole = NETWORK(IMAGES).gather(1, TARGETS).detach()
    torch.testing.assert_close(areas, whole / 2, rtol=0.05, atol=0)


def test_ranks_count_from_the_largest() -> None:
    assert pixel_ranks(torch.tensor([[0.5, -1.0], [3.0, 0.0]]), 0).tolist() == [[1, 3], [0, 2]]


def test_scores_are_probabilities_of_the_class() -> None:
    found = delete(score="softmax", steps=1).curves
    torch.testing.assert_close(found[..., 0], NETWORK(IMAGES).softmax(1).gather(1, TARGETS).detach())
    torch.testing.assert_close(found[..., 1], torch.full((3, 2), 0.25))
    assert torch.equal(delete(score="sigmoid", steps=1).curves[..., 1], torch.full((3, 2), 0.5))


def test_imputations() -> None:
    assert torch.equal(imputed(IMAGES, "zero"), torch.zeros_like(IMAGES))
    assert torch.equal(imputed(IMAGES, "mean")[1, 1], IMAGES[1, 1].mean().expand(5, 6))
    flat = torch.full((1, 3, 9, 9), 0.3)
    torch.testing.assert_close(imputed(flat, "blur"), flat)
    spot = torch.zeros(1, 1, 31, 31)
    spot[0, 0, 15, 15] = 1
    places = torch.arange(-5, 6).float()
    kernel = torch.exp(-(places[:, None] ** 2 + places**2) / 50)
    torch.testing.assert_close(imputed(spot, "blur")[0, 0, 10:21, 10:21], kernel / kernel.sum())


def test_the_result_says_what_it_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = delete()
    assert found.settings["made"] is True
    assert (found.settings["first"], found.settings["imputation"]) == ("most", "zero")
    assert found.mean == pytest.approx(float(found.auc.mean()))
    low, high = found.interval
    assert low <= found.mean <= high
    torch.testing.assert_close(found.curve, found.curves.mean((0, 1)))
    plot_curves([found, delete(order="least"), delete(order="random")]).savefig(tmp_path / "curves.png", dpi=120)
    found.plot().savefig(tmp_path / "one.png")
    with pytest.raises(UsageError, match="2 kinds"):
        plot_curves([found, delete(direction="insertion")])
    with pytest.raises(UsageError, match="0 kinds"):
        plot_curves([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "delete"}, "direction is 'delete'"),
        ({"order": "first"}, "order is 'first'"),
        ({"imputation": "blurr"}, "imputation is 'blurr'"),
        ({"steps": 0}, "steps is 0"),
        ({"score": "prob"}, "score is 'prob'"),
        ({"batch_size": True}, "batch_size is True"),
        ({"method": made(lambda images, targets: torch.zeros(3, 5, 6))}, r"gives maps \(3, 5, 6\), not \(3, 2, 5, 6\)"),
        ({"method": made(lambda images, targets: uniform(images, targets) * torch.nan)}, "gives NaN"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        delete(**options)
    with pytest.raises(UsageError, match="not a class of 4"):
        pixel_deletion(PERFECT, NETWORK, IMAGES, TARGETS + 1)


def test_the_area_is_a_mean_whatever_the_step() -> None:
    flat = Curves("x", torch.tensor([0.0, 0.1, 0.5, 1.0]), torch.full((2, 1, 4), 0.7))
    torch.testing.assert_close(flat.auc, torch.full((2, 1), 0.7))
