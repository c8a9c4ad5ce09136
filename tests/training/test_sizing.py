"""How a recipe's training is fitted to the data, and what is announced about it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import bcos_fx
from bcos_fx.training.recipe import Optimizer, Training
from bcos_fx.training.recording import duration
from bcos_fx.training.settings import RunSettings
from bcos_fx.training.sizing import ENOUGH_STEPS, sized, steps_per_epoch

pytest.importorskip("lightning")

trainings = st.builds(
    Training,
    epochs=st.integers(1, 120),
    batch_size=st.integers(1, 512),
    optimizer=st.builds(Optimizer, accumulate=st.integers(1, 3)),
)


@given(trainings, st.integers(1, 5000), st.sets(st.sampled_from(["epochs", "batch_size", "lr"])))
def test_what_was_asked_for_stays_and_the_rest_gets_enough_steps(
    training: Training, images: int, asked: set[str]
) -> None:
    found = sized(training, images, asked)
    for name in asked & {"epochs", "batch_size"}:
        assert getattr(found.training, name) == getattr(training, name)
    assert found.training.batch_size <= training.batch_size
    assert found.training.epochs >= training.epochs
    assert found.steps == found.training.epochs * steps_per_epoch(images, found.training)
    before = training.epochs * steps_per_epoch(images, training)
    assert found.steps >= before
    if before >= ENOUGH_STEPS:
        assert found.training == training
        assert found.notes == ()
    elif "epochs" not in asked:
        assert found.steps >= ENOUGH_STEPS or found.training.epochs >= 200
    assert (found.steps < ENOUGH_STEPS) == any("are few" in note for note in found.notes)
    # Everything else is the recipe's.
    same = {"epochs": training.epochs, "batch_size": training.batch_size}
    assert dataclasses.replace(found.training, **same) == training


def test_an_epoch_is_as_long_as_the_loader_makes_it() -> None:
    for images, batch, steps in ((200, 16, 12), (200, 200, 1), (200, 256, 1), (7, 2, 3), (1, 8, 1)):
        assert steps_per_epoch(images, Training(batch_size=batch)) == steps


def test_classes_with_a_single_image_are_counted() -> None:
    training = Training(epochs=1000, batch_size=1)
    assert sized(training, 6, (), counts=[3, 1, 1, 1]).notes == (
        "3 of 4 classes have a single image: expect little of them",
    )
    assert sized(training, 6, (), counts=[3, 3]).notes == ()


def test_times_are_told_in_the_unit_that_suits_them() -> None:
    told = [duration(seconds) for seconds in (0.2, 1.0, 59, 119, 120, 7199, 7200, 36000, 40000)]
    assert told == [
        "1 second",
        "1 second",
        "59 seconds",
        "119 seconds",
        "2 minutes",
        "120 minutes",
        "2.0 hours",
        "10 hours",
        "11 hours",
    ]


@pytest.fixture
def network() -> bcos_fx.BcosNetwork:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return bcos_fx.bcosify(plain.eval(), recipe="bcosification", example_inputs=torch.rand(2, 3, 8, 8))


def some_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(count, 3, 8, 8), torch.arange(count) % 2


def test_few_images_get_small_batches_and_the_user_is_told(network: bcos_fx.BcosNetwork) -> None:
    lines: list[str] = []
    found = bcos_fx.finetune(network, some_images(40), epochs=2, run=RunSettings(accelerator="cpu", log=lines.append))
    assert [row.images for row in found.history] == [0, 40, 80]
    assert lines[0] == "training on 40 images, 2 epochs of 5 steps (batches of 8), adam at 0.0001"
    assert lines[1] == (
        "note: the recipe's 2 epochs in batches of 256 would be 2 steps; --epochs and --batch-size decide otherwise"
    )
    assert any("10 steps are few" in line and "--epochs 200" in line for line in lines)
    assert any(line.startswith("about") and "to go" in line for line in lines)


def test_a_training_given_itself_is_kept(network: bcos_fx.BcosNetwork) -> None:
    lines: list[str] = []
    training = Training(epochs=1, batch_size=40)
    found = bcos_fx.finetune(
        network, some_images(40), recipe=training, run=RunSettings(accelerator="cpu", log=lines.append)
    )
    assert len(found.history) == 2
    assert not any(line.startswith("training on") for line in lines)
