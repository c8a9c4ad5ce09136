"""Fine-tuning on photographs: EfficientNet-Lite0 on ten classes, as itself and as a B-cos network, epoch by epoch.

python benchmarks/photographs.py DATA STAGE [--arms original scratch published matched] [--images 7936] [--epochs 6]
    [--few-images 2000] [--few-epochs 3] [--seeds 0 1 2] [--settings 0 1 2] [--grids 20] [--results FILE.jsonl]
    [--runs FOLDER] [--out FILE.md] [--quick]

DATA holds imagenette_train.npz and imagenette_val.npz. The stages, each of which goes on where it was stopped:

choose  trains every setting of every arm with the first seed, on few photographs and for few epochs, and tests them on
        1,500 photographs that are split off the training photographs. Then `freeze` writes the best of each arm into
        the file of results, to be committed.
freeze  see there; refused while a setting was not trained to its end.
race    trains the frozen setting of every arm with all seeds on all photographs, tested on the same 1,500.
test    reads the test photographs, once, for the networks that the race ended with.
page    makes the page of what the file of results holds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetuning import mean, number, percent, reached
from measuring import Page, own_digest, parser
from torch import nn

import bcos_fx
from bcos_fx.cli.demo import efficientnet_lite0
from bcos_fx.data.sources import ImageSource
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import dynamic_linear, open_source
from bcos_fx.evaluation.localisation import play
from bcos_fx.evaluation.predictions import predict
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import Protocol, published, select
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.network import BcosNetwork
from bcos_fx.training.recipe import Training, load_training
from bcos_fx.training.settings import RunSettings

ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
STAGES = ("choose", "freeze", "race", "test", "page")
FIELDS = ("arm", "setting", "seed", "subset", "epochs")
Key = tuple[str, int, int, int, int]
# Each arm's settings, as many for each: what differs from its recipe, B being that of the conversion.
APART = {"depthwise": 1.0, "*": 2.0}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "original": [{"lr": 1e-4}, {"lr": 3e-4}, {"lr": 1e-4, "augment": "flip"}],
    "scratch": [{"lr": 1e-3}, {"lr": 3e-3}, {"lr": 3e-3, "b": APART}],
    "published": [{"lr": 1e-3}, {"lr": 3e-4}, {"lr": 1e-4}],
    "matched": [{"lr": 1e-3, "b": 2.0}, {"lr": 1e-3, "b": APART}, {"lr": 1e-3, "b": APART, "augment": "flip"}],
}
RECIPES = {"original": "equivalent", "scratch": "bcosification", "published": "bcosification", "matched": "matched"}
# Arms that train for longer than --epochs, times so much: a network from scratch deserves a schedule of its own.
LENGTHS = {"scratch": 2}
TRAINED, HELD = 7936, 1500
# Of the photographs that are held back, those on which explanations are to point after each epoch.
POINTED = 500
POINTED_AT = (0, 1, 2)  # epochs, and the last


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("data", type=Path)
    made.add_argument("stages", nargs="+", choices=STAGES, metavar="STAGE")
    made.add_argument("--arms", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    made.add_argument("--images", type=int, default=TRAINED, help="training photographs of the race")
    made.add_argument("--epochs", type=int, default=6, help="of the race")
    made.add_argument("--few-images", type=int, default=2000, help="training photographs of `choose`")
    made.add_argument("--few-epochs", type=int, default=3, help="of `choose`")
    made.add_argument("--batch-size", type=int, default=32)
    made.add_argument("--side", type=int, default=128, help="pixels")
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    made.add_argument("--settings", nargs="+", type=int, default=[0, 1, 2], help="what `choose` tries")
    made.add_argument("--grids", type=int, default=20, help="at most, of each size, after an epoch")
    made.add_argument("--held", type=int, default=HELD, help="photographs held back, to choose settings on")
    made.add_argument("--test-grids", type=int, default=200, help="at most, of each size, on test photographs")
    made.add_argument("--tested", type=int, help="test photographs (default: all)")
    made.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "photographs.jsonl")
    made.add_argument("--runs", type=Path, default=ROOT / "build" / "photographs", help="folder of checkpoints")
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args()


# ---------------------------------------------------------------- photographs


def archive(data: Path, folder: Path, name: str, chosen: Sequence[int]) -> Path:
    """Write some photographs of an archive into one of their own, unless it is there; return its path."""
    path = folder / f"{name}-{len(chosen)}.npz"
    if not path.exists():
        found = np.load(data)
        bounds = found["offsets"].astype(np.int64)
        files = [found_jpeg[bounds[i] : bounds[i + 1]] for found_jpeg in (found["jpeg"],) for i in chosen]
        offsets = np.concatenate([[0], np.cumsum([len(file) for file in files])])
        folder.mkdir(parents=True, exist_ok=True)
        written = folder / f"writing-{name}.npz"
        labels = found["labels"][list(chosen)]
        np.savez(written, jpeg=np.concatenate(files), offsets=offsets, labels=labels, classes=found["classes"])
        written.rename(path)
    return path


@dataclasses.dataclass(frozen=True)
class Parts:
    """The archives: what is trained on, what settings are chosen on, and where explanations are to point."""

    train: Path
    held: Path
    pointed: Path


def parts(options: argparse.Namespace, images: int) -> Parts:
    """Split the training photographs; the test photographs are not opened."""
    source = options.data / "imagenette_train.npz"
    total = len(open_source(source))
    held = options.held
    if max(options.images, options.few_images) > total - held:
        raise SystemExit(f"there are {total} photographs to train on, {held} of which are held back")
    folder, end = options.runs / "archives", total - held
    return Parts(
        archive(source, folder, "train", range(images)),
        archive(source, folder, "held", range(end, total)),
        archive(source, folder, "pointed", range(end, end + min(POINTED, held))),
    )


def indices(data: Path) -> list[int]:
    """The classes of ImageNet that the photographs show."""
    return [int(index) for index in np.load(data / "imagenette_train.npz")["imagenet"]]


# ---------------------------------------------------------------- networks


def original_of(data: Path) -> nn.Module:
    """EfficientNet-Lite0 with the rows of its own classifier for the ten classes."""
    network: Any = efficientnet_lite0()
    rows, head = indices(data), network._fc
    network._fc = nn.Linear(head.in_features, len(rows))
    with torch.no_grad():
        network._fc.weight.copy_(head.weight[rows])
        network._fc.bias.copy_(head.bias[rows])
    return network.eval()


def network_of(arm: str, setting: int, options: argparse.Namespace) -> BcosNetwork:
    """The network that an arm begins with; the original as what the preserving rules make of it, which is the same."""
    chosen = {name: value for name, value in SETTINGS[arm][setting].items() if name == "b"}
    return bcos_fx.bcosify(
        efficientnet_lite0(),
        recipe=RECIPES[arm],
        classes=indices(options.data),
        mean=MEAN,
        std=STD,
        example_inputs=torch.rand(2, 3, options.side, options.side, generator=torch.Generator().manual_seed(0)),
        verified=False,
        train="eval-graph",  # its stochastic depth is left out, in every arm
        **chosen,
    )


def length(arm: str, epochs: int) -> int:
    return epochs * LENGTHS.get(arm, 1)


def training_of(key: Key, batch_size: int) -> Training:
    arm, setting, seed, _, epochs = key
    changes = {"epochs": length(arm, epochs), "seed": seed, "batch_size": batch_size, "augment": "crop-and-flip"}
    changes["channels_last"] = True  # twice as fast on processors
    tried = {name: value for name, value in SETTINGS[arm][setting].items() if name != "b"}
    return load_training(RECIPES[arm]).with_changes(changes | tried)


# ---------------------------------------------------------------- measuring


def protocols(grids: int) -> dict[str, Protocol]:
    return {f"gridpg {side}x{side}": published(side=side, grids=grids, windows=True) for side in (2, 3)}


def pointing(network: nn.Module, data: Path, protocol: Protocol) -> float:
    """GridPG of a network's own explanation; NaN where it is sure of too few images."""
    task, runner = task_of(network, open_source(data)), Runner()
    try:
        grids = select(predict(task, runner).predictions, protocol)
    except UsageError:
        return math.nan
    return play(task, dynamic_linear(network), grids, protocol, runner).mean


