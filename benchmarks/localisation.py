"""Where explanations point: the Grid Pointing Game on photographs and on CIFAR-10, and what a grid costs.

python benchmarks/localisation.py DATA [--out FILE.md] [--pictures FOLDER] [--quick] [--parts PART ...] [--sides 2 3]
    [--grids N N] [--slow-grids N N] [--cost-grids N] [--threads N] [--folder DIR]

DATA holds imagenet_samples.npz, cifar10_test.npz and cifar10_resnet20.th (a ResNet-20 trained on CIFAR-10). With
--folder scores are written as they come, and a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from measuring import Page
from PIL import Image
from torch import Tensor, nn

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.cli.demo import efficientnet_lite0
from bcos_fx.data.sources import ImageFiles, ImageSource
from bcos_fx.evaluation import Localisation, Method, Protocol, dynamic_linear, fair, open_source
from bcos_fx.evaluation.localisation import boxes, grid_image, play
from bcos_fx.evaluation.predictions import EvaluationTask, predict
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import Grid, select
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.explanation.render.color import images as colored
from bcos_fx.explanation.render.color import to_image
from bcos_fx.methods.baselines import BASELINES, baselines
from bcos_fx.network import BcosNetwork
from bcos_fx.verification.original import NormalizedModel

ROOT = Path(__file__).resolve().parent.parent
LITE_MEAN, LITE_STD = (127 / 255,) * 3, (128 / 255,) * 3
PARTS = ("photographs", "cifar", "cost")
# Methods that run the network hundreds of times for one image; and what is set to less than their usual number.
SLOW = ("integrated-gradients", "occlusion", "lime", "rise")
OPTIONS = {"rise": {"masks": 1000}}
CIFAR_MEAN, CIFAR_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Setting:
    """How much is measured; numbers of grids by their size, ``slow`` for slow methods."""

    grids: Mapping[int, int]
    slow: Mapping[int, int]
    cost_grids: int
    photographs: int | None
    cifar_images: int
    sides: tuple[int, ...]
    threads: int = 2


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="write the page to this Markdown file too")
    parser.add_argument("--pictures", type=Path, help="a folder for the pictures")
    parser.add_argument("--folder", type=Path, help="where scores are written as they come")
    parser.add_argument("--quick", action="store_true", help="tiny settings: shows that it runs, measures nothing")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="of the page")
    parser.add_argument("--grids", type=int, nargs="+", help="at most, one for each of --sides (default: 500)")
    parser.add_argument("--slow-grids", type=int, nargs="+", help="for slow methods, one for each of --sides")
    parser.add_argument("--sides", type=int, nargs="+", default=[2, 3], help="of grids")
    parser.add_argument("--cost-grids", type=int, default=100, help="grids that are timed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for name in ("grids", "slow_grids"):
        setattr(options, name, getattr(options, name) or [500] * len(options.sides))
        if len(getattr(options, name)) != len(options.sides):
            parser.error(f"--{name.replace('_', '-')}: give one number for each of --sides")
    return options


def setting_of(options: argparse.Namespace) -> Setting:
    if options.quick:
        few = {"grids": {2: 1}, "cost_grids": 1, "photographs": 30, "cifar_images": 60}
        return Setting(**few, slow={2: 0}, sides=(2,), threads=1)
    return Setting(
        grids=dict(zip(options.sides, options.grids, strict=True)),
        slow=dict(zip(options.sides, options.slow_grids, strict=True)),
        sides=tuple(options.sides),
        cost_grids=options.cost_grids,
        photographs=None,
        cifar_images=2000,
        threads=options.threads,
    )


# ---------------------------------------------------------------- networks and methods


@dataclass(frozen=True)
class Case:
    """A network in three forms: as it was, as its own dynamic linear map, converted at B = 1."""

    name: str
    original: nn.Module
    converted: BcosNetwork
    plain: BcosNetwork
    data: ImageSource

    def methods(self) -> list[tuple[str, Method]]:
        """All methods by name."""
        original = NormalizedModel(self.original.eval(), self.converted.record.inputs)
        others = baselines(network=original, reference=original.neutral, options=OPTIONS)
        named = [("plain", unconverted(self)), ("own", dynamic_linear(self.converted))]
        named += zip(BASELINES, others, strict=True)
        return named


def case_of(
    name: str, original: nn.Module, data: ImageSource, example: Tensor, **normalised: tuple[float, ...]
) -> Case:
    """Convert a network at B = 1, and trace it once without touching its input."""
    converted = bcos_fx.bcosify(original, recipe="equivalent", example_inputs=example, **normalised)
    plain = bcos_fx.bcosify(original, recipe="equivalent", example_inputs=example, input="none")
    return Case(name, original, converted, plain, data)


def unconverted(case: Case) -> Method:
    """The network's own dynamic linear map, of images normalised as it takes them."""

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        return bcos_fx.explain(case.plain, case.converted.original_input(images), targets).contributions

    return Method("own map, unconverted", {}, maps)


