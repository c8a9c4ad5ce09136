"""Grad-CAM, Occlusion, LIME and RISE against plain loops, and what baselines refuse."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bcos_fx
from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.methods.baselines import BASELINES, baselines
from bcos_fx.methods.explained_network import ExplainedNetwork
from bcos_fx.methods.method import Method
from bcos_fx.methods.perturbations import patch_grid, random_masks
from bcos_fx.nn import InPlaceSum
from tests.methods.small_classifiers import MEAN, STD, Residual, logits, normalised, residual, some_images

pytest.importorskip("captum")

TARGETS = torch.tensor([[0, 3], [2, 2]])
QUICK = {"rise": {"masks": 5}, "lime": {"samples": 6, "patches": 2}, "occlusion": {"window": 6, "stride": 6}}


def method(name: str, network: nn.Module, *, seed: int = 0, batch_size: int = 16, **options: object) -> Method:
    (made,) = baselines(
        name, network=network, mean=MEAN, std=STD, seed=seed, batch_size=batch_size, options={name: options}
    )
    return made


# ---------------------------------------------------------------- Grad-CAM


def by_hand(features: Tensor, outputs: Tensor, targets: Tensor, *, relu: bool = True) -> Tensor:
    """Selvaraju et al. 2017, eq. 1 and 2, from feature maps (N, C, h, w) that outputs (N, classes) came from."""
    rows = []
    for n, k in itertools.product(range(len(targets)), range(targets.shape[1])):
        (gradient,) = torch.autograd.grad(outputs[n, targets[n, k]], features, retain_graph=True)
        total = sum(gradient[n, c].mean() * features[n, c] for c in range(features.shape[1]))
        rows.append(total.clamp(min=0) if relu else total)
    return torch.stack(rows).reshape(*targets.shape, *features.shape[2:]).detach()


@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam_takes_the_last_feature_map_before_pooling(relu: bool) -> None:
    """The layer here is a functional ReLU: no module's result."""
    network, images = residual(), some_images()
    y = network.pool(network.relu(network.first(normalised(images))))
    features = F.relu(network.relu(network.norm(network.second(y))) + y - 0.2)
    small = by_hand(features, network.classifier(features.mean((2, 3))), TARGETS, relu=relu)
    expected = F.interpolate(small, size=(12, 12), mode="bilinear", align_corners=False)
    found = method("grad-cam", network, relu=relu, batch_size=1).maps(images, TARGETS)
    torch.testing.assert_close(found, expected)
    assert bool((found < 0).any()) is not relu


def test_grad_cam_is_captums_where_the_layer_is_a_module() -> None:
    from captum.attr import LayerGradCam

    network, images = residual(), some_images()
    found = method("grad-cam", network, layer="first").maps(images, torch.tensor([1, 2]))
    theirs = LayerGradCam(network, network.first).attribute(
        normalised(images), target=torch.tensor([1, 2]), relu_attributions=True
    )
    torch.testing.assert_close(found[:, 0], theirs[:, 0].detach())  # as large as the image: nothing is upsampled


