"""What mattered: one choice at a time, before and after a short fine-tuning on CIFAR-10.

python benchmarks/ablation.py DATA [--images 10000] [--epochs 3] [--tested 2000] [--choices B bias ...]
    [--results FILE.jsonl] [--runs FOLDER] [--out FILE.md] [--page] [--quick]

DATA holds cifar10_train.npz, cifar10_test.npz and cifar10_resnet20.th (a ResNet-20 trained on CIFAR-10).

Each network is appended to the results file as it is done: the same command again does what is left. The page is made
of all that the file holds; with --page nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from archives import images_of
from fine_tuned_pictures import MEAN, ROOT, STD
from finetuning import GRIDS, number, percent, pointing_on
from measuring import Page
from torch import nn

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.training.recipe import load_training
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course
from bcos_fx.training.settings import RunSettings


@dataclass(frozen=True)
class Variant:
    """A choice: what differs from the base, in the conversion and in the training."""

    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def rising(shape: str = "linear", to: float = 2.0, **others: Any) -> dict[str, Any]:
    return {"rises": (BSchedule(to=to, course=Course(shape, end=0.5), **others),)}


# The base: recipe gradual, B to 2 and biases to 0, both linearly, calibrated while B rises. "base" stands for it.
BASE = Variant()
LAYERS = {"off-label-bce": 10.0, "distil-layers": 30.0}
CHOICES: dict[str, dict[str, Variant]] = {
    "B": {
        "1": Variant(training=rising(to=1.0)),
        "1.25": Variant(training=rising(to=1.25)),
        "1.5": Variant(training=rising(to=1.5)),
        "2 (base)": BASE,
        "2.5": Variant(training=rising(to=2.5)),
    },
    "biases": {
        "kept": Variant(training={"fades": ()}),
        "weight decay": Variant(training={"fades": (BiasDecay(decay=5.0),)}),
        "faded (base)": BASE,
        "removed at once": Variant(training={"fades": (BiasDecay(),)}),
    },
    "calibration": {
        "never": Variant(training={"calibrate": "never"}),
        "at the start": Variant(training={"calibrate": "start"}),
        "while B rises (base)": BASE,
    },
    "scale": {
        "cosine (base)": BASE,
        "raw": Variant(options={"scale": "raw"}),
        "unit": Variant(options={"scale": "unit"}),
    },
    "rise of B": {
        "at once": Variant(training={"rises": (BSchedule(),)}),
        "linear (base)": BASE,
        "cosine": Variant(training=rising("cosine")),
        "steps": Variant(training=rising("steps")),
        "learned, drawn to 2": Variant(training=rising(learned="layer", drift=10.0)),
    },
    "loss": {
        "off-label-bce (base)": BASE,
        "bce": Variant(training={"loss": "bce"}),
        "cross-entropy": Variant(training={"loss": "cross-entropy"}),
        "distil-kl": Variant(training={"loss": "distil-kl"}),
        "distil-bce": Variant(training={"loss": "distil-bce"}),
        "distil-layers 30 beside": Variant(training={"loss": LAYERS}),
        "distil-layers 30 beside, all at once": Variant(
            training={"loss": LAYERS, "rises": (BSchedule(),), "fades": (BiasDecay(),)}
        ),
    },
}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--tested", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--choices", nargs="+", choices=list(CHOICES), default=list(CHOICES))
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "ablation.jsonl")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "ablation", help="folder of checkpoints")
    parser.add_argument("--out", type=Path, help="write the page to this Markdown file too")
    parser.add_argument("--page", action="store_true", help="train nothing")
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows that it runs, measures nothing")
    return parser.parse_args()


def converted(original: nn.Module, variant: Variant, example: torch.Tensor) -> nn.Module:
    options = {"scale": "cosine", **variant.options}
    return bcos_fx.bcosify(
        original, recipe="gradual", mean=MEAN, std=STD, example_inputs=example, verified=False, **options
    )


def slug(choice: str, name: str) -> str:
    """A variant's name in the results; the base is trained once for all choices."""
    return "base" if CHOICES[choice][name] is BASE else f"{choice}: {name}"


