"""Sparsity, pointing, stability and completeness: known answers and wrong arguments; and intervals of means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.convert import bcosify
from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.evaluation.completeness import completeness_of, completeness_residual
from bcos_fx.evaluation.measured import Measured, bootstrap_interval, plot_boxes
from bcos_fx.evaluation.pointing import boxes_to_masks, energy, hits, iou, pointing
from bcos_fx.evaluation.sparsity import gini, sparsity
from bcos_fx.evaluation.stability import stability
from bcos_fx.explanation.completeness import Completeness
from bcos_fx.explanation.explanation import Explanation
from bcos_fx.explanation.result import Constants
from bcos_fx.methods.baselines import baselines
from bcos_fx.methods.method import dynamic_linear
from tests.evaluation.made_methods import Weighted, fixed, made, uniform
from tests.methods.small_classifiers import MEAN, STD, logits, residual, some_images

IMAGES = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
TARGETS = torch.tensor([[0, 1], [2, 0]])


# ---------------------------------------------------------------- sparsity


def test_gini_of_known_maps() -> None:
    one = torch.zeros(4, 5)
    one[2, 3] = -3.0
    assert float(gini(one)) == pytest.approx(1 - 1 / 20)
    assert float(gini(torch.full((4, 5), 0.2))) == pytest.approx(0)
    half = torch.zeros(4, 5)
    half[:2] = 1
    assert float(gini(half)) == pytest.approx(0.5)
    assert gini(torch.zeros(4, 5)).isnan()


def test_gini_is_half_the_relative_mean_difference() -> None:
    """Its other definition: the mean of |v_i - v_j| over all pairs, over twice the mean."""
    maps = torch.randn(3, 4, 5, dtype=torch.float64)
    v = maps.abs().flatten(1)
    expected = (v[:, :, None] - v[:, None]).abs().mean((1, 2)) / (2 * v.mean(1))
    torch.testing.assert_close(gini(maps), expected)
    torch.testing.assert_close(gini(-7 * maps), expected)


def test_sparsity_is_measured_per_image_and_class() -> None:
    maps = torch.rand(2, 2, 8, 10)
    found = sparsity(fixed(maps), IMAGES, TARGETS)
    torch.testing.assert_close(found.values, gini(maps))
    assert sparsity(made(uniform), IMAGES, TARGETS).mean == pytest.approx(0)
    assert str(found).startswith("Gini index of made: ")


# ---------------------------------------------------------------- pointing


def some_masks() -> Tensor:
    masks = torch.zeros(2, 8, 10, dtype=torch.bool)
    masks[0, 1:3, 2:6] = True
    masks[1, 5:, :5] = True
    return masks


def test_a_perfect_a_uniform_and_an_opposite_map() -> None:
    masks = some_masks()
    on_object = masks.float().unsqueeze(1).expand(2, 2, 8, 10)
    perfect = pointing(fixed(on_object), IMAGES, TARGETS, masks)
    assert all(measured.values.unique().tolist() == [1] for measured in perfect.values())
    opposite = pointing(fixed(-on_object), IMAGES, TARGETS, masks, tolerance=0)
    assert [opposite[key].mean for key in ("energy", "hit", "iou")] == [0, 0, 0]
    share = masks.float().mean((1, 2))[:, None].expand(2, 2)
    flat = pointing(made(uniform), IMAGES, TARGETS, masks, tolerance=0)
    for measured in flat.values():
        torch.testing.assert_close(measured.values.float(), share)
    beside = pointing(fixed((~masks).float().unsqueeze(1).expand(2, 2, 8, 10)), IMAGES, TARGETS, masks, tolerance=0)
    assert [beside[key].mean for key in ("energy", "hit", "iou")] == [0, 0, 0]
    assert perfect["hit"].settings == {"made": True, "tolerance": 15}


def test_pointing_against_loops() -> None:
    maps, masks = torch.randn(2, 2, 8, 10), some_masks().unsqueeze(1).expand(2, 2, 8, 10)
    for n in range(2):
        for k in range(2):
            pixels = [(float(maps[n, k, i, j]), bool(masks[n, k, i, j]), i, j) for i in range(8) for j in range(10)]
            top, _, row, column = max(pixels)
            positive = sum(v for v, *_ in pixels if v > 0)
            inside = sum(v for v, m, *_ in pixels if m and v > 0)
            assert float(energy(maps, masks)[n, k]) == pytest.approx(inside / positive, abs=1e-6)
            for tolerance in (0, 1, 2, 3):
                near = any(m and (i - row) ** 2 + (j - column) ** 2 <= tolerance**2 for _, m, i, j in pixels)
                assert float(hits(maps, masks, tolerance)[n, k]) == near
            both = sum(m and v > 0.3 * top for v, m, *_ in pixels)
            either = sum(m or v > 0.3 * top for v, m, *_ in pixels)
            assert float(iou(maps, masks, 0.3)[n, k]) == pytest.approx(both / either)


def test_boxes_become_masks() -> None:
    masks = boxes_to_masks([[[2, 1, 6, 3]], [[0, 5, 5, 8], [9.4, 0, 10, 0.6]]], (8, 10))
    expected = some_masks()
    expected[1, 0, 9] = True
    assert torch.equal(masks, expected)
    for boxes in ([[[2, 1, 2, 3]]], [[]]):
        with pytest.raises(UsageError, match="image 0 has the boxes"):
            boxes_to_masks(boxes, (8, 10))


@pytest.mark.parametrize(
    ("masks", "options", "message"),
    [
        (torch.ones(2, 8, 9), {}, r"masks are \(2, 8, 9\)"),
        ([1], {}, "masks are list"),
        (torch.zeros(2, 8, 10), {}, "the mask of image 0 is empty"),
        (torch.ones(2, 8, 10), {"tolerance": -1}, "tolerance is -1"),
        (torch.ones(2, 8, 10), {"threshold": 1.0}, "threshold is 1.0"),
    ],
)
def test_wrong_masks_are_named(masks: object, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pointing(made(uniform), IMAGES, TARGETS, masks, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- stability


def test_maps_that_do_not_move_are_stable() -> None:
    pytest.importorskip("captum")
    assert stability(made(uniform), IMAGES, TARGETS).values.tolist() == [[0, 0], [0, 0]]


def test_stability_of_a_known_map() -> None:
    """A map that is the image itself moves as far as the image does."""
    pytest.importorskip("captum")
    images = 0.5 + 0.1 * IMAGES
    itself = made(lambda x, t: x.mean(1, keepdim=True).expand(-1, t.shape[1], -1, -1))
    found = stability(itself, images, TARGETS, radius=0.01, samples=20)
    norms = images.mean(1).flatten(1).norm(dim=1)
    most = 0.01 * 80**0.5 / norms  # every pixel moves by the radius
    assert bool((found.values > 0.2 * most[:, None]).all())
    assert bool((found.values < most[:, None]).all())
    torch.testing.assert_close(stability(itself, images, TARGETS, radius=0.02, samples=20).values, 2 * found.values)
    assert torch.equal(stability(itself, images, TARGETS, radius=0.01, samples=20).values, found.values)


def test_images_stay_images_while_they_are_changed() -> None:
    pytest.importorskip("captum")
    seen = []

    def look(images: Tensor, targets: Tensor) -> Tensor:
        seen.append((float(images.min()), float(images.max())))
        return uniform(images, targets)

    stability(made(look), IMAGES.round(), TARGETS, radius=0.5, samples=3)
    assert {value for pair in seen for value in pair} == {0.0, 1.0}


def test_a_noisy_map_is_less_stable_than_a_linear_one() -> None:
    pytest.importorskip("captum")
    network = Weighted(torch.randn(3, 3, 8, 10))
    linear = stability(made(network.contributions), IMAGES, TARGETS)
    noisy = stability(made(lambda x, t: network.contributions((997 * x) % 1, t)), IMAGES, TARGETS)
    assert linear.mean < 0.1 < noisy.mean


def test_wrong_arguments_of_stability_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("captum")
    for options, message in (({"radius": 0}, "radius is 0"), ({"samples": 0}, "samples is 0")):
        with pytest.raises(UsageError, match=message):
            stability(made(uniform), IMAGES, TARGETS, **options)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="captum"):
        stability(made(uniform), IMAGES, TARGETS)


# ---------------------------------------------------------------- completeness


def test_a_converted_networks_explanation_adds_up() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    images = some_images(3)
    converted = bcosify(network.double(), example_inputs=images, mean=MEAN, std=STD, recipe="equivalent")
    found = completeness_residual(converted, images, torch.tensor([[0, 1], [2, 3], [0, 0]]))
    assert found.values.shape == (3, 2)
    assert float(found.values.max()) < 1e-13


def test_one_definition_serves_proof_measure_and_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where constants cancel, the gap is relative to their absolute sum everywhere, and not to what is left of it."""
    own, left = torch.tensor([[2.0]], dtype=torch.float64), 1e-3
    constants = {"a": own * 3e6, "b": own * -3e6, "logit.bias": own}
    explanation = Explanation(
        inputs=own[..., None, None],
        encoded=own[..., None, None],
        weights=torch.ones(1, 1, 1, 1, dtype=torch.float64),
        output=own.squeeze(1) * 2 + left,
        constants=Constants({name: value.squeeze(1) for name, value in constants.items()}, own.squeeze(1)),
    )
    proved = Completeness(own * 2 + left, own, constants, tolerance=1e-9).relative_gap
    expected = left / (2 * 3e6 + 2 * 3e6 + 2)
    assert float(proved) == pytest.approx(expected)
    monkeypatch.setattr("bcos_fx.evaluation.completeness.explain", lambda *_, **__: explanation)
    measured = completeness_residual(nn.Identity(), torch.ones(1, 1, 1, 1), torch.zeros(1, 1, dtype=torch.long))
    assert float(measured.values) == float(proved)
    pytest.importorskip("lightning")
    from bcos_fx.training.recording import shares

    assert shares(explanation) == (0.5, float(proved))
    assert shares(explanation, without=("logit.bias",)) == (0.0, float(proved))


