"""Real checkpoints that nobody here trained, on real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.verification import verify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar(folder: Path, count: int, part: str = "test") -> tuple[Tensor, Tensor]:
    """The first images of a part of the JPEG re-encoded CIFAR-10, (N, 3, 32, 32) in [0, 1], and their labels."""
    import io

    from PIL import Image

    archive = np.load(folder / f"cifar10_{part}.npz")
    data, offsets = archive["jpeg"], archive["offsets"]
    files = (data[offsets[i] : offsets[i + 1]].tobytes() for i in range(count))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return images, torch.from_numpy(archive["labels"][:count].astype(np.int64))


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([network(batch) for batch in images.split(500)])


@pytest.fixture(scope="module")
def resnet20(data_dir: Path) -> nn.Module:
    return read_model(data_dir / "cifar10_resnet20.th", arch="examples.cifar_resnet:resnet20")


@pytest.mark.parametrize(
    ("count", "accuracy"), [(1000, 0.822), pytest.param(10_000, 0.810, marks=pytest.mark.slow)], ids=["1,000", "all"]
)
def test_resnet20_predicts_the_same_on_cifar10(
    count: int, accuracy: float, resnet20: nn.Module, data_dir: Path
) -> None:
    images, labels = cifar(data_dir, count)
    network = bcos_fx.bcosify(
        resnet20, example_inputs=torch.rand(2, 3, 32, 32), recipe="equivalent", mean=MEAN, std=STD
    )
    centre, spread = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    before, after = logits(resnet20, (images - centre) / spread), logits(network, images)
    top = before.topk(2).values
    clear = top[:, 0] - top[:, 1] > 1e-4
    assert clear.float().mean() > 0.99
    assert torch.equal(before.argmax(1)[clear], after.argmax(1)[clear])
    for predicted in (before, after):
        assert round(float((predicted.argmax(1) == labels).double().mean()), 3) == accuracy


def test_resnet20_is_proven_and_fully_covered(resnet20: nn.Module, data_dir: Path) -> None:
    images, _ = cifar(data_dir, 32)
    network = bcos_fx.bcosify(resnet20, recipe="equivalent", mean=MEAN, std=STD, images=images[:8])
    assert network.report.coverage.share == 1.0
    result = verify(resnet20, network, images)
    assert result.ok, result.detail
    single = verify(resnet20, network, images, dtype=torch.float32)
    assert single.ok, single.detail


@pytest.mark.vision
def test_efficientnet_lite0_on_photographs() -> None:
    from bcos_fx.cli.demo import efficientnet_lite0, photographs

    module = efficientnet_lite0()
    images, _ = photographs()
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    network = bcos_fx.bcosify(
        module, example_inputs=images[:2], recipe="equivalent", mean=mean, std=std, images=images[:4]
    )
    assert network.report.coverage.share >= 0.99
    assert network.report.figures.verification is not None
    assert network.report.figures.verification["ok"]
    before, after = logits(module, (images - mean[0]) / std[0]), logits(network, images)
    assert torch.equal(before.argmax(1), after.argmax(1))
    scale = before.abs().max()
    assert (before - after).abs().max() <= 1e-4 * scale
    with torch.no_grad():
        exact, again = module.double()((images.double() - mean[0]) / std[0]), network.double()(images.double())
    assert (exact - again).abs().max() <= 1e-9 * exact.abs().max()
