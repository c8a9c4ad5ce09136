"""What the B-cos network of the race on photographs loses against its original, and how training changes it.

python benchmarks/photographs_training.py DATA [--changes NAME ...] [--images 2000] [--epochs 3] [--grids 20]
    [--results FILE.jsonl] [--race FILE.jsonl] [--runs FOLDER] [--out FILE.md] [--quick]

DATA holds imagenette_train.npz. Each change alters one thing of the arm `matched` of benchmarks/photographs.py: some
give back what conversion takes away, which tells what costs accuracy; the others train differently. All are tested on
the photographs that are held back; no test photograph is read. A run goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from measuring import Page, parser
from photographs import APART, HELD, MEAN, POINTED, ROOT, STD, Results, indices, measures, original_of, parts

import bcos_fx
from bcos_fx.cli.demo import efficientnet_lite0
from bcos_fx.network import BcosNetwork
from bcos_fx.training.recipe import load_training
from bcos_fx.training.schedule import Course, LossDecay
from bcos_fx.training.settings import RunSettings

LOSSES = {"off-label-bce": 10.0, "distil-layers": 30.0}
TAPER = LossDecay("distil-layers", Course("linear", end=0.5))
# Options of the conversion, and of the training, that differ from the arm's.
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as raced": ({}, {}),
    "biases kept": ({"bias": "keep"}, {}),
    "B = 1.5 where it is 2": ({"b": {"depthwise": 1.0, "*": 1.5}}, {}),
    "B = 1": ({"b": 1.0}, {}),
    "B = 1, biases kept": ({"b": 1.0, "bias": "keep"}, {}),
    "twice as many epochs": ({}, {"epochs": 2}),
    "layers taught to the end": ({}, {"loss": LOSSES}),
    "original's answers taught too": ({}, {"loss": LOSSES | {"distil-kl": 5.0}, "tapers": (TAPER,)}),
    "batches of 16": ({}, {"batch_size": 16}),
    "rate 3e-3": ({}, {"lr": 3e-3}),
    "rate 3e-3, layers taught to the end": ({}, {"lr": 3e-3, "loss": LOSSES}),
}


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("data", type=Path)
    made.add_argument("--changes", nargs="+", choices=list(CHANGES), default=list(CHANGES), metavar="NAME")
    made.add_argument("--images", type=int, default=2000, help="training photographs")
    made.add_argument("--epochs", type=int, default=3)
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--side", type=int, default=128, help="pixels")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--grids", type=int, default=20, help="at most, of each size")
    made.add_argument("--held", type=int, default=HELD, help="photographs held back")
    made.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "photographs_training.jsonl")
    made.add_argument("--race", type=Path, default=ROOT / "benchmarks" / "photographs.jsonl", help="its results")
    made.add_argument("--runs", type=Path, default=ROOT / "build" / "photographs_training", help="of checkpoints")
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args()


def converted(options: argparse.Namespace, **changes: Any) -> BcosNetwork:
    example = torch.rand(2, 3, options.side, options.side, generator=torch.Generator().manual_seed(0))
    given = {"b": APART, "classes": indices(options.data), "mean": MEAN, "std": STD, "train": "eval-graph"} | changes
    return bcos_fx.bcosify(efficientnet_lite0(), recipe="matched", example_inputs=example, verified=False, **given)


def key_of(subset: int, epochs: int, seed: int, name: str) -> dict[str, Any]:
    return {"change": name, "subset": subset, "epochs": epochs, "seed": seed}


def train(options: argparse.Namespace, results: Results) -> None:
    """Train every change that has no result yet, and point it at grids of photographs that are held back."""
    split = parts(options, options.images)
    for name in options.changes:
        key, (conversion, changes) = key_of(options.images, options.epochs, options.seed, name), CHANGES[name]
        if results.first("change", key) is not None:
            continue
        training = {"seed": options.seed, "batch_size": options.batch_size, "augment": "flip", "lr": 1e-3}
        training |= {"channels_last": True} | changes
        training["epochs"] = options.epochs * changes.get("epochs", 1)
        ended = bcos_fx.finetune(
            converted(options, **conversion),
            split.train,
            recipe=load_training("matched").with_changes(training),
            validation=split.held,
            original=original_of(options.data),
            run=RunSettings(folder=options.runs / name.replace(" ", "-"), resume=True, accelerator="cpu"),
        )
        points = {size: measure(ended.network) for size, measure in measures(split.pointed, options.grids).items()}
        last = ended.history[-1]
        row = {"accuracy": last.accuracy, "train_accuracy": last.train_accuracy, "bias_share": last.bias_share}
        results.add("change", key | row | {size: None if math.isnan(v) else v for size, v in points.items()})


def as_raced(race: Results, subset: int, epochs: int, seed: int) -> dict[str, Any] | None:
    """Return what the race itself says of the arm `matched` at its end, as a row of a change; None if not that size."""
    setting = race.first("frozen", {"arm": "matched"})
    rows = [] if setting is None else race.run(("matched", setting["setting"], seed, subset, epochs))
    return rows[-1] | rows[-1]["measures"] if rows else None


def table(page: Page, found: dict[str, dict[str, Any]]) -> None:
    base, rows = found.get("as raced"), []
    for name, row in found.items():
        more = "" if base is None or row is base else f"{100 * (row['accuracy'] - base['accuracy']):+.1f}"
        grids = ["-" if row[f"gridpg {n}x{n}"] is None else f"{row[f'gridpg {n}x{n}']:.3f}" for n in (2, 3)]
        rows.append([name, f"{100 * row['accuracy']:.1f} %", more, *grids, f"{100 * row['bias_share']:.1f} %"])
    page.table(("change", "accuracy", "points", "GridPG 2x2", "GridPG 3x3", "share of constants"), rows)


def tell(options: argparse.Namespace, results: Results) -> None:
    page = Page("What fine-tuning on photographs loses, and what training changes", options, current=results.current)
    page.text(
        "- The arm *matched* of [Fine-tuning on photographs](photographs.md) with its frozen setting, and changes of "
        f"one thing each: batches of {options.batch_size}, one seed; accuracy on the {options.held:,} photographs that "
        "are held back\n"
        "- The first changes give back what conversion takes away, and tell what it costs: *B = 1, biases kept* is the "
        "original's own function before training. The others train differently\n"
        f"- GridPG as published, in windows of the network's size, at most {options.grids} grids of the first "
        f"{POINTED} of these photographs; `-` where a network is sure of too few"
    )
    race = Results(options.race)
    sizes = {(row["subset"], row["epochs"]) for row in results.of("change") if row["seed"] == options.seed}
    for subset, epochs in sorted(sizes):
        page.text(f"## {subset:,} photographs, {epochs} {'epoch' if epochs == 1 else 'epochs'}")
        known = {name: results.first("change", key_of(subset, epochs, options.seed, name)) for name in CHANGES}
        known["as raced"] = known["as raced"] or as_raced(race, subset, epochs, options.seed)
        table(page, {name: row for name, row in known.items() if row is not None})
        left = [name for name, row in known.items() if row is None]
        if left:
            page.text(f"Not trained: {'; '.join(left)}.")
    page.close()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.images, options.held, options.epochs, options.grids = 31, 40, 1, 1
            options.side, options.batch_size, options.changes = 96, 16, ["as raced", "layers taught to the end"]
            options.results, options.runs = Path(scratch) / "results.jsonl", Path(scratch) / "runs"
        options.few_images = options.images  # which `parts` of the race checks too
        results = Results(options.results)
        train(options, results)
        tell(options, results)


if __name__ == "__main__":
    main()
