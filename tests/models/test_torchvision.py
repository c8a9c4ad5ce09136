"""Architectures as torchvision builds them, with random weights and norm statistics taken from data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.testing import norm_statistics_from_data_
from bcos_fx.verification import verify

pytestmark = [pytest.mark.vision, pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")]

MODELS = ("resnet18", "resnet50", "densenet121", "vgg11", "vgg11_bn", "mobilenet_v2", "googlenet", "squeezenet1_1")
# 133 million parameters each, most of them in one layer; one test of one of them is enough to run every time.
LARGE = ("vgg11", "vgg11_bn")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 64


def built(name: str) -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    module: nn.Module = getattr(models, name)(weights=None, **options).eval()
    images = torch.rand(8, 3, SIZE, SIZE)
    norm_statistics_from_data_(module, (images - 0.45) / 0.225)
    return module.eval()


def but_for(*slow: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in MODELS]


@pytest.mark.parametrize("name", but_for("vgg11"))
def test_equal_at_b_1_in_float64_outputs_and_input_gradients(name: str) -> None:
    module = built(name)
    network = bcos_fx.bcosify(
        module, example_inputs=torch.rand(2, 3, SIZE, SIZE), recipe="equivalent", mean=MEAN, std=STD
    )
    report = network.report
    assert report.figures.verification is not None
    assert report.figures.verification["ok"], report.figures.verification["detail"]
    assert report.coverage.share >= 0.99
    assert not report.unknown
    result = verify(module, network, torch.rand(3, 3, SIZE, SIZE), batch_sizes=(1, 2), sizes=())
    assert result.ok, result.detail
    assert {row.name for row in result.comparisons} == {"eval, batch 1", "eval, batch 2", "input gradient"}


@pytest.mark.parametrize("name", but_for(*LARGE))
def test_with_nothing_else_the_result_has_b_2_and_says_what_that_did(name: str) -> None:
    network = bcos_fx.bcosify(built(name), example_inputs=torch.rand(2, 3, SIZE, SIZE))
    layers = [m for m in network.modules() if isinstance(m, bcos_fx.nn.BcosLayer)]
    assert {layer.b for layer in layers} == {2.0}
    assert network.report.coverage.share >= 0.99
    assert network.report.figures.total_drift is not None
    text = network.report.to_text()
    for words in ("alignment-raised", "layer-bias-stripped", "fine-tun"):
        assert words in text


def test_without_an_example_the_first_layer_says_what_fits() -> None:
    module = built("resnet18")
    report = bcos_fx.plan(module)
    assert report.inputs == {"x": "(N, 3, 224, 224), an image in [0, 1], encoded inside"}


def test_auxiliary_heads_are_listed_and_training_them_is_refused() -> None:
    network = bcos_fx.bcosify(built("googlenet"), example_inputs=torch.rand(2, 3, SIZE, SIZE), verified=False)
    assert {name.partition(".")[0] for name in network.report.unused} == {"aux1", "aux2"}
    with pytest.raises(bcos_fx.BcosFxError, match="cannot be trained as the original would be"):
        network.train()
    relaxed = bcos_fx.bcosify(
        built("googlenet"), example_inputs=torch.rand(2, 3, SIZE, SIZE), verified=False, train="eval-graph"
    )
    assert relaxed.train().training


def test_a_vision_transformer_with_its_patch_embedding() -> None:
    """The first layer is a strided convolution; attention keeps q and k plain, and so is left to torch for now."""
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    module = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5).eval()
    nn.init.normal_(module.heads.head.weight)
    network = bcos_fx.bcosify(module, example_inputs=torch.rand(2, 3, 32, 32), recipe="equivalent", mean=MEAN, std=STD)
    assert network.report.rule_counts()["first-layer-widened"] == 1
    assert network.conv_proj.in_channels == 6
    assert network.report.figures.verification is not None
    assert network.report.figures.verification["ok"]