def remembered(method: Method) -> Method:
    """The same, which explains no image twice: scores after different smoothing are of the same maps."""
    kept: dict[bytes, Tensor] = {}

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        key = hashlib.sha256(images.numpy().tobytes() + targets.numpy().tobytes()).digest()
        if key not in kept:
            kept[key] = method.maps(images, targets)
        return kept[key]

    return Method(method.name, method.settings, maps)


def photographs(folder: Path, setting: Setting) -> Case:
    data = first_of(open_source(folder / "imagenet_samples.npz"), setting.photographs)
    example = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    network = efficientnet_lite0().to(memory_format=torch.channels_last)  # its depthwise layers are faster so
    return case_of("EfficientNet-Lite0", network, data, example, mean=LITE_MEAN, std=LITE_STD)


def cifar(folder: Path, setting: Setting) -> Case:
    data = first_of(open_source(folder / "cifar10_test.npz"), setting.cifar_images)
    arch = f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet20"
    original = read_model(folder / "cifar10_resnet20.th", arch=arch)
    example = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return case_of("ResNet-20", original, data, example, mean=CIFAR_MEAN, std=CIFAR_STD)


def first_of(data: ImageSource, count: int | None) -> ImageSource:
    if count is None or not isinstance(data, ImageFiles):
        return data
    return ImageFiles(data.records[:count], data.kind, classes=data.classes)


# ---------------------------------------------------------------- the page


def protocols(setting: Setting, smooth: Sequence[int]) -> Iterator[Protocol]:
    for side in setting.sides:
        for width in smooth:
            # One draw for all sizes of the table: fewer grids of a size are the first ones of more.
            most = max(setting.grids.values())
            yield fair(side=side, grids=most, smooth=width, threshold=0.0 if most == 1 else 0.5)


def report_case(page: Page, case: Case, setting: Setting, smooth: Sequence[int], options: argparse.Namespace) -> None:
    task = task_of(
        case.converted, case.data, original=NormalizedModel(case.original.eval(), case.converted.record.inputs)
    )
    found = predict(task, Runner(folder=place(options, case.name)))
    right = sum(p.predicted == p.label for p in found.predictions) / len(found.predictions)
    agreed = sum(p.predicted == p.original for p in found.predictions) / len(found.predictions)
    page.text(
        f"{len(found.predictions)} images, {right:.1%} of them classified as labeled; converted and original say the "
        f"same on {agreed:.1%}."
    )
    rows, drawn, played, methods = [], [], dict[str, Method](), case.methods()
    if len(smooth) > 1:
        methods = [(name, remembered(method)) for name, method in methods]
    for protocol in protocols(setting, smooth):
        grids = select(found.predictions, protocol)[: setting.grids[protocol.side]]
        runner = Runner(folder=place(options, f"{case.name}-{protocol.smooth}"))
        few = setting.slow[protocol.side]
        chosen = {name: method for name, method in methods if few or name not in SLOW}
        results = [
            play(task, method, grids[:few] if name in SLOW else grids, protocol, runner)
            for name, method in chosen.items()
        ]
        played |= chosen
        rows += [row_of(result) for result in results]
        if protocol.smooth == smooth[0]:
            drawn.append((task, results))
    page.table(("grid", "smoothed over", "method", "GridPG", "95 %", "chance", "grids"), rows)
    page.text("\n".join(f"- {method.name}: {dict(method.settings)}" for method in played.values() if method.settings))
    if options.pictures is not None:
        draw(case, drawn, options.pictures)


def place(options: argparse.Namespace, name: str) -> Path | None:
    if options.folder is None:
        return None
    made = options.folder / name
    made.mkdir(parents=True, exist_ok=True)
    return made


def row_of(result: Localisation) -> tuple[str, ...]:
    side, (low, high) = result.protocol.side, result.interval
    return (
        f"{side}x{side}",
        f"{result.protocol.smooth} px",
        result.method,
        f"{result.mean:.3f}",
        f"{low:.3f} to {high:.3f}",
        f"{1 / result.protocol.cells:.3f}",
        str(len(result.grids)),
    )


