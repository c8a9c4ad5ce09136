"""Explanations of a converted network as it is, and after a short fine-tuning at B = 2, side by side.

python benchmarks/fine_tuned_pictures.py DATA [--out FILE.md] [--picture FILE.png] [--quick]

DATA holds cifar10_train.npz, cifar10_test.npz and cifar10_resnet20.th (a ResNet-20 trained on CIFAR-10).
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from archives import images_of
from matplotlib.figure import Figure
from measuring import Page
from torch import Tensor, nn
from torch.nn import functional as F

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.explanation import Explanation
from bcos_fx.explanation.render.color import photograph

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ROOT = Path(__file__).resolve().parent.parent
SHOWN = 8


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--images", type=int, default=10_000, help="training images")
    parser.add_argument("--epochs", type=int, default=4)
    return parser.parse_args()


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    predicted = torch.cat([network(part).argmax(1) for part in images.split(500)])
    return float((predicted == labels).double().mean())


def fine_tune(network: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """Train as published: binary cross entropy with off-label targets 1/C, Adam, a cosine schedule; flips only."""
    classes = int(labels.max()) + 1
    batches = math.ceil(len(images) / 128)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
    network.train()
    for epoch in range(epochs):
        for chosen in torch.randperm(len(images)).split(128):
            batch = images[chosen]
            flipped = torch.rand(len(batch), 1, 1, 1) < 0.5
            batch = torch.where(flipped, batch.flip(3), batch)
            targets = F.one_hot(labels[chosen], classes).float().clamp_min(1 / classes)
            loss = F.binary_cross_entropy_with_logits(network(batch), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {float(loss.detach()):.4f}", file=sys.stderr, flush=True)
    network.eval()


def draw(before: Explanation, after: Explanation, names: list[str], path: Path) -> None:
    drawn = Figure(figsize=(1.5 * len(before), 5.0), layout="constrained")
    axes = drawn.subplots(3, len(before), squeeze=False)
    rows = ("input", "B = 1, as converted", "B = 2, fine-tuned")
    for column in range(len(before)):
        cells = (photograph(before, column), before[column].image(), after[column].image())
        for row, cell in enumerate(cells):
            ax = axes[row, column]
            ax.imshow(cell, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            if row:
                found = (before, after)[row - 1]
                ax.set_xlabel(names[int(found.prediction[column])], fontsize=8)
            if not column:
                ax.set_ylabel(rows[row], fontsize=8)
    drawn.savefig(path, dpi=120)


def main() -> None:
    options = parsed()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    count, epochs = (256, 1) if options.quick else (options.images, options.epochs)
    tested = 256 if options.quick else 2000
    images, labels, names = images_of(options.data / "cifar10_train.npz", count)
    test, truth, _ = images_of(options.data / "cifar10_test.npz", tested)
    original = read_model(options.data / "cifar10_resnet20.th", arch=f"{ROOT}/examples/cifar_resnet.py:resnet20")
    settings = {"mean": MEAN, "std": STD, "example_inputs": test[:2], "verified": False}
    equivalent = bcos_fx.bcosify(original, recipe="equivalent", **settings)
    tuned = bcos_fx.bcosify(original, recipe="bcosification", **settings)
    untrained = accuracy(tuned, test, truth)
    fine_tune(tuned, images, labels, epochs)
    before, after = bcos_fx.explain(equivalent, test[:SHOWN]), bcos_fx.explain(tuned, test[:SHOWN])
    page = Page("Explanations before and after fine-tuning", options)
    page.text(
        "- ResNet-20 for CIFAR-10 (a published checkpoint); images of a third party's JPEG re-encoding of CIFAR-10, so "
        "figures are not those of the canonical set\n"
        f"- Fine-tuned as published: B = 2, no biases, {count} training images, {epochs} epochs, Adam 1e-3, cosine, "
        f"flips, seed 0; accuracy on {tested} test images"
    )
    rows = [
        ("recipe equivalent, B = 1", f"{accuracy(equivalent, test, truth):.1%}", *_sums(before)),
        ("recipe bcosification, B = 2, as converted", f"{untrained:.1%}", "", ""),
        ("the same, fine-tuned", f"{accuracy(tuned, test, truth):.1%}", *_sums(after)),
    ]
    page.table(("network", "accuracy", "constants' share", "largest residual"), rows)
    if options.picture is not None:
        draw(before, after, names, options.picture)
    page.close()


def _sums(found: Explanation) -> tuple[str, str]:
    """The share of constants in the absolute sums, and the largest residual."""
    constants = found.constants.total()
    own = (found.output - constants - found.residual).abs()
    share = constants.abs() / (own + constants.abs())
    return f"{float(share.mean()):.0%}", f"{float(found.residual.abs().max()):.1e}"


if __name__ == "__main__":
    main()