def test_what_a_method_misses_is_measured() -> None:
    network, images = residual(), some_images()
    reference = torch.tensor(MEAN, dtype=torch.float64).reshape(3, 1, 1)
    pytest.importorskip("captum")
    made_ones = baselines(["deeplift", "integrated-gradients", "gradient"], network=network, mean=MEAN, std=STD)

    def outputs(x: Tensor) -> Tensor:
        return logits(network, x)

    targets = torch.tensor([[0, 3], [2, 1]])
    exact, near, far = (completeness_of(m, outputs, images, targets, reference) for m in made_ones)
    assert float(exact.values.max()) < 1e-10
    assert float(exact.values.max()) < near.mean < 0.1 < far.mean
    linear = Weighted(torch.randn(3, 3, 8, 10))
    half = made(lambda x, t: linear.contributions(x, t) / 2)
    found = completeness_of(half, linear, IMAGES, TARGETS, torch.zeros(3, 1, 1))
    torch.testing.assert_close(found.values, torch.full((2, 2), 0.5), rtol=1e-3, atol=0)
    with pytest.raises(UsageError, match="the reference has shape"):
        completeness_of(half, linear, IMAGES, TARGETS, torch.zeros(2, 1, 1))


# ---------------------------------------------------------------- results


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    values = torch.randn(200, 40, generator=torch.Generator().manual_seed(2)) + 3
    inside = [low <= 3 <= high for low, high in (bootstrap_interval(row) for row in values)]
    assert 0.88 <= sum(inside) / len(inside) <= 0.99
    low, high = bootstrap_interval(values[0])
    deviation = float(values[0].std()) / 40**0.5
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    assert bootstrap_interval(values[0]) == (low, high)


