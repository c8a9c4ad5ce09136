"""What a step of training costs: a converted network's against its original's, everything that a step does included.

python benchmarks/training_step.py [--out FILE.md] [--quick]
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from fine_tuned_pictures import ROOT
from measuring import Page, Times, parsed, ratio
from torch import Tensor, nn

import bcos_fx
from bcos_fx.checkpoint import build_architecture
from bcos_fx.training.recipe import Training, load_training
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course
from bcos_fx.training.settings import RunSettings

ORIGINAL = "original"
CLASSES = 10


@dataclass(frozen=True)
class Setting:
    """A network, what it is trained on, and how often a step is measured."""

    name: str
    network: nn.Module
    batch: int
    side: int
    steps: int = 4
    rounds: int = 7


def settings(*, quick: bool) -> list[Setting]:
    small = build_architecture(f"{ROOT}/examples/cifar_resnet.py:resnet20")
    if quick:
        return [Setting("ResNet-20", small, batch=4, side=16, steps=1, rounds=1)]
    large = torchvision.models.resnet50(num_classes=CLASSES)
    return [Setting("ResNet-20", small, 128, 32), Setting("ResNet-50", large, 4, 224)]


def arms(setting: Setting, images: Tensor) -> dict[str, tuple[nn.Module, Training]]:
    """Return name -> network and training: the original first, then what is compared with it."""

    def converted(recipe: str) -> nn.Module:
        return bcos_fx.bcosify(setting.network.eval(), recipe=recipe, example_inputs=images[:2], verified=False)

    rising: dict[str, Any] = {"rises": (BSchedule(course=Course("linear", end=1.0)),)}
    rising |= {"fades": (BiasDecay(course=Course("linear", end=1.0)),)}
    return {
        ORIGINAL: (setting.network, load_training("equivalent")),
        "bcosification": (converted("bcosification"), load_training("bcosification")),
        "gradual, while B rises": (converted("gradual"), load_training("gradual").with_changes(rising)),
        "matched, while taught": (converted("matched"), load_training("matched").with_changes({"tapers": ()})),
    }


def measured(setting: Setting) -> Times:
    """Seconds of a step, arm by arm in turn: those of a second epoch, so that whatever happens once is left out."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(setting.batch * setting.steps, 3, setting.side, setting.side, generator=generator)
    labels = torch.arange(len(images)) % CLASSES
    subjects = arms(setting, images)
    times: Times = {name: [] for name in subjects}
    for _ in range(setting.rounds):
        for name, (network, training) in subjects.items():
            rows: list[Any] = []
            recipe = training.with_changes({"epochs": 2, "batch_size": setting.batch})
            reference = setting.network if recipe.distils else None
            bcos_fx.finetune(
                network,
                (images, labels),
                recipe=recipe,
                original=reference,
                run=RunSettings(accelerator="cpu", on_epoch=rows.append),
            )
            times[name].append((rows[-1].seconds - rows[-2].seconds) / setting.steps)
    return times


def main() -> None:
    options = parsed(__doc__)
    torch.set_flush_denormal(True)
    page = Page("Cost of a training step", options)
    page.text(
        "The original with cross-entropy and Adam; the converted networks as their recipes say: BCE with off-label "
        "targets, Adam, adaptive clipping of every parameter's gradient, B = 2 (bcosification, matched) or 1 < B < 2 "
        "with biases (gradual); matched, while taught, runs the original too, and compares what all layers read. Steps "
        "are Lightning's, augmentation included; no tests, galleries or checkpoints. Random images of 10 classes, "
        "float32, denormals flushed to zero. Medians over rounds in turn; for the converted the median ratio to the "
        "original in the same round. Target: none; these figures are printed to be known."
    )
    rows = []
    for threads in (1,) if options.quick else (1, 2):
        torch.set_num_threads(threads)
        for setting in settings(quick=options.quick):
            times = measured(setting)
            cells = [f"{statistics.median(times[ORIGINAL]) * 1e3:.0f} ms"]
            cells += [f"{ratio(times, name, ORIGINAL):.2f}" for name in times if name != ORIGINAL]
            rows.append((setting.name, f"{setting.batch} x {setting.side}²", str(threads), *cells))
    page.table(("network", "batch", "threads", *times), rows)
    page.close()


if __name__ == "__main__":
    main()
