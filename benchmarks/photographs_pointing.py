"""Where the fine-tuned network's explanations point on photographs, beside post-hoc methods on its original.

python benchmarks/photographs_pointing.py DATA NETWORK [--part test] [--photographs 600] [--grids 100]
    [--slow-grids 6] [--curves 40] [--windows] [--folder DIR] [--pictures DIR] [--out FILE.md]

DATA holds imagenette_train.npz and imagenette_val.npz; NETWORK is what benchmarks/photographs.py trained. Every method
explains the same grids, of photographs that NETWORK classifies correctly; and deletes pixels of the same photographs.
Each explains the class's output, and what sets it apart: that output less the mean of the other classes' outputs.
With --folder scores are written as they come, and a run that was stopped continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from measuring import Page, parser
from photographs import HELD, archive, original_of
from torch import Tensor, nn

import bcos_fx
from bcos_fx.evaluation import Localisation, Method, Protocol, dynamic_linear, open_source
from bcos_fx.evaluation.deletion import Curves, pixel_deletion
from bcos_fx.evaluation.localisation import boxes, play
from bcos_fx.evaluation.plots import curves
from bcos_fx.evaluation.predictions import EvaluationTask, Predictions, predict
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import published, select
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.methods.baselines import baselines
from bcos_fx.verification.original import NormalizedModel

SLOW = ("integrated-gradients", "occlusion", "lime", "rise")
OPTIONS = {"rise": {"masks": 1000}}


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("data", type=Path)
    made.add_argument("network", type=Path)
    made.add_argument("--part", choices=("held", "test"), default="test", help="of the photographs")
    made.add_argument("--photographs", type=int, default=600, help="the first so many of the part")
    made.add_argument("--grids", type=int, default=100, help="at most, of each size")
    made.add_argument("--slow-grids", type=int, default=6, help="for methods that run the network hundreds of times")
    made.add_argument("--windows", action="store_true", help="explain grids in windows of the network's size too")
    made.add_argument("--curves", type=int, default=40, help="photographs that pixels are deleted from")
    made.add_argument("--folder", type=Path, help="where scores are written as they come")
    made.add_argument("--pictures", type=Path, help="a folder for the pictures")
    made.add_argument("--threads", type=int, default=2)
    return made.parse_args()


def photographs(options: argparse.Namespace, folder: Path) -> Path:
    """An archive of the photographs that are measured on."""
    name = {"held": "imagenette_train", "test": "imagenette_val"}[options.part]
    source = options.data / f"{name}.npz"
    total = len(open_source(source))
    first = total - HELD if options.part == "held" else 0
    # Files of a part are in the order of classes or in a fixed random one; every k-th of them is of all classes.
    step = max(1, (total - first) // options.photographs)
    return archive(source, folder, f"{options.part}-every-{step}", range(first, total, step)[: options.photographs])


def methods(task: EvaluationTask) -> list[Method]:
    """The network's own explanation, then the post-hoc ones of the original."""
    original = task.original
    assert isinstance(original, NormalizedModel)
    return [dynamic_linear(task.model), *baselines(network=original, reference=original.neutral, options=OPTIONS)]


def less_the_others(outputs: Tensor) -> Tensor:
    """Subtract from each of the outputs (N, K, ...) the mean of the others."""
    return outputs - (outputs.sum(1, keepdim=True) - outputs) / (outputs.shape[1] - 1)


class Apart(nn.Module):
    """A classifier whose outputs (N, K) are what sets each class apart from the others."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, K): each output less the mean of the others."""
        return less_the_others(self.network(images))


def methods_apart(task: EvaluationTask) -> list[Method]:
    """The same methods, each explaining what sets the class apart from the others."""
    original, own = task.original, dynamic_linear(task.model)
    assert isinstance(original, NormalizedModel)

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        every = torch.arange(len(task.source.classes)).expand(len(images), -1)
        found = less_the_others(own.maps(images, every))
        return found.gather(1, targets[:, :, None, None].expand(-1, -1, *found.shape[2:]))

    apart = NormalizedModel(Apart(original.module).eval(), task.model.record.inputs)
    posthoc = baselines(network=apart, reference=original.neutral, options=OPTIONS)
    return [dataclasses.replace(each, name=f"{each.name}, apart") for each in (Method(own.name, {}, maps), *posthoc)]


def is_slow(method: Method) -> bool:
    return any(method.name.lower().replace(" ", "-").startswith(name) for name in SLOW)


def localised(
    task: EvaluationTask, found: Predictions, protocol: Protocol, options: argparse.Namespace, runner: Runner
) -> list[Localisation]:
    """Score every method on the same grids; in windows the network's own explanation alone."""
    grids = select(found.predictions, protocol)[: options.grids]
    every = [*methods(task), *methods_apart(task)]
    if protocol.windows:
        every = [dataclasses.replace(m, name=f"{m.name}, in windows") for m in every if m.name.startswith("B-cos")]
    return [
        play(task, method, grids[: options.slow_grids] if is_slow(method) else grids, protocol, runner)
        for method in every
        if options.slow_grids or not is_slow(method)
    ]


