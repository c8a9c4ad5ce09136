"""Calibration of the architectures that people use: with random weights, B = 2, and every claim about the result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.testing import norm_statistics_from_data_
from tests.models.test_checkpoints import MEAN, STD, cifar, logits


def torchvision_model(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return getattr(models, name)(weights=None, num_classes=10)


def timm_model(name: str, **options: Any) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, pretrained=False, num_classes=10, **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision_model("resnet18"),
    "densenet121": lambda: torchvision_model("densenet121"),
    "mobilenet_v2": lambda: torchvision_model("mobilenet_v2"),
    "vgg11": lambda: torchvision_model("vgg11"),
    "convnext": lambda: timm_model("convnext_atto"),
    "vit": lambda: timm_model("vit_tiny_patch16_224", img_size=64),
}


def change(network: nn.Module, original: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        wanted, found = original(images), network(images)
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.slow
@pytest.mark.vision
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("published", [False, True])
def test_networks_are_nearer_to_the_original_and_stay_certified(name: str, published: bool) -> None:
    torch.manual_seed(0)
    images = torch.rand(6, 3, 64, 64)
    original = norm_statistics_from_data_(NETWORKS[name](), images).eval().double()
    images = images.double()
    options: dict[str, Any] = {} if published else {"bias": "keep", "pool": "keep", "head": "keep", "scale": "cosine"}
    network = bcos_fx.bcosify(original, example_inputs=images[:2], b=2.0, verified=False, **options)
    found = bcos_fx.calibrate(network, images, original, batch_size=3)
    assert all(bool(torch.isfinite(value).all()) for value in found.state_dict().values())
    calibration = found.report.figures.calibration
    assert calibration is not None
    layers = {row.node for row in calibration.layers}
    assert layers
    assert not set(calibration.kept) & layers
    if not published:
        assert change(found, original, images) < change(network, original, images)
    certificate = bcos_fx.certify(found, images[:2])
    assert certificate.ok
    assert certificate.completeness is not None
    assert certificate.completeness.worst <= 1e-9


@pytest.mark.slow
def test_efficientnet_lite0_is_calibrated_on_photographs() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    from bcos_fx.cli.demo import efficientnet_lite0, photographs

    original, (images, _) = efficientnet_lite0(), photographs()
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    network = bcos_fx.bcosify(original, example_inputs=images[:2], mean=mean, std=std, b=1.25, bias="keep",
                              pool="keep", head="keep", scale="cosine", verified=False)  # fmt: skip
    calibration = bcos_fx.calibrate(network, images, original).report.figures.calibration
    assert calibration is not None
    assert calibration.before is not None
    assert calibration.after is not None
    assert calibration.before.agreement is not None
    assert (calibration.after.agreement or 0) > calibration.before.agreement + 0.3


@pytest.mark.slow
def test_resnet20_reaches_the_known_figures(data_dir: Path) -> None:
    """Norm statistics of 1,000 training images alone, biases kept: 79.0, 72.7 and 45.8 %, each within 3 points."""
    from bcos_fx.calibration import Targets, calibrate_

    original = read_model(data_dir / "cifar10_resnet20.th", arch="examples.cifar_resnet:resnet20")
    test, labels = cifar(data_dir, 2000)
    images, _ = cifar(data_dir, 1000, part="train")
    for b, known in ((1.25, 0.790), (1.5, 0.727), (2.0, 0.458)):
        network = bcos_fx.bcosify(original, example_inputs=images[:2], mean=MEAN, std=STD, b=b, bias="keep",
                                  pool="keep", head="keep", scale="cosine", verified=False)  # fmt: skip
        alone, matched = copy.deepcopy(network), copy.deepcopy(network)
        calibrate_(alone, images, Targets("none", images=len(images)), batch_size=100)
        calibrate_(matched, images, original, batch_size=100)
        for found in (alone, matched):
            right = float((logits(found, test).argmax(1) == labels).double().mean())
            assert right > known - 0.03, (b, right)
