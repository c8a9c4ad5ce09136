"""Fine-tuning on CIFAR-10: the original, B-cos from scratch, the published recipe and ours, epoch by epoch.

python benchmarks/finetuning.py DATA [--arms original scratch published gradual matched] [--images 10000] [--epochs 10]
    [--seeds 0 1 2] [--settings 0 1 2] [--results FILE.jsonl] [--runs FOLDER] [--out FILE.md] [--picture FILE.png]
    [--quick]

DATA holds cifar10_train.npz, cifar10_test.npz and cifar10_resnet20.th (a ResNet-20 trained on CIFAR-10).

Every epoch is appended to the results file as it ends, and runs go on where they were stopped: the same command again
does what is left. The page and the curves are made of all that the file holds; with --page nothing is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from fine_tuned_pictures import MEAN, ROOT, STD, images_of
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from measuring import Page, own_digest
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import fair, gridpg
from bcos_fx.training.recipe import Training, load_training
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course, LossDecay
from bcos_fx.training.settings import RunSettings

Key = tuple[str, int, int, int, int]
FIELDS = ("arm", "setting", "seed", "subset", "epochs")
# Each arm's tried settings: what differs from its recipe.
# Rise and fade: the shares of training until which B rises to 2 and biases fade to 0, both linearly; 0 for at once.
# From: the share at which B begins to rise. LossDecay: the share until which the weight of distil-layers goes to 0.
# B and bias: what the network is converted with. At B = 1, with biases and without, they show what those are worth, and
# run in no race.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "original": [{"lr": 1e-4}, {"lr": 3e-4}],
    "scratch": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 2e-3}],
    "published": [{"lr": 1e-4}, {"lr": 1e-3}, {"lr": 3e-3}],
    "gradual": [
        {"lr": 3e-3, "rise": 0.1, "fade": 0.1},
        {"lr": 1e-3, "rise": 0.0, "fade": 0.05, "loss": "distil-kl"},
        {"lr": 1e-3, "fade": 0.05, "from": 0.05, "rise": 0.15},
    ],
    "matched": [
        {"losses": {"distil-layers": 30.0, "off-label-bce": 10.0}},
        {"losses": {"distil-layers": 3.0, "off-label-bce": 10.0}},
        {"losses": {"distil-layers": 30.0, "distil-kl": 1.0}},
        {"losses": {"distil-layers": 30.0, "off-label-bce": 10.0}, "taper": 0.5},
        {"losses": {"distil-layers": 30.0, "off-label-bce": 10.0}, "taper": 0.5, "b": 1.0},
        {"losses": {"distil-layers": 30.0, "off-label-bce": 10.0}, "taper": 0.5, "b": 1.0, "bias": "keep"},
    ],
}
# The best of these with seed 0: what the race is run with. Those of other arms were frozen before ours was run at all.
CHOSEN = {"original": 1, "scratch": 0, "published": 1, "gradual": 0, "matched": 3}
# What a setting says of the conversion, and not of training.
CONVERTED = ("b", "bias")
# Arms that train for longer than --epochs, times so much: a network from scratch deserves a schedule of its own.
LENGTHS = {"scratch": 2}
# 3x3 grids of test images, smoothed over 3 pixels: in proportion to the published 15 on 224.
GRIDS = fair(side=3, grids=30, smooth=3, threshold=0.0)


class Normalised(nn.Module):
    """The original behind its normalisation, so that all arms take the same images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--arms", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--tested", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--settings", nargs="+", type=int, help="which of each arm's (default: the best)")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "finetuning.jsonl")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "finetuning", help="folder of checkpoints")
    parser.add_argument("--out", type=Path, help="write the page to this Markdown file too")
    parser.add_argument("--picture", type=Path, help="draw the curves into this file")
    parser.add_argument("--page", action="store_true", help="train nothing")
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows that it runs, measures nothing")
    return parser.parse_args()


def length(arm: str, epochs: int) -> int:
    return epochs * LENGTHS.get(arm, 1)


def described(arm: str, setting: int) -> str:
    said = dict(SETTINGS[arm][setting])
    said |= said.pop("losses", {})
    return ", ".join(
        f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}" for name, value in said.items()
    )


def training_of(arm: str, setting: int, epochs: int, seed: int) -> Training:
    recipe = {"original": "equivalent", "scratch": "bcosification", "published": "bcosification"}.get(arm, arm)
    changes: dict[str, Any] = {"epochs": length(arm, epochs), "seed": seed, "batch_size": 128}
    changes["augment"] = "flip-and-shift"
    tried = dict(SETTINGS[arm][setting])
    tried |= {"loss": tried.pop("losses")} if "losses" in tried else {}
    tried = {name: value for name, value in tried.items() if name not in CONVERTED}
    end = tried.pop("taper", None)
    changes["tapers"] = () if end is None else (LossDecay("distil-layers", Course("linear", end=end)),)
    start, *ends = (tried.pop(name, None) for name in ("from", "rise", "fade"))
    if None not in ends:
        rise, fade = (Course("linear", end=end) if end else Course() for end in ends)
        rise = dataclasses.replace(rise, start=start or 0.0)
        changes |= {"rises": (BSchedule(course=rise),), "fades": (BiasDecay(course=fade),), "calibrate": "steps"}
    return load_training(recipe).with_changes(changes | tried)


