"""A network and images that a run of seconds can train; also a program, to be killed while it trains.

python small_runs.py FOLDER WHAT NUMBER: train in FOLDER, and be killed at the NUMBER-th time that WHAT happens: an
image is ``read``, or a file is ``written``.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bcos_fx
from bcos_fx.data.sources import ArraySource
from bcos_fx.network import BcosNetwork
from bcos_fx.training.finetune import FineTuned, finetune
from bcos_fx.training.recipe import Optimizer, Training
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course
from bcos_fx.training.settings import RunSettings

CLASSES = 3


def images(count: int = 24) -> tuple[Tensor, Tensor]:
    """Images of three classes, each brighter in its own colour."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, 3, 8, 8, generator=generator) / 2
    labels = torch.arange(count) % CLASSES
    pixels[torch.arange(count), labels] += 0.4
    return pixels, labels


class PaddedReLU(nn.Module):
    """Calls a Python function, whose address differs from process to process."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(F.relu(x), (1, 1, 1, 1))


def original() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            PaddedReLU(),
            nn.Dropout(0.2),
            nn.Conv2d(6, 6, 3),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, CLASSES),
        )
        for _ in range(20):
            network(images()[0])
    return network.eval()


def without_batch_statistics() -> nn.Sequential:
    """What such a network computes for an image does not depend on the batch that it is in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
        return nn.Sequential(*layers).eval()


def converted(**options: Any) -> BcosNetwork:
    network = original()
    return bcos_fx.bcosify(
        network, example_inputs=images()[0][:2], recipe="gradual", mean=(0.4,) * 3, std=(0.3,) * 3, **options
    )


def training(**changes: Any) -> Training:
    """Everything that has a state, or draws random numbers."""
    full = Training(
        epochs=3,
        batch_size=4,
        loss="off-label-bce",
        augment="flip-and-shift",
        mixup=0.3,
        average=0.8,
        rises=(BSchedule(layers="0", learned="layer", drift=0.1), BSchedule(course=Course("cosine", end=0.8))),
        fades=(BiasDecay(course=Course("linear", end=0.7)),),
        optimizer=Optimizer(lr=0.01, warmup=0.5, clip=0.05),
    )
    return full.with_changes(changes)


def plain(**changes: Any) -> Training:
    """Nothing but weights and B, and nothing random but the order."""
    simple = Training(epochs=2, batch_size=4, optimizer=Optimizer(lr=0.01), rises=(BSchedule(course=Course("linear")),))
    return simple.with_changes(changes)


def full_run(folder: Path, *, resume: bool = False) -> FineTuned:
    return finetune(
        converted(),
        images(),
        recipe=training(),
        validation=images(12),
        run=RunSettings(folder=folder, resume=resume, checkpoint_steps=2),
    )


def killed_at(what: str, number: int) -> None:
    owner, name = {"read": (ArraySource, "load"), "written": (os, "replace")}[what]
    before, happened = getattr(owner, name), 0

    def counted(*arguments: Any) -> Any:
        nonlocal happened
        happened += 1
        if happened == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments)

    setattr(owner, name, counted)


if __name__ == "__main__":
    torch.set_num_threads(1)
    killed_at(sys.argv[2], int(sys.argv[3]))
    full_run(Path(sys.argv[1]), resume=True)
