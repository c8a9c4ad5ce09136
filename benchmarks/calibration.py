"""What calibration without labels and without training is worth, with B raised on trained networks.

python benchmarks/calibration.py DATA [--out FILE.md] [--quick]

DATA holds cifar10_train.npz, cifar10_test.npz, cifar10_resnet20.th and imagenet_samples.npz.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from archives import images_of
from measuring import Page
from torch import Tensor, nn

import bcos_fx
from bcos_fx.calibration import Targets, calibrate_
from bcos_fx.checkpoint import read_model
from bcos_fx.cli.demo import efficientnet_lite0
from bcos_fx.data.batches import Batches
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.data.sources import ImageFiles
from bcos_fx.data.stores import open_source

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
ROOT = Path(__file__).resolve().parent.parent
KEPT: dict[str, Any] = {"bias": "keep", "pool": "keep", "head": "keep", "scale": "cosine"}
PUBLISHED: dict[str, Any] = {"bias": "strip", "pool": "average", "head": "logit", "scale": "raw"}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--photographs", type=int, default=400, help="to calibrate EfficientNet-Lite0 on")
    return parser.parse_args()


@torch.no_grad()
def predicted(network: nn.Module, batches: Iterator[Tensor]) -> Tensor:
    return torch.cat([network(batch).argmax(1) for batch in batches])


def percent(found: Tensor, wanted: Tensor) -> str:
    return f"{float((found == wanted).double().mean()):.1%}"


def calibrated(network: nn.Module, images: Any, original: nn.Module, count: int) -> dict[str, tuple[nn.Module, float]]:
    """As converted, with the norms' statistics alone, and with the original; with the seconds that each took."""
    found: dict[str, tuple[nn.Module, float]] = {"as converted": (network, 0.0)}
    ways: dict[str, Any] = {"statistics": Targets("none", images=count), "with the original": original}
    for name, reference in ways.items():
        twin, start = copy.deepcopy(network), time.perf_counter()
        calibrate_(twin, images, reference, batch_size=100, memory=1 << 30)
        found[name] = twin, time.perf_counter() - start
    return found


def row(name: str, ways: dict[str, tuple[nn.Module, float]], score: Callable[[nn.Module], str]) -> list[str]:
    return [name, *(score(network) for network, _ in ways.values()), *(f"{s:.0f}" for _, s in list(ways.values())[1:])]


def cifar(page: Page, data: Path, quick: bool) -> None:
    count, tested = (16, 16) if quick else (1000, 2000)
    images, _, _ = images_of(data / "cifar10_train.npz", count)
    test, truth, _ = images_of(data / "cifar10_test.npz", tested)
    original = read_model(data / "cifar10_resnet20.th", arch=f"{ROOT}/examples/cifar_resnet.py:resnet20")
    plain = bcos_fx.bcosify(original, recipe="equivalent", mean=MEAN, std=STD, example_inputs=images[:2])
    wanted = predicted(plain, iter(test.split(500)))

    def score(network: nn.Module) -> str:
        found = predicted(network, iter(test.split(500)))
        return f"{percent(found, truth)} ({percent(found, wanted)})"

    rows = []
    pressures = [(f"{b:g}, biases kept", b, KEPT) for b in ((2.0,) if quick else (1.0, 1.25, 1.5, 2.0))]
    for name, b, options in [*pressures, ("2, as published", 2.0, PUBLISHED)]:
        network = bcos_fx.bcosify(
            original, b=b, mean=MEAN, std=STD, example_inputs=images[:2], verified=False, **options
        )
        rows.append(row(name, calibrated(network, images, original, count), score))
    page.text(
        f"## ResNet-20 on JPEG re-encoded CIFAR-10\n\n{count:,} training images, no labels, no training; accuracy on "
        f"{tested:,} test images, in brackets the share on which the highest class is the original's. The original: "
        f"{percent(wanted, truth)}. Statistics of these images take the place of those of the training set: the row at "
        "B = 1 shows what that alone costs."
    )
    page.table(("B", "as converted", "statistics", "with the original", "seconds", "seconds"), rows)


def lite(page: Page, data: Path, count: int, tested: int) -> None:
    source = open_source(data / "imagenet_samples.npz")
    assert isinstance(source, ImageFiles)
    bare = [dataclasses.replace(record, label=None) for record in source.records]
    parts = (ImageFiles(part, source.kind) for part in (bare[:count], bare[-tested:]))
    seen, unseen = (Batches(part, Preprocessing(3, 224, 224), 16) for part in parts)
    original = efficientnet_lite0()
    arguments: dict[str, Any] = {"mean": LITE_MEAN, "std": LITE_STD, "example_inputs": torch.rand(2, 3, 224, 224)}
    plain = bcos_fx.bcosify(original, recipe="equivalent", verified=False, **arguments)
    wanted = predicted(plain, iter(unseen))
    rows = []
    for name, b, options in (("1.25, biases kept", 1.25, KEPT), ("2, biases kept", 2.0, KEPT)):
        network = bcos_fx.bcosify(original, b=b, verified=False, **arguments, **options)
        ways = calibrated(network, seen, original, count)
        rows.append(row(name, ways, lambda n: percent(predicted(n, iter(unseen)), wanted)))
    page.text(
        f"## EfficientNet-Lite0 on photographs of ImageNet\n\nCalibrated on {count} photographs; share of {tested} "
        "others on which the highest of 1,000 classes is the original's."
    )
    page.table(("B", "as converted", "statistics", "with the original", "seconds", "seconds"), rows)


def main() -> None:
    options = parsed()
    torch.manual_seed(0)
    page = Page("Calibration", options)
    cifar(page, options.data, options.quick)
    page.close()
    lite(page, options.data, *((8, 8) if options.quick else (options.photographs, 100)))
    page.close()


if __name__ == "__main__":
    main()