def network_of(arm: str, setting: int, original: nn.Module, example: Tensor) -> nn.Module:
    if arm == "original":
        return Normalised(original)
    recipe = arm if arm in ("gradual", "matched") else "bcosification"
    # cosine: the raw scale, as published, ties the outputs to the weights' lengths, which batch norm takes out again
    return bcos_fx.bcosify(
        original,
        recipe=recipe,
        **{name: SETTINGS[arm][setting][name] for name in CONVERTED if name in SETTINGS[arm][setting]},
        mean=MEAN,
        std=STD,
        example_inputs=example,
        verified=False,
        scale="cosine",
    )


def pointing_on(images: Tensor, labels: Tensor) -> Callable[[nn.Module], float]:
    """GridPG as a measure of a network, NaN while it knows too few classes to fill a grid."""

    def measure(network: nn.Module) -> float:
        try:
            return gridpg(network, TensorDataset(images, labels), protocol=GRIDS).mean
        except UsageError:
            return math.nan

    return measure


class Results:
    """The file of results: a line per epoch."""

    def __init__(self, path: Path, tested: int) -> None:
        self.path, self.tested = path, tested
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]

    def add(self, key: Key, row: Any) -> None:
        if any(tuple(r[f] for f in FIELDS) == key and r["epoch"] == row.epoch for r in self.rows):
            return  # a run that went on from before this epoch's end
        plain = dataclasses.asdict(row)
        line = dict(zip(FIELDS, key, strict=True)) | plain | {"measures": dict(row.measures), "tested": self.tested}
        line["code"] = own_digest()
        self.rows.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(f"{' '.join(map(str, key))}: {row}", file=sys.stderr, flush=True)

    @property
    def current(self) -> bool:
        """Whether every line is of the code as it is."""
        return all(row.get("code") == own_digest() for row in self.rows)

    def done(self, key: Key) -> bool:
        return any(tuple(r[f] for f in FIELDS) == key and r["epoch"] == length(key[0], key[4]) for r in self.rows)

    def curves(self) -> dict[tuple[str, int, int, int], list[list[dict[str, Any]]]]:
        """(arm, setting, subset, epochs) -> the epochs of each seed, of finished runs."""
        found: dict[Any, dict[int, list[dict[str, Any]]]] = {}
        for row in self.rows:
            name = tuple(row[f] for f in FIELDS if f != "seed")
            found.setdefault(name, {}).setdefault(row["seed"], []).append(row)
        whole = {
            name: [
                sorted(rows, key=lambda r: r["epoch"])
                for rows in seeds.values()
                if len(rows) == length(name[0], name[3]) + 1
            ]
            for name, seeds in found.items()
        }
        return {name: runs for name, runs in whole.items() if runs}


def train_all(options: argparse.Namespace, results: Results) -> None:
    keys: list[Key] = [
        (arm, setting, seed, options.images, options.epochs)
        for seed in options.seeds
        for arm in options.arms
        for setting in options.settings or [CHOSEN[arm]]
    ]
    left = [key for key in keys if not results.done(key)]
    if not left:
        return
    images, labels, _ = images_of(options.data / "cifar10_train.npz", options.images)
    test, truth, _ = images_of(options.data / "cifar10_test.npz", options.tested)
    for key in left:
        arm, setting, seed, _, epochs = key
        original = read_model(options.data / "cifar10_resnet20.th", arch=f"{ROOT}/examples/cifar_resnet.py:resnet20")
        bcos_fx.finetune(
            network_of(arm, setting, original, test[:2]),
            (images, labels),
            recipe=training_of(arm, setting, epochs, seed),
            validation=(test, truth),
            original=original,
            run=RunSettings(
                folder=options.runs / "-".join(map(str, key)),
                resume=True,
                measures={} if arm == "original" else {"gridpg": pointing_on(test[:1000], truth[:1000])},
                accelerator="cpu",
                on_epoch=lambda row, key=key: results.add(key, row),
            ),
            from_scratch=arm == "scratch",
        )


def mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return statistics.mean(known) if known else None