def read(path: Path, setting: Mapping[str, int]) -> dict[str, Any]:
    """The rows that were measured in this setting, by variant."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {row["variant"]: row for row in rows if row["setting"] == setting}


def train_all(options: argparse.Namespace, setting: Mapping[str, int]) -> None:
    """Train what is not in the results yet."""
    wanted = {slug(choice, name): v for choice in options.choices for name, v in CHOICES[choice].items()}
    done = read(options.results, setting)
    left = {name: variant for name, variant in wanted.items() if name not in done}
    if not left:
        return
    images, labels, _ = images_of(options.data / "cifar10_train.npz", options.images)
    test, truth, _ = images_of(options.data / "cifar10_test.npz", options.tested)
    for name, variant in left.items():
        original = read_model(options.data / "cifar10_resnet20.th", arch=f"{ROOT}/examples/cifar_resnet.py:resnet20")
        changes = {"epochs": options.epochs, "batch_size": 128, "augment": "flip-and-shift", "lr": 3e-3, "seed": 0}
        changes |= {"calibrate": "steps"} | dict(variant.training)
        folder = options.runs / "".join(letter if letter.isalnum() else "-" for letter in name)
        trained = bcos_fx.finetune(
            converted(original, variant, test[:2]),
            (images, labels),
            recipe=load_training("gradual").with_changes(changes),
            validation=(test, truth),
            original=original,
            run=RunSettings(
                folder=folder,
                resume=True,
                measures={"gridpg": pointing_on(test[:1000], truth[:1000])},
                accelerator="cpu",
            ),
        )
        first, last = trained.history[0], trained.history[-1]
        row = {
            "variant": name,
            "setting": setting,
            "before": first.accuracy,
            "first epoch": trained.history[1].accuracy,
            "after": last.accuracy,
            "gridpg": last.measures["gridpg"],
            "b": last.b,
            "bias_share": last.bias_share,
            "seconds": last.seconds,
        }
        with options.results.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(row, file=sys.stderr, flush=True)


def tell(page: Page, options: argparse.Namespace, setting: Mapping[str, int]) -> None:
    rows = read(options.results, setting)
    page.text(
        f"ResNet-20 with a published checkpoint, {setting['images']:,} training images of a JPEG re-encoded CIFAR-10, "
        f"{setting['epochs']} epochs, tested on {setting['tested']:,}; one seed, so a point more or less means little. "
        "The base is recipe `gradual` at a rate of 3e-3 with cosine scale; every row changes one choice. GridPG: 3x3, "
        f"{GRIDS.grids} grids, smoothed over {GRIDS.smooth} pixels, chance 0.111. Biases' share is that in explained "
        "outputs, the logit bias left out."
    )
    table = []
    for choice, variants in CHOICES.items():
        for name in variants:
            row = rows.get(slug(choice, name))
            if row is not None:
                figures = [percent(row[key]) for key in ("before", "first epoch", "after")]
                table.append(
                    [choice, name, *figures, number(row["gridpg"]), f"{row['b']:.3g}", percent(row["bias_share"])]
                )
    page.table(("choice", "", "before", "after 1 epoch", "after", "GridPG", "B", "biases' share"), table)
    missing = [f"{c}: {n}" for c, variants in CHOICES.items() for n in variants if slug(c, n) not in rows]
    if missing:
        page.text(f"Not run yet: {', '.join(missing)}.")


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.images, options.tested, options.epochs, options.choices = 256, 128, 1, ["scale"]
            options.results, options.runs = Path(scratch) / "results.jsonl", Path(scratch) / "runs"
        setting = {"images": options.images, "tested": options.tested, "epochs": options.epochs}
        if not options.page:
            train_all(options, setting)
        page = Page("Ablation", options)
        tell(page, options, setting)
        page.close()


if __name__ == "__main__":
    main()