def measures(data: Path, grids: int) -> dict[str, Callable[[nn.Module], float]]:
    return {
        name: lambda network, protocol=protocol: pointing(network, data, protocol)
        for name, protocol in protocols(grids).items()
    }


@torch.no_grad()
def accuracy(network: BcosNetwork, source: ImageSource, batch: int = 50) -> float:
    preprocessing, right = network.preprocessing, 0
    for first in range(0, len(source), batch):
        samples = [source.read(i, preprocessing) for i in range(first, min(first + batch, len(source)))]
        outputs = network(torch.stack([sample.image for sample in samples]))
        right += int((outputs.argmax(1) == torch.tensor([sample.label for sample in samples])).sum())
    return right / len(source)


# ---------------------------------------------------------------- results


class Results:
    """The file of results: a line per epoch, per frozen setting and per test, each of one ``kind``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]

    def add(self, kind: str, row: Mapping[str, Any]) -> None:
        line = {"kind": kind, **row, "code": own_digest()}
        self.rows.append(line)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, allow_nan=False) + "\n")
        print(json.dumps(line), file=sys.stderr, flush=True)

    @property
    def current(self) -> bool:
        """Whether every line is of the code as it is."""
        return all(row.get("code") == own_digest() for row in self.rows)

    def of(self, kind: str, key: Key | None = None) -> Iterator[dict[str, Any]]:
        for row in self.rows:
            if row["kind"] == kind and (key is None or tuple(row[field] for field in FIELDS) == key):
                yield row

    def first(self, kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the first line of a kind that has all values of a key."""
        return next((row for row in self.of(kind) if key.items() <= row.items()), None)

    def epoch(self, key: Key, row: Any) -> None:
        if any(known["epoch"] == row.epoch for known in self.of("epoch", key)):
            return  # a run that went on from before this epoch's end
        plain = dataclasses.asdict(row)
        plain["measures"] = {name: None if math.isnan(v) else v for name, v in row.measures.items()}
        self.add("epoch", dict(zip(FIELDS, key, strict=True)) | plain)

    def run(self, key: Key) -> list[dict[str, Any]]:
        """The epochs of a run that came to its end; else none."""
        rows = sorted(self.of("epoch", key), key=lambda row: row["epoch"])
        return rows if len(rows) == length(key[0], key[4]) + 1 else []

    def frozen(self, options: argparse.Namespace) -> dict[str, int]:
        few = (options.few_images, options.few_epochs)
        return {row["arm"]: row["setting"] for row in self.of("frozen") if (row["subset"], row["epochs"]) == few}