def draw(case: Case, drawn: list[tuple[EvaluationTask, list[Localisation]]], folder: Path) -> None:
    """Write a figure of boxes for each size of grids, and the median grid with its explanations."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, results in drawn:
        side = results[0].protocol.side
        name = f"localisation-{case.name.lower()}-{side}x{side}"
        boxes(results).savefig(folder / f"{name}.png", dpi=110)
        own = results[1]
        order = own.per_grid.mean(1).argsort().tolist()
        grid = own.grids[order[len(order) // 2]]
        image = grid_image(task, grid, own.protocol)
        found = bcos_fx.explain(case.converted, image, image.new_tensor([grid.labels]).long())
        strip([to_image(image[0]), *colored(found)]).save(folder / f"{name}-median.png", optimize=True)


def strip(pictures: Sequence[Image.Image], size: int = 150) -> Image.Image:
    """Put pictures beside each other, five in a row, on white."""
    columns = min(5, len(pictures))
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (size + 4), rows * (size + 4)), "white")
    for n, picture in enumerate(pictures):
        small = picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
        whole.paste(small, ((n % columns) * (size + 4), n // columns * (size + 4)), small)
    return whole


def report_cost(page: Page, case: Case, setting: Setting, options: argparse.Namespace) -> None:
    """Time the explanations of grids: all targets at once, and one after another, in turn grid by grid."""
    task = task_of(case.converted, case.data)
    played = fair(side=3, grids=setting.cost_grids)
    cells = [[index % len(case.data) for index in range(9 * n, 9 * n + 9)] for n in range(setting.cost_grids)]
    grids = [Grid(tuple(each), tuple((case.data.labels or ())[index] for index in each)) for each in cells]

    def at_once(grid: Grid) -> None:
        bcos_fx.explain(case.converted, grid_image(task, grid, played), [list(grid.labels)])

    def one_by_one(grid: Grid) -> None:
        image = grid_image(task, grid, played)
        for label in grid.labels:
            bcos_fx.explain(case.converted, image, label)

    def timed(number: int) -> list[float]:
        return [seconds(way, grids[number]) for way in (at_once, one_by_one)]

    at_once(grids[0])
    runner = Runner(folder=place(options, f"{case.name}-cost"))
    threads = {"threads": setting.threads}
    rows = runner.run("cost", task.header("cost", threads), [1] * len(grids), timed, "cost")
    first, second = (sum(column) for column in zip(*rows, strict=True))
    page.text(
        f"## Cost\n\n{len(grids)} grids of 3x3 cells, {case.name}, threads: {setting.threads}. The 9 targets of a grid "
        "in one call of `explain`, then in 9 calls, and so on grid by grid; reading the images is part of each."
    )
    page.table(
        ("what", "ratio", "target: at most"),
        [("9 targets at once: times one by one", f"{first / second:.2f}", "0.50")],
    )
    page.table(("for all grids", "time"), [("at once", f"{first:.0f} s"), ("one by one", f"{second:.0f} s")])


def seconds(way: Callable[[Grid], None], grid: Grid) -> float:
    start = time.perf_counter()
    way(grid)
    return time.perf_counter() - start


def main() -> None:
    options = parsed()
    setting = setting_of(options)
    torch.set_flush_denormal(True)
    torch.set_num_threads(setting.threads)
    page = Page("Localisation", options)
    page.text(
        "The Grid Pointing Game (docs/evaluation.md), protocol fair, seed 42: correctly classified images with softmax "
        "> 0.5. Networks are as they were trained, not fine-tuned: the converted ones are converted at B = 1, so they "
        "are the same functions, and their own map is the one that the unconverted network has. Methods that run a "
        "network hundreds of times for one grid are given fewer of them, or none where a grid is large."
    )
    lite = photographs(options.data, setting)
    if "photographs" in options.parts:
        page.text(
            "## Photographs\n\nEfficientNet-Lite0 on one ImageNet photograph for every other class, probably of the "
            "training images: what counts here is where explanations point, not the accuracy."
        )
        report_case(page, lite, setting, (15,), options)
    if "cifar" in options.parts:
        page.text(
            "## CIFAR-10\n\nResNet-20 on test images that a third party encoded as JPEG again. A box of 15 pixels is "
            "half a cell here; 3 pixels are in proportion to the published 15 on 224."
        )
        report_case(page, cifar(options.data, setting), setting, (15, 3), options)
    if "cost" in options.parts:
        report_cost(page, lite, setting, options)
    page.close()


if __name__ == "__main__":
    main()