def reached(run: Sequence[dict[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """The first epoch with this accuracy, B and biases being what they are in the end: before, it is cheap."""
    last = run[-1]
    for row in run:
        settled = row["b"] >= last["b"] - 1e-6 and (row["bias_share"] or 0) <= (last["bias_share"] or 0) + 1e-6
        if settled and (row["accuracy"] or 0) >= accuracy:
            return row
    return None


def table(results: Results) -> list[list[str]]:
    curves = results.curves()
    rows = []
    for name, runs in sorted(curves.items(), key=lambda item: (item[0][2:], list(SETTINGS).index(item[0][0]), item[0])):
        arm, setting, images, epochs = name
        others = [found for other, found in curves.items() if other[0] == "scratch" and other[2:] == name[2:]]
        scratch = [run for found in others for run in found]
        goal = max((run[-1]["accuracy"] for run in scratch), default=None)
        hits = [] if goal is None else [reached(run, goal) for run in runs]
        known = [hit for hit in hits if hit is not None]
        first = None if goal is None else mean(hit["epoch"] for hit in map(lambda r: reached(r, goal), scratch) if hit)
        took = mean(hit["epoch"] for hit in known) if len(known) == len(runs) else None
        grid = [mean(run[min(at, len(run) - 1)]["measures"].get("gridpg") for run in runs) for at in (0, 1, 2, -1)]
        rows.append(
            [
                f"{arm}, {described(arm, setting)}",
                f"{images:,}",
                str(length(arm, epochs)),
                str(len(runs)),
                f"{runs[0][0]['tested']:,}",
                percent(mean(run[0]["accuracy"] for run in runs)),
                percent(mean(run[-1]["accuracy"] for run in runs)),
                number(took),
                number(mean(hit["images"] for hit in known) if took is not None else None),
                number(mean(hit["seconds"] for hit in known) if took is not None else None),
                number(None if not took or first is None else first / took, " times"),
                " / ".join(number(value) for value in grid),
                percent(mean(run[-1]["bias_share"] for run in runs)),
            ]
        )
    return rows


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None, unit: str = "") -> str:
    return "-" if value is None else f"{value:,.3g}{unit}" if abs(value) < 1000 else f"{value:,.0f}{unit}"


def draw(results: Results, path: Path) -> None:
    curves = results.curves()
    sizes = sorted({name[2:] for name in curves})
    drawn = Figure(figsize=(8.2, 4.2 * len(sizes)), layout="constrained")
    axes = drawn.subplots(len(sizes), 1, squeeze=False)[:, 0]
    colors = dict(zip(SETTINGS, ("#808080", "#2154ad", "#d08010", "#c2212a", "#2a8a3a"), strict=True))
    for ax, size in zip(axes, sizes, strict=True):
        for name, runs in sorted(curves.items(), key=lambda item: list(SETTINGS).index(item[0][0])):
            if name[2:] != size:
                continue
            chosen = name[1] == CHOSEN[name[0]]
            look: dict[str, Any] = {"linewidth": 1.6} if chosen else {"linewidth": 0.7, "linestyle": ":", "zorder": 1}
            for seed, run in enumerate(runs):
                label = f"{name[0]}, {described(*name[:2])}" if chosen and not seed else None
                values = [row["accuracy"] for row in run]
                ax.plot(range(len(run)), values, color=colors[name[0]], label=label, **look)
        ax.plot([], [], ":", color="black", linewidth=0.7, label="other settings that were tried")
        ax.set_ylim(0, 1)
        ax.set_title(f"{size[0]:,} images, {size[1]} epochs", fontsize=10)
        ax.set_xlabel("epoch", fontsize=9)
        ax.set_ylabel("accuracy", fontsize=9)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=120)


def main() -> None:
    options = parsed()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.images, options.tested, options.epochs = 256, 128, 1
            options.results, options.runs = Path(scratch) / "results.jsonl", Path(scratch) / "runs"
        results = Results(options.results, options.tested)
        if not options.page:
            train_all(options, results)
        tell(options, results)


def tell(options: argparse.Namespace, results: Results) -> None:
    page = Page("Fine-tuning to a B-cos network", options, current=results.current)
    page.text(
        "- ResNet-20 for CIFAR-10 (a published checkpoint). Images of a third party's JPEG re-encoding of CIFAR-10, so "
        "figures are not those of the canonical set\n"
        "- Batches of 128, random flips and shifts by up to 4 pixels, one thread. Epochs, images and seconds are those "
        "after which the best final accuracy of the from-scratch arm was reached on the same images, counted only once "
        "B and biases are what they are in the end; tests are made once an epoch. Seconds include tests. Biases' "
        "share is that in explained outputs, the logit bias, which is the same for every class, left out\n"
        f"- From scratch every arm's epochs are taken {LENGTHS['scratch']} times, with a schedule as long\n"
        f"- GridPG: {GRIDS.grids} grids of 3x3 of the first 1,000 test images that the network classifies as labeled, "
        f"smoothed over {GRIDS.smooth} pixels; chance is 0.111. None where it knows fewer than 9 classes"
    )
    head = (
        "arm",
        "images",
        "epochs",
        "seeds",
        "tested on",
        "before",
        "after",
        "epochs to it",
        "images to it",
        "seconds to it",
        "speed-up",
    )
    page.table((*head, "GridPG at 0 / 1 / 2 / end", "biases' share"), table(results))
    page.text("Target: ours at least 2 times faster than published, and 10 times faster than from scratch.")
    if options.picture is not None:
        draw(results, options.picture)
    page.close()


if __name__ == "__main__":
    main()