# ---------------------------------------------------------------- stages


def train(options: argparse.Namespace, results: Results, keys: list[Key]) -> None:
    """Train what is left, and keep every network that was trained."""
    for key in keys:
        arm, setting, _, images, _ = key
        split = parts(options, images)
        pointed = measures(split.pointed, options.grids) if images == options.images else {}
        folder = options.runs / "-".join(map(str, key))
        kept = folder / "network.safetensors"
        if results.run(key) and kept.exists():
            continue
        found = bcos_fx.finetune(
            network_of(arm, setting, options),
            split.train,
            recipe=training_of(key, options.batch_size),
            validation=split.held,
            original=original_of(options.data),
            run=RunSettings(
                folder=folder,
                resume=True,
                measures=pointed,
                measure_every=POINTED_AT,
                accelerator="cpu",
                on_epoch=lambda row, key=key: results.epoch(key, row),
            ),
            from_scratch=arm == "scratch",
        )
        for row in found.history:  # a run that was stopped after its last checkpoint, before its last line
            results.epoch(key, row)
        bcos_fx.save(found.network, kept, overwrite=True)


def tried(options: argparse.Namespace) -> list[Key]:
    few = (options.seeds[0], options.few_images, options.few_epochs)
    return [(arm, setting, *few) for arm in options.arms for setting in options.settings]


