"""An image-text model as a B-cos network without biases, aligned to its original on photographs without labels.

python benchmarks/clip_photographs.py DATA STAGE ... [--images 7936] [--epochs 2] [--arms photographs cifar]
    [--grids 40] [--results FILE.jsonl] [--folder FOLDER] [--picture FILE.png] [--out FILE.md] [--quick]

DATA holds imagenet_samples.npz, imagenette_train.npz, cifar10_train.npz and cifar10_test.npz. The model is that of
benchmarks/clip_style.py, whose projection is trained here without the ten classes of Imagenette. The stages: `align`,
which goes on where it was stopped, `measure` and `page`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clip_style import (
    LAYERS,
    QUICK,
    TEMPLATES,
    Images,
    Setting,
    convert,
    image_tower,
    kept_tower,
    normalised,
    pointing,
    read,
    run,
    share,
)
from measuring import Page, parser
from photographs import HELD, ROOT, Results, archive
from torch import Tensor, nn
from torch.nn import functional

import bcos_fx
from bcos_fx.evaluation import open_source
from bcos_fx.explanation import cosine
from bcos_fx.network import BcosNetwork
from bcos_fx.text import TextCache, TextEmbeddings, class_embeddings, load_text_tower
from bcos_fx.training.recipe import Optimizer, Training
from bcos_fx.training.settings import RunSettings

STAGES = ("align", "measure", "page")
# The images that each arm is aligned on.
ARMS = {"photographs": "imagenette_train.npz", "cifar": "cifar10_train.npz"}
NAMES = {
    "original": "the original",
    "same": "at B = 1",
    "converted": "B = 2, no biases, converted",
    "photographs": "B = 2, no biases, aligned on photographs",
    "cifar": "B = 2, no biases, aligned on CIFAR-10's images",
}
B = {"depthwise": 1.0, "*": 2.0}


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("data", type=Path)
    made.add_argument("stages", nargs="+", choices=STAGES, metavar="STAGE")
    made.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    made.add_argument("--images", type=int, default=7936, help="that are aligned on")
    made.add_argument("--epochs", type=int, default=2)
    made.add_argument("--held", type=int, default=HELD, help="photographs held back, to measure on")
    made.add_argument("--grids", type=int, default=40, help="at most")
    made.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "clip_photographs.jsonl")
    made.add_argument("--folder", type=Path, default=ROOT / "build" / "clip_photographs", help="of networks and texts")
    made.add_argument("--picture", type=Path, help="a file for a picture of two photographs beside each other")
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args()


@dataclasses.dataclass(frozen=True)
class Model:
    """The two towers, and what they are measured on: a name, images and the texts of their classes."""

    setting: Setting
    images: nn.Module
    sets: dict[str, tuple[Images, TextEmbeddings]]


def setting_of(options: argparse.Namespace) -> Setting:
    return dataclasses.replace(QUICK if options.quick else Setting(), grids=options.grids)


def model_of(options: argparse.Namespace) -> Model:
    """Train the projection on the classes that are not held out, or take the one that is kept."""
    setting = setting_of(options)
    options.folder.mkdir(parents=True, exist_ok=True)
    tower, cache = load_text_tower("minilm"), TextCache(options.folder / "texts.sqlite")

    def texts(names: tuple[str, ...]) -> TextEmbeddings:
        return class_embeddings(tower, names, TEMPLATES, cache=cache)

    shown = set(np.load(options.data / "imagenette_train.npz")["imagenet"].tolist())
    samples = read(options.data / "imagenet_samples.npz", None, setting.side)
    order = torch.randperm(len(samples.pixels), generator=torch.Generator().manual_seed(setting.seed))
    order = order[[int(place) not in shown for place in samples.labels[order]]]
    held = samples.part(order[: setting.held_out])
    seen = samples.part(order[setting.held_out : 40 if options.quick else None])
    total = len(open_source(options.data / "imagenette_train.npz"))
    places = range(total - options.held, total)
    photographs = archive(options.data / "imagenette_train.npz", options.folder, "held", places)
    cifar = read(options.data / "cifar10_test.npz", setting.tested, setting.side)
    sets = {"photographs": read(photographs, None, setting.side), "held-out": held, "CIFAR-10": cifar}
    network = kept_tower(options.folder, lambda: image_tower(setting, seen, texts(seen.names)))
    return Model(setting, network, {name: (images, texts(images.names)) for name, images in sets.items()})


def started(model: Model, **changes: Any) -> BcosNetwork:
    return convert(model.setting, model.images, recipe="clip", scale="cosine", b=B, **changes)


def key_of(options: argparse.Namespace, arm: str) -> dict[str, Any]:
    return {"arm": arm, "images": options.images, "epochs": options.epochs}


def place(options: argparse.Namespace, arm: str) -> Path:
    return options.folder / "-".join(map(str, key_of(options, arm).values())) / "network.safetensors"


def align(options: argparse.Namespace, model: Model) -> None:
    """Draw every arm's network to the original: its embeddings, and what its layers read."""
    for arm in options.arms:
        kept = place(options, arm)
        if kept.exists():
            continue
        data = archive(options.data / ARMS[arm], options.folder, arm, range(options.images))
        training = Training(
            epochs=options.epochs,
            batch_size=32,
            loss={"distil-cosine": 10.0, "distil-layers": LAYERS},
            augment="crop-and-flip",
            channels_last=True,
            optimizer=Optimizer(name="adam", lr=1e-3, warmup=0.5, clip=0.01),
        )
        settings = RunSettings(
            folder=kept.parent,
            resume=True,
            checkpoint_steps=50,
            accelerator="cpu",
            on_epoch=lambda row, arm=arm: print(arm, row, file=sys.stderr, flush=True),
        )
        source = options.data / "imagenette_train.npz"
        total = len(open_source(source))
        validation = archive(source, options.folder, "followed", range(total - options.held, total)[:100])
        ended = bcos_fx.finetune(
            started(model), data, recipe=training, validation=validation, original=model.images, run=settings
        )
        bcos_fx.save(ended.network, kept, overwrite=True)