class WithoutRectifier(Residual):
    """A norm whose result only a sum reads."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.classifier(F.adaptive_avg_pool2d(self.norm(self.second(x)) + x, 1).flatten(1))


def test_grad_cam_of_a_converted_network() -> None:
    """It writes sums in place, and its last map is that of the classes: its classifier stands before the pooling."""
    network, images = WithoutRectifier().double().eval(), some_images()
    converted = bcos_fx.bcosify(network, recipe="equivalent", mean=MEAN, std=STD, example_inputs=images)
    assert any(isinstance(layer, InPlaceSum) for layer in converted.modules())
    x = network.first(normalised(images))
    classes = network.classifier((network.norm(network.second(x)) + x).movedim(1, -1)).movedim(-1, 1)
    small = by_hand(classes, classes.mean((2, 3)), TARGETS)
    (found,) = baselines("grad-cam", network=converted)
    torch.testing.assert_close(found.maps(images, TARGETS), small)


class Patches(nn.Module):
    """As a vision transformer: space goes on as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Conv2d(3, 5, 4, 4), nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mix(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class Bypass(nn.Module):
    """What the output depends on does not all pass through the last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mean((2, 3)) + self.b(x).mean((2, 3))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Patches(), "still has positions"),
        (Bypass(), "past it"),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 5), nn.Flatten()), "not a pooling"),
        (nn.Sequential(nn.Conv2d(3, 4, 12), nn.Flatten()), "no node of this network has one"),
    ],
)
def test_grad_cam_says_why_there_is_no_such_map(network: nn.Module, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        method("grad-cam", network.double()).maps(some_images(), TARGETS)
    assert "layer=" in str(caught.value.hint)


def test_grad_cam_of_a_named_layer() -> None:
    images = some_images()
    network = Patches().double()
    found = method("grad-cam", network, layer="embed").maps(images, TARGETS)
    features = network.embed(normalised(images))
    outputs = network.head(network.mix(features.flatten(2).transpose(1, 2)).mean(1))
    expected = F.interpolate(by_hand(features, outputs, TARGETS), size=(12, 12), mode="bilinear")
    torch.testing.assert_close(found, expected)
    with pytest.raises(UsageError, match="embedding") as caught:
        method("grad-cam", network, layer="embedding").maps(images, TARGETS)
    assert "embed" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no feature maps"):
        method("grad-cam", network, layer="head").maps(images, TARGETS)


# ---------------------------------------------------------------- perturbations


def shown(network: nn.Module, images: Tensor, keep: Tensor, score: str = "softmax") -> Tensor:
    """Scores of an image (1, C, H, W) of which only a share (H, W) is kept of what differs from the mean colour."""
    mean = torch.tensor(MEAN, dtype=images.dtype).reshape(1, 3, 1, 1)
    outputs = logits(network, mean + (images - mean) * keep).detach()
    return {"softmax": outputs.softmax(1), "sigmoid": outputs.sigmoid(), "logit": outputs}[score][0]


@pytest.mark.parametrize(("window", "stride", "score"), [(4, 4, "softmax"), (5, 3, "logit"), (3, 2, "sigmoid")])
def test_occlusion_is_the_mean_loss_over_windows(window: int, stride: int, score: str) -> None:
    network, images = residual(), some_images()
    whole = torch.zeros(2, 2, 12, 12, dtype=torch.float64)
    starts = [min(stride * n, 12) for n in range(math.ceil((12 - window) / stride) + 1)]
    for n, k in itertools.product(range(2), range(2)):
        counted = torch.zeros(12, 12, dtype=torch.float64)
        full = shown(network, images[n : n + 1], torch.ones(12, 12), score)[TARGETS[n, k]]
        for i, j in itertools.product(starts, starts):
            keep = torch.ones(12, 12, dtype=torch.float64)
            keep[i : i + window, j : j + window] = 0
            loss = full - shown(network, images[n : n + 1], keep, score)[TARGETS[n, k]]
            whole[n, k] += loss * (1 - keep)
            counted += 1 - keep
        whole[n, k] /= counted
    for size in (1, 4):
        found = method("occlusion", network, window=window, stride=stride, score=score, batch_size=size)
        torch.testing.assert_close(found.maps(images, TARGETS), whole, rtol=1e-5, atol=1e-7)


def test_occlusion_takes_its_window_from_the_image() -> None:
    network = residual()
    found = method("occlusion", network).maps(some_images(1, 28), torch.tensor([[1]]))
    named = method("occlusion", network, window=2, stride=1).maps(some_images(1, 28), torch.tensor([1]))
    assert torch.equal(found, named)


@pytest.mark.parametrize("options", [{"window": 13}, {"window": 3, "stride": 4}])
def test_occlusion_windows_cover_the_image(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="do not cover images of 12 x 12"):
        method("occlusion", residual(), **options).maps(some_images(), TARGETS)


def test_lime_is_a_weighted_ridge_regression() -> None:
    network, images = residual(), some_images()
    drawn = torch.rand(40, 9, generator=torch.Generator().manual_seed(3)) < 0.5
    rows, segments = [], patch_grid(12, 12, 3)
    for n, k in itertools.product(range(2), range(2)):
        target = TARGETS[n, k]
        y = torch.stack([shown(network, images[n : n + 1], z[segments].double())[target] for z in drawn]).float()
        z = torch.cat([torch.ones(40, 1), drawn.float()], 1).double()
        distance = 1 - torch.cosine_similarity(drawn.double(), torch.ones(40, 9).double())
        w = torch.exp(-(distance**2) / (2 * 0.25**2)).float().double()
        penalty = 0.5 * torch.eye(10).double()
        penalty[0, 0] = 0  # the constant is free
        solved = torch.linalg.solve((z * w[:, None]).T @ z + penalty, (z * w[:, None]).T @ y.double())
        rows.append(solved[1:][segments])
    expected = torch.stack(rows).reshape(2, 2, 12, 12)
    found = method("lime", network, seed=3, samples=40, patches=3, ridge=0.5, batch_size=7).maps(images, TARGETS)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_rise_is_the_mean_of_masks_weighted_by_scores(batch_size: int) -> None:
    network, images = residual(), some_images()
    masks = torch.cat(list(random_masks((12, 12), 10, 3, 0.4, 5, 10))).double()
    expected = torch.zeros(2, 2, 12, 12, dtype=torch.float64)
    for n, k, mask in itertools.product(range(2), range(2), masks):
        expected[n, k] += shown(network, images[n : n + 1], mask)[TARGETS[n, k]] * mask / (0.4 * 10)
    found = method("rise", network, seed=5, masks=10, cells=3, keep=0.4, batch_size=batch_size).maps(images, TARGETS)
    torch.testing.assert_close(found, expected)


def test_rises_masks_are_shifted_grids() -> None:
    masks = torch.cat(list(random_masks((10, 14), 600, 4, 0.3, 0, 64)))
    assert masks.shape == (600, 10, 14)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1 + 1e-6
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)
    # Every pixel is seen equally often: without the random shift, grid lines would show.
    assert float((masks.mean(0) - 0.3).abs().max()) < 0.08


def test_rise_of_all_masks_finds_the_pixel_that_counts() -> None:
    """A classifier that reads one pixel: S = E[f(x ⊙ m) m] / E[m] is largest there."""

    class Reads(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, 2, 9], -x[:, 0, 2, 9]], 1)

    (made,) = baselines("rise", network=Reads(), options={"rise": {"masks": 800, "score": "logit", "cells": 5}})
    found = made.maps(torch.ones(1, 3, 12, 12), torch.tensor([[0, 1]]))[0]
    assert divmod(int(found[0].argmax()), 12) in list(itertools.product((1, 2, 3), (8, 9, 10)))
    torch.testing.assert_close(found[1], -found[0])


# ---------------------------------------------------------------- all


@pytest.mark.parametrize("name", BASELINES)
def test_a_map_depends_on_image_class_and_seed_alone(name: str) -> None:
    network, images = residual(), some_images(3)
    targets = torch.tensor([[0, 3], [1, 1], [2, 0]])
    quick = QUICK.get(name, {})
    found = method(name, network, **quick).maps(images, targets)
    assert found.shape == (3, 2, 12, 12)
    assert not found.requires_grad
    torch.testing.assert_close(method(name, network, batch_size=2, **quick).maps(images[1:], targets[1:]), found[1:])
    if name in ("lime", "rise"):
        assert not torch.allclose(method(name, network, seed=1, **quick).maps(images, targets), found)


def test_large_images_are_run_few_at_once() -> None:
    explained = ExplainedNetwork(residual())
    assert [explained.at_once(torch.zeros(1, 3, side, side)) for side in (56, 112, 224, 448, 900)] == [64, 16, 4, 1, 1]
    assert explained.at_once(torch.zeros(1, 3, 224, 224, device="meta")) == 32
    assert ExplainedNetwork(residual(), batch_size=5).at_once(torch.zeros(1, 3, 900, 900)) == 5


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_explain_what_the_network_was(name: str) -> None:
    network, images = residual(), some_images(1)
    made = method(name, network, **QUICK.get(name, {}))
    before = made.maps(images, TARGETS[:1])
    with torch.no_grad():
        network.classifier.weight.neg_()
    assert torch.equal(made.maps(images, TARGETS[:1]), before)


def test_settings_say_what_was_done() -> None:
    made = baselines(network=residual(), mean=MEAN, std=STD, options=QUICK, reference="black", seed=4)
    assert ", ".join(m.name for m in made) == (
        "Gradient, Input x Gradient, Integrated Gradients, Guided Backprop, DeepLIFT, Grad-CAM, Occlusion, LIME, RISE"
    )
    settings = {m.name: dict(m.settings) for m in made}
    assert settings["Integrated Gradients"]["steps"] == 50
    assert settings["RISE"] | {"masks": 5, "seed": 4, "of": "softmax", "reference": "black"} == settings["RISE"]
    assert settings["Grad-CAM"]["ReLU"] is True
    assert settings["Occlusion"]["window"] == "6 px"
    assert "reference" not in settings["Gradient"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": "gradcam"}, "'gradcam'.*grad-cam"),
        ({"names": ["rise", "lyme"]}, "'lyme'.*lime"),
        ({"options": {"rice": {}}}, "'rice'.*rise"),
        ({"names": "rise", "options": {"rise": {"mask": 3}}}, "no option named 'mask'.*masks"),
        ({"names": "gradient", "options": {"gradient": {"steps": 3}}}, "no option.*it has none"),
        ({"names": "rise", "options": {"rise": {"masks": 0}}}, "masks is 0"),
        ({"names": "rise", "options": {"rise": {"keep": 1.0}}}, "keep is 1.0"),
        ({"names": "rise", "options": {"rise": {"score": "probability"}}}, "score is 'probability'"),
        ({"names": "lime", "options": {"lime": {"ridge": 0}}}, "ridge is 0"),
        ({"names": "integrated-gradients", "options": {"integrated-gradients": {"steps": 2.5}}}, "steps is 2.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"reference": "grey"}, "reference is 'grey'"),
        ({"reference": 2.0}, "reference is 2.0"),
        ({"mean": 0.5}, "mean was given without std"),
        ({"mean": 0.5, "std": 0.0}, "std finite and positive"),
        ({"network": None}, "None is not a network"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        baselines(**{"network": residual(), **arguments})  # type: ignore[arg-type]
    assert re.search(message, str(caught.value).replace("\n", " ")), caught.value


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (torch.rand(2, 3, 12), TARGETS, r"images are of shape \(2, 3, 12\)"),
        (torch.rand(2, 3, 12, 12), TARGETS, "float32, the network is cpu, float64"),
        (some_images()[:, :2], TARGETS, "2 channels"),
        (some_images()[:0], TARGETS, "no images"),
        (some_images() * torch.nan, TARGETS, "NaN"),
        (some_images(), TARGETS.double(), "targets are torch.float64"),
        (some_images(), TARGETS[:1], r"targets have shape \(1, 2\) for 2 images"),
        (some_images(), TARGETS + 2, "not a class of 4"),
    ],
)
def test_wrong_images_and_targets_are_named(images: Tensor, targets: Tensor, message: str) -> None:
    for made in baselines(network=residual(), mean=MEAN, std=STD, options=QUICK):
        with pytest.raises(UsageError, match=message):
            made.maps(images, targets)


def test_a_network_without_classes_is_named() -> None:
    for made in baselines(network=nn.Conv2d(3, 4, 3), options=QUICK):
        with pytest.raises(UsageError, match="not one row of class outputs each"):
            made.maps(torch.rand(2, 3, 12, 12), TARGETS)


def test_captum_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert [m.name for m in baselines(["rise", "grad-cam"], network=residual())] == ["RISE", "Grad-CAM"]
    with pytest.raises(MissingExtraError, match="captum") as caught:
        baselines(network=residual())
    assert "evaluate" in str(caught.value.hint)