def freeze(options: argparse.Namespace, results: Results) -> None:
    """Write down the best setting of each arm by its last accuracy on the photographs that are held back."""
    for arm in options.arms:
        if arm in results.frozen(options):
            continue
        ends = {key[1]: results.run(key) for key in tried(options) if key[0] == arm}
        missing = [setting for setting, rows in ends.items() if not rows]
        if missing:
            raise SystemExit(f"settings {missing} of {arm} were not trained to their end: run the stage choose first")
        best = max(ends, key=lambda setting: (ends[setting][-1]["accuracy"], -setting))
        few = {"subset": options.few_images, "epochs": options.few_epochs}
        results.add("frozen", {"arm": arm, "setting": best, **few})


def raced(options: argparse.Namespace, results: Results) -> list[Key]:
    frozen = results.frozen(options)
    missing = [arm for arm in options.arms if arm not in frozen]
    if missing:
        raise SystemExit(f"no setting of {', '.join(missing)} is frozen: run the stages choose and freeze first")
    return [(a, frozen[a], seed, options.images, options.epochs) for seed in options.seeds for a in options.arms]


def test(options: argparse.Namespace, results: Results) -> None:
    """Read the test photographs for every network that the race ended with, when it has ended."""
    keys = raced(options, results)
    unfinished = [key for key in keys if not results.run(key)]
    if unfinished:
        raise SystemExit(f"the race has not ended: {unfinished[0]} is not trained to its end")
    left = [key for key in keys if not any(results.of("test", key))]
    if not left:
        return
    source = options.data / "imagenette_val.npz"
    count = len(open_source(source)) if options.tested is None else options.tested
    tested = archive(source, options.runs / "archives", "test", range(count))
    for key in left:
        network = bcos_fx.load(options.runs / "-".join(map(str, key)) / "network.safetensors")
        points = {name: measure(network) for name, measure in measures(tested, options.test_grids).items()}
        found = {name: None if math.isnan(value) else value for name, value in points.items()}
        row = {"tested": count, "accuracy": accuracy(network, open_source(tested)), "measures": found}
        row["grids"] = options.test_grids
        results.add("test", dict(zip(FIELDS, key, strict=True)) | row)


# ---------------------------------------------------------------- page


def described(arm: str, setting: int) -> str:
    found = dict(SETTINGS[arm][setting])
    b = found.pop("b", None)
    words = [f"{name} {value:g}" if name == "lr" else f"{name} {value}" for name, value in found.items()]
    return ", ".join([arm, *words, *(["depthwise layers at B = 1"] if b == APART else [])])


def race_rows(options: argparse.Namespace, results: Results) -> Iterator[list[str]]:
    runs: dict[tuple[str, int], list[tuple[Key, list[dict[str, Any]]]]] = {}
    for key in raced(options, results):
        if results.run(key):
            runs.setdefault(key[:2], []).append((key, results.run(key)))
    goals = [rows[-1]["accuracy"] for (arm, _), found in runs.items() if arm == "scratch" for _, rows in found]
    goal = max(goals, default=None)
    for (arm, setting), found in runs.items():
        hits = [] if goal is None else [reached(rows, goal) for _, rows in found]
        whole = [hit for hit in hits if hit is not None] if all(hit is not None for hit in hits) else []
        tests = [next(results.of("test", key), None) for key, _ in found]
        known = [row for row in tests if row is not None]
        yield [
            described(arm, setting),
            str(len(found)),
            percent(mean(rows[0]["accuracy"] for _, rows in found)),
            percent(mean(rows[-1]["accuracy"] for _, rows in found)),
            *(number(mean(hit[name] for hit in whole)) for name in ("epoch", "images", "seconds")),
            *(
                " / ".join(
                    number(mean(rows[min(at, len(rows) - 1)]["measures"].get(name) for _, rows in found))
                    for at in (0, 1, 2, -1)
                )
                for name in protocols(1)
            ),
            percent(mean(rows[-1]["bias_share"] for _, rows in found)),
            percent(mean(row["accuracy"] for row in known)),
            *(number(mean(row["measures"].get(name) for row in known)) for name in protocols(1)),
            ", ".join(sorted({str(row["grids"]) for row in known})) or "-",
        ]


