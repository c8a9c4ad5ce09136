"""How long to train on how much data: what a recipe written for a million images becomes for a few hundred.

A B-cos network has to learn again what raising B and taking biases away undid, and that takes steps, however few images
there are. A recipe counts epochs of large batches; on 200 images its 10 epochs of 128 would be 20 steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from bcos_fx.escaping import amount
from bcos_fx.training.recipe import Training

ENOUGH_STEPS = 1000
"""Steps below which training is lengthened, and above which it is left as the recipe has it."""

_LEAST_BATCHES, _SMALLEST_BATCH, _MOST_EPOCHS = 12, 8, 200


@dataclass(frozen=True)
class Sizing:
    """A training that fits its data."""

    training: Training
    images: int
    steps: int
    notes: tuple[str, ...]

    def __str__(self) -> str:
        chosen, steps = self.training, steps_per_epoch(self.images, self.training)
        return (
            f"{amount(self.images, 'image')}, {amount(chosen.epochs, 'epoch')} of {steps:,} "
            f"step{'s' * (steps != 1)} (batches of {min(chosen.batch_size, self.images)}), {chosen.optimizer.name} at "
            f"{chosen.optimizer.lr:g}"
        )


def steps_per_epoch(images: int, training: Training) -> int:
    """Return how many steps an epoch has; a last batch that is not full is left out where it is not the only one."""
    batches = max(1, images // training.batch_size)
    return math.ceil(batches / training.optimizer.accumulate)


def sized(training: Training, images: int, given: Collection[str], counts: Sequence[int] = ()) -> Sizing:
    """Fit a training to the data, given options aside: smaller batches and more epochs where its steps are too few."""
    recipe, notes = training, []
    if steps_per_epoch(images, training) * training.epochs < ENOUGH_STEPS:
        # Smaller batches first: more steps for the same images cost less than more epochs.
        if "batch_size" not in given:
            training = dataclasses.replace(training, batch_size=_batch_size(training.batch_size, images))
        if "epochs" not in given:
            lacking = math.ceil(ENOUGH_STEPS / steps_per_epoch(images, training))
            training = dataclasses.replace(training, epochs=max(training.epochs, min(lacking, _MOST_EPOCHS)))
    if training != recipe:
        notes.append(
            f"the recipe's {amount(recipe.epochs, 'epoch')} in batches of {recipe.batch_size} would be "
            f"{recipe.epochs * steps_per_epoch(images, recipe):,} steps; --epochs and --batch-size decide otherwise"
        )
    steps = training.epochs * steps_per_epoch(images, training)
    if steps < ENOUGH_STEPS:
        enough = math.ceil(ENOUGH_STEPS / steps_per_epoch(images, training))
        notes.append(
            f"{steps:,} steps are few: a network whose B was raised takes about {ENOUGH_STEPS:,} to learn again what "
            f"that undid; give --epochs {enough}" + ("" if training.batch_size <= 16 else ", or a smaller --batch-size")
        )
    return Sizing(training, images, steps, (*notes, *_about_classes(counts)))


def _batch_size(largest: int, images: int) -> int:
    """Return the largest power of two, at least 8, that makes a dozen batches per epoch, up to the recipe's size."""
    dozenth = max(_SMALLEST_BATCH, images // _LEAST_BATCHES)
    return min(largest, 1 << (dozenth.bit_length() - 1))


def _about_classes(counts: Sequence[int]) -> list[str]:
    single = sum(count == 1 for count in counts)
    return [f"{single} of {amount(len(counts), 'class')} have a single image: expect little of them"] if single else []
