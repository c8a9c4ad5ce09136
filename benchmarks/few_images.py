"""Training on few photographs of own classes: a plain loop, the recipes as they are, and the recipe few-images.

python benchmarks/few_images.py DATA [--arms ...] [--images 200] [--seeds 0 1 2] [--side 128] [--tested 1000]
    [--results FILE.jsonl] [--out FILE.md] [--quick]

DATA holds imagenette_train.npz. EfficientNet-Lite0 with a new head, which knows no class, is trained on the first
photographs of each class, and tested on photographs that are split off the training photographs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Page, parser
from photographs import MEAN, ROOT, STD, Results, archive
from torch import Tensor, nn
from torch.nn import functional as F

import bcos_fx
from bcos_fx.cli.demo import efficientnet_lite0
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.evaluation import open_source
from bcos_fx.heads.layers import with_new_head
from bcos_fx.network import BcosNetwork
from bcos_fx.training.settings import RunSettings

EPOCHS = 40
SLOWER = {"lr": 1e-3, "lr_of_head": 5.0}
# Each arm's recipe, and what differs from it in the conversion and in the training. The last two led to `few-images`.
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "original, plain loop": ("equivalent", {}, {}),
    "bcosification, plain loop": ("bcosification", {}, {}),
    "bcosification": ("bcosification", {}, {}),
    "matched": ("matched", {}, {}),
    "few-images": ("few-images", {}, {}),
    "few-images at rates 1e-3 and 5e-3": ("few-images", {}, SLOWER),
    "few-images at these rates, B = 2 in depthwise layers": ("few-images", {"b": 2.0}, SLOWER),
}


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("data", type=Path)
    made.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    made.add_argument("--images", type=int, default=200)
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    made.add_argument("--side", type=int, default=128, help="pixels")
    made.add_argument("--tested", type=int, default=1000)
    made.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "few_images.jsonl")
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args()


def chosen(data: Path, images: int) -> list[int]:
    """The places of the first photographs of each class, as many of each."""
    labels = np.load(data)["labels"]
    each = images // 10
    return sorted(int(place) for label in range(10) for place in np.flatnonzero(labels == label)[:each])


def samples(path: Path, side: int) -> tuple[Tensor, Tensor]:
    source, frame = open_source(path), Preprocessing.of((3, side, side))
    read = [source.read(index, frame) for index in range(len(source))]
    return torch.stack([sample.image for sample in read]), torch.tensor([sample.label for sample in read])


def converted(arm: str, side: int) -> BcosNetwork:
    example = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    recipe, changes, _ = ARMS[arm]
    return bcos_fx.bcosify(
        efficientnet_lite0(),
        recipe=recipe,
        mean=MEAN,
        std=STD,
        example_inputs=example,
        verified=False,
        train="eval-graph",
        **changes,
    )


def plain_loop(network: BcosNetwork, images: Tensor, labels: Tensor, seed: int, epochs: int) -> BcosNetwork:
    """What anyone would write first: Adam at 1e-3, cross-entropy, batches of 16, flips."""
    torch.manual_seed(seed)
    network = with_new_head(network, 10, seed).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for places in torch.randperm(len(images)).split(16):
            batch = images[places]
            batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(-1), batch)
            loss = F.cross_entropy(network(batch), labels[places])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    outputs = torch.cat([network(part) for part in images.split(50)])
    return float((outputs.argmax(1) == labels).float().mean())


def trained(arm: str, seed: int, train: Path, options: argparse.Namespace) -> BcosNetwork:
    start, epochs = converted(arm, options.side), 1 if options.quick else EPOCHS
    if arm.endswith("plain loop"):
        return plain_loop(start, *samples(train, options.side), seed, epochs)
    found = bcos_fx.finetune(
        start,
        train,
        head="new",
        original=efficientnet_lite0(),
        run=RunSettings(accelerator="cpu", log=lambda line: print(f"{arm}: {line}", file=sys.stderr, flush=True)),
        seed=seed,
        channels_last=True,
        epochs=epochs,
        **ARMS[arm][2],
    )
    assert isinstance(found.network, BcosNetwork)
    return found.network


def work(options: argparse.Namespace, folder: Path) -> None:
    results, source = Results(options.results), options.data / "imagenette_train.npz"
    total = len(open_source(source))
    train = archive(source, folder, f"few-{options.images}", chosen(source, options.images))
    tested = samples(archive(source, folder, "held", range(total - options.tested, total)), options.side)
    for seed in options.seeds:
        for arm in options.arms:
            key = {"arm": arm, "images": options.images, "seed": seed}
            if results.first("few", key) is not None:
                continue
            start = time.perf_counter()
            network = trained(arm, seed, train, options)
            row = key | {"epochs": EPOCHS, "tested": options.tested}
            results.add("few", row | {"accuracy": accuracy(network, *tested), "seconds": time.perf_counter() - start})
    tell(options, results)


def tell(options: argparse.Namespace, results: Results) -> None:
    page = Page("Training on few photographs", options, current=results.current)
    page.text(
        f"- EfficientNet-Lite0 (published weights) with a new head for ten classes, at {options.side} pixels; "
        f"{options.images} photographs of a third party's copy of Imagenette, as many of each class, tested on "
        f"{options.tested:,} others of its training part; {EPOCHS} epochs each, in batches of 16\n"
        "- *Plain loop*: Adam at 1e-3, cross-entropy, flips, as anyone would write it first. The others are what "
        "`finetune` does by the recipe"
    )
    number: Callable[[list[float]], str] = lambda values: f"{100 * sum(values) / len(values):.1f} %"  # noqa: E731
    rows = []
    for arm in ARMS:
        found = [row for row in results.of("few") if (row["arm"], row["images"]) == (arm, options.images)]
        if found:
            rows.append([arm, str(len(found)), number([row["accuracy"] for row in found])])
    page.table(("training", "seeds", "accuracy"), rows)
    page.text("Target: no worse than a plain loop by 5 points.")
    page.close()


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.images, options.tested, options.side = 20, 20, 64
            options.arms, options.results = ["bcosification, plain loop", "few-images"], Path(scratch) / "few.jsonl"
        work(options, Path(scratch))


if __name__ == "__main__":
    main()
