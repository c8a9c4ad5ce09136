"""Fine-tuning on data other than photographs, towards several labels or numbers; mean and std of clips and volumes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.training.losses import class_targets, total_loss
from bcos_fx.training.settings import RunSettings

pytest.importorskip("lightning")


def sequences(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, outputs))


def tables(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, outputs))


def volumes(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv3d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, outputs))


def hyperspectral(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, outputs))


KINDS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "sequences": (sequences, (4, 12)),
    "tables": (tables, (5,)),
    "volumes": (volumes, (2, 5, 6, 7)),
    "five channels": (hyperspectral, (5, 6, 6)),
}


def trained(make: Any, x: Tensor, y: Tensor, outputs: int, **options: Any) -> Any:
    torch.manual_seed(0)
    network = bcos_fx.bcosify(make(outputs).eval(), example_inputs=x[:2], b=1.25, head="keep")
    return bcos_fx.finetune(network, (x, y), batch_size=16, run=RunSettings(accelerator="cpu"), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipes_augmentation_of_photographs_is_left_out(kind: str) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    found = trained(make, torch.rand(32, *shape), torch.arange(32) % 3, 3, epochs=1)
    assert found.history[-1].loss is not None


def test_several_labels_are_learnt_and_counted() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 5)
    y = (x[:, :3] > 0).float()
    found = trained(tables, x, y, 3, epochs=30, loss="bce", lr=0.02, validation=(x, y))
    shares = [epoch.accuracy for epoch in found.history if epoch.accuracy is not None]
    right = ((found.network(x) > 0) == (y > 0.5)).float().mean()
    assert shares[-1] == pytest.approx(float(right), abs=1e-6)
    assert shares[-1] > shares[0] + 0.1


@pytest.mark.parametrize("loss", ["mse", "l1"])
@pytest.mark.parametrize("flat", [True, False])
def test_numbers_are_learnt(loss: str, flat: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 5)
    y = 2 * x[:, :1] - x[:, 1:2].abs()
    found = trained(tables, x, y[:, 0] if flat else y, 1, epochs=30, loss=loss, lr=0.02, validation=(x, y))
    losses = [epoch.loss for epoch in found.history if epoch.loss is not None]
    assert losses[-1] < 0.5 * losses[0]
    assert all(epoch.accuracy is None for epoch in found.history)


def test_losses_equal_sums_by_hand() -> None:
    outputs, targets = torch.randn(3, 4), torch.randn(3, 4)
    squared = sum((float(a) - float(b)) ** 2 for a, b in zip(outputs.flatten(), targets.flatten(), strict=True)) / 12
    assert float(total_loss({"mse": 1.0}, outputs, targets)) == pytest.approx(squared, rel=1e-5)
    absolute = sum(abs(float(a) - float(b)) for a, b in zip(outputs.flatten(), targets.flatten(), strict=True)) / 12
    assert float(total_loss({"l1": 2.0}, outputs, targets)) == pytest.approx(2 * absolute, rel=1e-5)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (4, 3), (3, 4, 1)])
def test_targets_are_never_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(bcos_fx.errors.UsageError, match="do not fit"):
        total_loss({"mse": 1.0}, torch.randn(3, 4), torch.randn(shape))


def test_numbers_are_no_classes() -> None:
    with pytest.raises(bcos_fx.errors.UsageError, match="mse"):
        class_targets(torch.rand(3), 4)
    with pytest.raises(bcos_fx.errors.UsageError, match="mse"):
        class_targets(torch.randn(3, 4) * 9, 4)
    with pytest.raises(bcos_fx.errors.UsageError, match="outputs"):
        class_targets(torch.rand(3, 5), 4)
    with pytest.raises(bcos_fx.errors.UsageError, match="mixup"):
        trained(tables, torch.rand(32, 5), torch.rand(32, 2), 2, epochs=1, loss="mse", mixup=0.5)