def unfinished(options: argparse.Namespace, results: Results) -> Iterator[str]:
    """Say of every run of the race that has no row how far it came."""
    yield "Seconds are of a machine that did other work as well, and differ between runs for that reason too."
    for key in raced(options, results):
        if not results.run(key):
            known = sorted(results.of("epoch", key), key=lambda row: row["epoch"])
            far = f"trained for {known[-1]['epoch']} epochs, {percent(known[-1]['accuracy'])}" if known else "not begun"
            yield f"- Left: {described(*key[:2])}, seed {key[2]}: {far}"


def tell(options: argparse.Namespace, results: Results) -> None:
    page = Page("Fine-tuning on photographs", options, current=results.current)
    page.text(
        f"- EfficientNet-Lite0 (published weights), with its own classifier's rows for ten classes, at {options.side} "
        f"pixels; {options.images:,} photographs of a third party's copy of Imagenette, so figures are not those of "
        f"the canonical set; batches of {options.batch_size}, random resized crops and flips, {options.threads} "
        "thread(s). From scratch the epochs are doubled, with a schedule as long\n"
        f"- Settings are chosen, and epochs followed, on {options.held:,} photographs split off the training "
        "photographs. Test photographs are read once, at the end\n"
        "- Epochs, images and seconds are those after which the best final accuracy of the from-scratch arm was "
        "reached, counted once B and constants are what they are in the end\n"
        f"- GridPG as published, in windows of the network's size, {options.grids} grids at most after an epoch and "
        "as many as the last column says on test photographs; of the original that of its linear map at B = 1, "
        "without its biases. Chance is 0.25 and 0.111"
    )
    sizes = ("GridPG 2x2", "GridPG 3x3")
    head = ("arm", "seeds", "before", "after", "epochs to it", "images to it", "seconds to it")
    pointed = tuple(f"{size} at 0 / 1 / 2 / end" for size in sizes)
    tested = ("accuracy on test", *(f"{size} on test" for size in sizes), "grids")
    page.table((*head, *pointed, "share of constants", *tested), list(race_rows(options, results)))
    page.text("\n".join(unfinished(options, results)))
    page.text(
        f"Every setting that was tried, with the first seed, on {options.few_images:,} photographs for "
        f"{options.few_epochs} epochs (from scratch {2 * options.few_epochs}):"
    )
    frozen = results.frozen(options)
    rows = [
        [described(*key[:2]), percent(results.run(key)[-1]["accuracy"]), "chosen" if frozen[key[0]] == key[1] else ""]
        for key in tried(options)
        if results.run(key)
    ]
    page.table(("setting", "accuracy", ""), rows)
    page.text(
        "Targets: within 1 point of the fine-tuned original; the from-scratch arm's best accuracy in 1/20 of its "
        "images; GridPG 2x2 at least 0.95, 3x3 at least 0.88."
    )
    page.close()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.images, options.few_images, options.held, options.tested = 32, 31, 40, 40
            options.epochs = options.few_epochs = 1
            options.side, options.batch_size, options.settings = 96, 16, [0]
            options.grids = options.test_grids = 1
            options.results, options.runs = Path(scratch) / "results.jsonl", Path(scratch) / "runs"
        results = Results(options.results)
        work: dict[str, Callable[[], None]] = {
            "choose": lambda: train(options, results, tried(options)),
            "freeze": lambda: freeze(options, results),
            "race": lambda: train(options, results, raced(options, results)),
            "test": lambda: test(options, results),
            "page": lambda: tell(options, results),
        }
        for stage in sorted(set(options.stages), key=STAGES.index):
            work[stage]()


if __name__ == "__main__":
    main()