def row_of(result: Localisation) -> tuple[str, ...]:
    (low, high), side = result.interval, result.protocol.side
    return (f"{side}x{side}", result.method, f"{result.mean:.3f}", f"{low:.3f} to {high:.3f}", str(len(result.grids)))


def deleted(task: EvaluationTask, found: Predictions, options: argparse.Namespace) -> dict[str, tuple[Curves, Curves]]:
    """Method -> its curves with the most and with the least important pixels first, each on the network it explains."""
    right = [p for p in found.predictions if p.predicted == p.label and p.original == p.label][: options.curves]
    images = task.read([p.index for p in right])
    targets = torch.tensor([[p.label] for p in right])
    result = {}
    for method in methods(task):
        if is_slow(method):
            continue
        network = task.model if not result else task.original
        assert network is not None
        most, least = (
            pixel_deletion(method, network, images, targets, order=order, imputation="mean", steps=20)
            for order in ("most", "least")
        )
        result[method.name] = (most, least)
    return result


def stability(most: Curves, least: Curves) -> float:
    """Area between the two curves: large where the order of pixels is that of their importance."""
    return least.mean - most.mean


def tell(options: argparse.Namespace, scratch: Path) -> None:
    page = Page("Localization on photographs", options)
    network = bcos_fx.load(options.network)
    source = open_source(photographs(options, scratch))
    original = NormalizedModel(original_of(options.data), network.record.inputs)
    task, runner = task_of(network, source, original=original), Runner(folder=options.folder)
    found = predict(task, runner)
    right = [np.mean([getattr(p, name) == p.label for p in found.predictions]) for name in ("predicted", "original")]
    slow = ", ".join(SLOW)
    few = f"{slow} have {options.slow_grids} of each size" if options.slow_grids else f"{slow} are left out"
    page.text(
        "- EfficientNet-Lite0, ten classes, B-cosified and fine-tuned by `benchmarks/photographs.py`: right on "
        f"{right[0]:.1%} of {len(found.predictions)} {options.part} photographs of a third party's copy of Imagenette; "
        f"its original, which was not fine-tuned, on {right[1]:.1%}\n"
        "- Grids as published: of photographs that the fine-tuned network classifies correctly, contributions averaged "
        "over boxes of 15 pixels; whole grids are explained. The B-cos network explains itself; the post-hoc methods "
        "explain the original, on the same grids. "
        "*Apart*: not the class's output is explained, but how far it is above the mean of the other classes' outputs. "
        f"{few}\n"
        "- Intervals: 95 %, bootstrap over grids. Chance is 0.25 and 0.111"
    )
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, ...]] = []
    for side in (2, 3):
        results = localised(task, found, published(side=side, grids=options.grids), options, runner)
        if options.windows:
            windowed = published(side=side, grids=options.grids, windows=True)
            results += localised(task, found, windowed, options, runner)
        rows += map(row_of, results)
        if options.pictures is not None:
            boxes(results).savefig(options.pictures / f"photographs-pointing-{side}x{side}.png", dpi=110)
    page.table(("grid", "method", "GridPG", "95 %", "grids"), rows)
    page.text("Targets: 2x2 at least 0.95, 3x3 at least 0.88, and 0.1 above every post-hoc method.")
    report_deletion(page, deleted(task, found, options), options)
    page.close()


def report_deletion(page: Page, found: dict[str, tuple[Curves, Curves]], options: argparse.Namespace) -> None:
    page.text(
        f"Pixels of {options.curves} photographs, which both networks classify correctly, are replaced by the mean "
        "color in 20 steps; the class's probability is averaged over the steps. Each method is measured on the "
        "network that it explains."
    )
    table: Sequence[tuple[str, ...]] = [
        (name, f"{most.mean:.3f}", f"{least.mean:.3f}", f"{stability(most, least):.3f}")
        for name, (most, least) in found.items()
    ]
    page.table(("method", "most important first (low is good)", "least first (high is good)", "between"), table)
    if options.pictures is not None:
        shares = next(iter(found.values()))[0].shares.double().numpy()
        values = {name: least.curves[:, 0].double().numpy() for name, (_, least) in found.items()}
        drawn = curves(values, shares, xlabel="share of pixels deleted, least important first", ylabel="probability")
        drawn.savefig(options.pictures / "photographs-deletion.png", dpi=110)


def main() -> None:
    options = parsed()
    torch.set_flush_denormal(True)
    torch.set_num_threads(options.threads)
    if options.quick:
        options.photographs, options.grids, options.slow_grids, options.curves, options.threads = 40, 1, 0, 2, 1
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tell(options, Path(scratch) if options.folder is None else options.folder)


if __name__ == "__main__":
    main()
