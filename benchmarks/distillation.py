"""A network taught by itself: EfficientNet-Lite0 as a B-cos network, calibrated, then distilled on photographs.

python benchmarks/distillation.py DATA [--arms 1.5-kept-outputs 2-removed-layers ...] [--epochs 10] [--grids N]
    [--folder DIR] [--out FILE.md] [--picture FILE.png] [--threads 1] [--quick]

DATA holds imagenet_samples.npz. No label is used: the network learns the original's answers, and is tested on its
agreement with them. An arm is a B, whether biases are kept or removed, and whether outputs alone are compared with the
original's or what all layers read too. With --folder a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from measuring import Page, parser
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import bcos_fx
from bcos_fx.cli.demo import efficientnet_lite0
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import fair, gridpg, open_source
from bcos_fx.explanation.render.color import photograph
from bcos_fx.network import BcosNetwork
from bcos_fx.training.recipe import Training, load_training
from bcos_fx.training.settings import RunSettings
from bcos_fx.verification.original import NormalizedModel

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
SIDE = 224
# Every fifth photograph is for tests: one for every other class of ImageNet, so no class is in both parts.
TESTED = 5
SHOWN = 6
ARMS = ["1.5-kept-outputs", "1.5-kept-layers", "2-kept-layers", "2-removed-layers"]
LOSSES = {"outputs": {"distil-kl": 1.0}, "layers": {"distil-kl": 1.0, "distil-layers": 30.0}}
RATES = {"outputs": 3e-4, "layers": 1e-3}


@dataclass(frozen=True)
class Photographs:
    """Images (N, 3, H, W) in [0, 1], and what the original sees in them."""

    images: Tensor
    answers: Tensor

    def part(self, tested: bool) -> Photographs:
        chosen = (torch.arange(len(self.images)) % TESTED == TESTED - 1) == tested
        return Photographs(self.images[chosen], self.answers[chosen])


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("data", type=Path)
    made.add_argument("--arms", nargs="+", default=ARMS)
    made.add_argument("--epochs", type=int, default=10)
    made.add_argument("--grids", type=int, default=20)
    made.add_argument("--folder", type=Path, help="where runs are kept, to go on with")
    made.add_argument("--picture", type=Path, help="draw explanations of test images into this file")
    made.add_argument("--threads", type=int, default=1)
    return made.parse_args()


def answers(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([network(part).argmax(1) for part in images.split(20)])


def read(folder: Path, original: nn.Module, count: int | None) -> Photographs:
    source = open_source(folder / "imagenet_samples.npz")
    preprocessing = Preprocessing(3, SIDE, SIDE)
    images = torch.stack([source.read(i, preprocessing).image for i in range(count or len(source))])
    return Photographs(images, answers(original, images))


def distilled(epochs: int, compared: str) -> Training:
    """B and biases are what they end as from the first step on."""
    changes = {"epochs": epochs, "batch_size": 16, "augment": "crop-and-flip"}
    changes |= {"loss": LOSSES[compared], "lr": RATES[compared]}
    return load_training("gradual").with_changes({**changes, "rises": (), "fades": ()})


def row_of(stage: str, network: nn.Module, taught: Photographs, tested: Photographs, grids: int) -> list[str]:
    """How often the network answers as the original does, and where its explanations point."""
    seen, unseen = (float((answers(network, part.images) == part.answers).double().mean()) for part in (taught, tested))
    data = TensorDataset(tested.images, tested.answers)
    try:
        found = gridpg(network, data, protocol=fair(side=2, grids=grids, threshold=0.0))
        low, high = found.interval
        points = f"{found.mean:.3f} ({low:.3f} to {high:.3f}, {len(found.grids)} grids)"
    except UsageError as error:
        points = f"none: {error.what}"
    print(f"{stage}: {seen:.1%} and {unseen:.1%}, {points}", file=sys.stderr, flush=True)
    return [stage, f"{seen:.1%}", f"{unseen:.1%}", points]


def stages(
    arm: str, original: nn.Module, taught: Photographs, folder: Path, epochs: int
) -> list[tuple[str, BcosNetwork]]:
    """The network as converted, calibrated, and distilled."""
    b, biases, compared = arm.split("-")
    converted = bcos_fx.bcosify(
        original,
        recipe="gradual",
        b=float(b),
        bias="strip" if biases == "removed" else "keep",
        mean=MEAN,
        std=STD,
        example_inputs=taught.images[:2],
        verified=False,
        train="eval-graph",  # its stochastic depth is left out
    )
    calibrated = bcos_fx.calibrate(converted, taught.images, original)
    found = bcos_fx.finetune(
        calibrated,
        taught.images,
        recipe=distilled(epochs, compared),
        original=original,
        run=RunSettings(
            folder=folder / arm,
            resume=True,
            accelerator="cpu",
            on_epoch=lambda row: print(f"{arm}: {row}", file=sys.stderr, flush=True),
        ),
    )
    kind = f"B = {b}, biases {biases}"
    names = f"{kind}, converted", f"{kind}, calibrated", f"{kind}, {compared} distilled"
    return list(zip(names, (converted, calibrated, found.network), strict=True))


def draw(networks: list[tuple[str, BcosNetwork]], tested: Photographs, path: Path) -> None:
    """Each network's explanation of what the original sees in a few test images."""
    images, targets = tested.images[:SHOWN], tested.answers[:SHOWN]
    drawn = Figure(figsize=(1.7 * SHOWN, 1.75 * (len(networks) + 1)), layout="constrained")
    axes = drawn.subplots(len(networks) + 1, SHOWN, squeeze=False)
    for row, (name, network) in enumerate([("input", networks[0][1]), *networks]):
        found = bcos_fx.explain(network, images, targets)
        for column in range(SHOWN):
            ax = axes[row, column]
            ax.imshow(found[column].image() if row else photograph(found, column))
            ax.set_xticks([])
            ax.set_yticks([])
            if not column:
                ax.set_ylabel(name.replace(", ", "\n"), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=100)


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    if options.quick:
        options.arms, options.epochs, options.grids = ["1.5-removed-layers"], 1, 1
    network = efficientnet_lite0()
    equivalent = bcos_fx.bcosify(
        network, recipe="equivalent", mean=MEAN, std=STD, example_inputs=torch.rand(2, 3, SIDE, SIDE), verified=False
    )
    photographs = read(
        options.data, NormalizedModel(network.eval(), equivalent.record.inputs), 30 if options.quick else None
    )
    taught, tested = photographs.part(False), photographs.part(True)
    page = Page("Distillation from itself, without labels", options)
    page.text(
        f"- EfficientNet-Lite0 (published ImageNet weights), converted by recipe gradual (average pooling, scale "
        f"cosine) at a raised B, biases kept or removed; calibrated on {len(taught.images)} photographs, then trained "
        f"on the same: {options.epochs} epochs, batches of 16, random resized crops and flips, Adam, cosine schedule. "
        f"*Outputs*: toward the original's probabilities (distil-kl), at a rate of {RATES['outputs']:g}. *Layers*: "
        f"what all layers read is drawn to what the original's read too (distil-layers, weight "
        f"{LOSSES['layers']['distil-layers']:g}), at {RATES['layers']:g}\n"
        f"- Tested on {len(tested.images)} other photographs, of other classes: one photograph for every other class "
        "of ImageNet. Agreement is that of the highest class with the original's; GridPG: 2x2 grids of test images "
        "that the network names as the original does, chance 0.25, so each row is of other images"
    )
    rows = [row_of("B = 1, the original itself", equivalent, taught, tested, options.grids)]
    shown = [("B = 1", equivalent)]
    with tempfile.TemporaryDirectory() as scratch:
        for arm in options.arms:
            made = stages(arm, network, taught, options.folder or Path(scratch), options.epochs)
            known = {row[0] for row in rows}
            new = [(name, each) for name, each in made if name not in known]
            rows += [row_of(name, each, taught, tested, options.grids) for name, each in new]
            shown += [(name, each) for name, each in new if not name.endswith("converted")]
    page.table(("network", "agreement, taught", "agreement, tested", "GridPG (95 %)"), rows)
    if options.picture is not None:
        draw(shown, tested, options.picture)
    page.close()


if __name__ == "__main__":
    main()
