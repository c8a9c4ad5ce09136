"""Explanations of well-known architectures by onnxruntime alone; random weights, with the norm statistics of noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import bcos_fx
from tests.exporting.test_export import assert_explains
from tests.small_networks import MEAN, STD, images

models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

SIDE = 64
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=10),
    "efficientnet_b0": lambda: models.efficientnet_b0(num_classes=10),
    "vit": lambda: models.VisionTransformer(SIDE, 16, 2, 4, 64, 128, num_classes=10),
}


@pytest.mark.slow
@pytest.mark.vision
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NETWORKS)
def test_onnxruntime_explains_a_network(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    with torch.no_grad():
        network.train()(images(8, size=SIDE))
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.normal_(std=0.02)
    nn.init.normal_(next(head for head in reversed(list(network.modules())) if isinstance(head, nn.Linear)).weight)
    example = images(2, size=SIDE)
    converted = bcos_fx.bcosify(network.eval(), example_inputs=example, recipe="equivalent", mean=MEAN, std=STD)
    found = bcos_fx.export(converted, tmp_path / "explanation.onnx", explanation=True)
    assert found.why_one is None
    assert found.check.difference < 1e-5
    assert found.check.gap < 1e-5
    assert_explains(tmp_path / "explanation.onnx", converted, images(3, size=SIDE), torch.tensor([4, 0, 9]))