def test_images_are_drawn_with_all_their_classes() -> None:
    """Ten times the same number per image says no more than once: the interval must not shrink."""
    values = torch.randn(30, 1)
    assert bootstrap_interval(values.expand(30, 10)) == pytest.approx(bootstrap_interval(values[:, 0]))


def test_what_could_not_be_measured_is_left_out() -> None:
    found = Measured("m", "x", torch.tensor([[1.0, torch.nan], [3.0, 2.0]]))
    assert found.mean == 2
    low, high = found.interval
    assert 1 <= low <= 2 <= high <= 2.5
    for values, level in ((torch.zeros(0), 0.95), (torch.zeros(3), 1.0)):
        with pytest.raises(UsageError, match="no interval"):
            bootstrap_interval(values, level=level)


def test_boxes_of_several_methods(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = [Measured("Gini index", name, torch.rand(20, 2)) for name in ("Gradient", "RISE", "Integrated Gradients")]
    plot_boxes(results).savefig(tmp_path / "boxes.png", dpi=120)
    results[0].plot().savefig(tmp_path / "box.png")
    assert (tmp_path / "boxes.png").stat().st_size > 5000
    with pytest.raises(UsageError, match="2 measures"):
        plot_boxes([results[0], Measured("IoU", "RISE", torch.rand(3, 1))])


def test_every_measure_takes_the_networks_own_explanation() -> None:
    pytest.importorskip("captum")
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()
    method = dynamic_linear(network)
    assert 0 < sparsity(method, IMAGES, TARGETS).mean < 1
    assert stability(method, IMAGES, TARGETS, samples=2).mean > 0
    assert 0 <= pointing(method, IMAGES, TARGETS, some_masks())["energy"].mean <= 1