def network_of(options: argparse.Namespace, model: Model, arm: str) -> nn.Module | None:
    if arm == "same":
        return convert(model.setting, model.images, recipe="equivalent")
    if arm == "converted":
        return started(model)
    return bcos_fx.load(place(options, arm)).eval() if place(options, arm).exists() else None


def measure(options: argparse.Namespace, results: Results, model: Model) -> None:
    """Measure zero-shot accuracy, likeness to the original, and where texts point."""
    original: dict[str, Tensor] = {}
    for arm in NAMES:
        key = key_of(options, arm)
        if results.first("measured", key) is not None:
            continue
        network = None if arm == "original" else network_of(options, model, arm)
        if network is None and arm != "original":
            continue
        row: dict[str, Any] = {}
        for name, (images, texts) in model.sets.items():
            if name not in original:
                original[name] = run(normalised(model.images), images.pixels)
            ours = original[name] if network is None else run(network, images.pixels)
            row[name] = share(ours, texts.vectors, images.labels)
            row[f"{name}, five"] = share(ours, texts.vectors, images.labels, among=5)
            row[f"{name}, cosine"] = float(functional.cosine_similarity(ours, original[name], dim=1).mean())
        if isinstance(network, BcosNetwork):
            row["gridpg"] = pointing(model.setting, network, *model.sets["photographs"])
        results.add("measured", key | row)


def tell(options: argparse.Namespace, results: Results) -> None:
    setting = setting_of(options)
    page = Page("A CLIP-style model, aligned on photographs", options, current=results.current)
    page.text(
        "- Not CLIP: the model of [A CLIP-style model](clip_style.md), EfficientNet-Lite0 with a projection to the "
        "sentences of all-MiniLM-L6-v2, trained here on one photograph of each of some 400 ImageNet classes. The ten "
        "classes of Imagenette are not among them; the image tower had seen all classes in its own training\n"
        "- *Aligned*: converted to B = 2 (depthwise layers 1) without biases, then drawn to the original's embeddings "
        f"(distil-cosine) and to what its layers read (distil-layers) on {options.images:,} images without labels and "
        f"texts, for {options.epochs} epochs, random resized crops and flips; of CIFAR-10 as many, enlarged. One "
        "seed\n"
        f"- Zero-shot: {options.held:,} photographs of the ten classes, held back from alignment; {setting.held_out} "
        "other classes, one photograph each, first and among five; "
        f"{setting.tested} test images of CIFAR-10. Cosine: of the photographs' embeddings to the original's. "
        "Alignment reads no label, but *on photographs* its images show the ten classes; "
        "the other classes and CIFAR-10 say how far it carries beyond them\n"
        f"- GridPG: 2x2 grids of photographs that the network names rightly, explained by the texts of their classes, "
        f"smoothed over 9 pixels, at most {options.grids}; 0.25 is chance, in brackets the interval of 95 % over grids"
    )
    head = ("", "photographs", "of the original's", "held-out", "among five", "CIFAR-10", "cosine", "GridPG by text")
    base, rows = results.first("measured", key_of(options, "original")), []
    for arm, name in NAMES.items():
        row = results.first("measured", key_of(options, arm))
        if row is not None and base is not None:
            figures = [row["photographs"], row["photographs"] / base["photographs"], row["held-out"]]
            figures += [row["held-out, five"], row["CIFAR-10"]]
            cosine = f"{row['photographs, cosine']:.2f}"
            rows.append([name, *(f"{100 * value:.1f} %" for value in figures), cosine, row.get("gridpg", "-")])
    page.table(head, rows)
    page.text("Target: zero-shot at least 90 % of the original's.")
    page.close()


SIDE_BY_SIDE = (9, 4)  # a parachute and a church


def draw(options: argparse.Namespace, model: Model) -> None:
    """Explain two photographs beside each other by the text of either: of each class the one that is named clearest."""
    network = network_of(options, model, "photographs")
    if network is None:
        raise SystemExit("--picture: no network is aligned on photographs yet: run the stage align first")
    images, texts = model.sets["photographs"]
    similarity = functional.normalize(run(network, images.pixels), dim=1) @ texts.vectors.T
    margins = similarity - similarity.topk(2, dim=1).values.mean(dim=1, keepdim=True)
    clearest = [int(margins[:, k].masked_fill(images.labels != k, -torch.inf).argmax()) for k in SIDE_BY_SIDE]
    both = torch.cat([images.pixels[place] for place in clearest], dim=2).unsqueeze(0)
    names = [images.names[k] for k in SIDE_BY_SIDE]
    bcos_fx.explain(network, both, cosine(texts.vectors[list(SIDE_BY_SIDE)], names=names)).save(options.picture)


def work(options: argparse.Namespace, results: Results, model: Model) -> None:
    """Do what needs the model."""
    if "align" in options.stages:
        align(options, model)
    if "measure" in options.stages:
        measure(options, results, model)
    if options.picture is not None:
        draw(options, model)


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as scratch:
        if options.quick:
            options.images, options.epochs, options.held, options.grids = 32, 1, 40, 1
            options.arms = ["photographs"]
            options.results, options.folder = Path(scratch) / "results.jsonl", Path(scratch) / "runs"
        results = Results(options.results)
        if set(options.stages) != {"page"} or options.picture is not None:
            work(options, results, model_of(options))
        if "page" in options.stages:
            tell(options, results)


if __name__ == "__main__":
    main()
