"""What a conversion costs: time on a ResNet and a ViT, memory, and growth with the number of layers.

python benchmarks/conversion.py [--out FILE.md] [--quick]
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from typing import Any

import torch
import torchvision
from measuring import Page, interleaved, parsed, ratio, rise
from torch import Tensor, nn

import bcos_fx
from bcos_fx.rewriting.core.rule import PRESERVING_PHASES
from bcos_fx.testing import norm_statistics_from_data_

TIME_TARGET, MEMORY_TARGET, GROWTH_TARGET = 30, 6, 2.3


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    architecture: str = "resnet50"
    timed: tuple[tuple[str, str, int], ...] = (  # network, recipe, and the batch of the forward passes
        ("resnet50", "bcosification", 4),
        ("vit_b_16", "bcosification", 2),
        ("vit_b_16", "equivalent", 2),
    )
    side: int = 224
    repetitions: int = 3
    layers: tuple[int, int] = (500, 1000)
    rounds: int = 3


QUICK = Setting(
    "resnet18",
    (("resnet18", "bcosification", 4), ("resnet18", "equivalent", 2)),
    side=64,
    repetitions=1,
    layers=(5, 10),
    rounds=1,
)


def quiet() -> None:
    """One thread and no denormals; a small conversion, so that no import and no first call is timed."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    bcos_fx.bcosify(chain(2), example_inputs=torch.rand(2, 3, 8, 8))


def network(architecture: str, side: int, batch: int = 4) -> tuple[nn.Module, Tensor]:
    """Return the network that is converted, in eval mode, and a batch for it."""
    torch.manual_seed(0)
    images = torch.rand(batch, 3, side, side)
    module = getattr(torchvision.models, architecture)()
    return norm_statistics_from_data_(module, images).eval(), images


def convert(module: nn.Module, images: Tensor, **options: Any) -> nn.Module:
    return bcos_fx.bcosify(module, example_inputs=images[:2], **options)


# Time


def stages(module: nn.Module, images: Tensor, recipe: str) -> dict[str, float]:
    """Convert once; return the seconds that each stage took."""
    began = [("reading the recipe", time.perf_counter())]
    convert(module, images, recipe=recipe, progress=lambda stage: began.append((stage, time.perf_counter())))
    began.append(("end", time.perf_counter()))
    taken: dict[str, float] = defaultdict(float)
    for (stage, start), (_, end) in pairwise(began):
        taken[_summed_up(stage)] += end - start
    return taken


def _summed_up(stage: str) -> str:
    kind, _, phase = stage.partition(": ")
    if kind != "rewriting":
        return stage
    return "rewriting, preserving" if phase in PRESERVING_PHASES else "rewriting, changing, with drift"


def timed(architecture: str, recipe: str, batch: int, setting: Setting) -> tuple[dict[str, float], float]:
    """Return stage -> its time in forward passes, medians of several conversions, and the last pass's seconds."""
    module, images = network(architecture, setting.side, batch)

    def forward() -> None:
        with torch.no_grad():
            module(images)

    units: dict[str, list[float]] = defaultdict(list)
    for _ in range(setting.repetitions):
        forward_time = statistics.median(interleaved({"forward": forward}, 7)["forward"])
        taken = stages(module, images, recipe)
        for stage, seconds in (taken | {"all": sum(taken.values())}).items():
            units[stage].append(seconds / forward_time)
    return {stage: statistics.median(values) for stage, values in units.items()}, forward_time


def report_time(page: Page, setting: Setting) -> None:
    found = {f"{case[0]}, {case[1]}": timed(*case, setting) for case in setting.timed}
    passes = [f"{name}: {seconds:.3f} s" for name, (_, seconds) in found.items()]
    batches = ", ".join(
        f"{name} {batch}" for name, batch in dict.fromkeys((name, batch) for name, _, batch in setting.timed)
    )
    page.text(
        f"## Time\n\n`bcosify(network, recipe=...)`, verified, {setting.side} x {setting.side} pixels, in units of the "
        f"original's own forward pass in float32 (batches: {batches}; median of 7, taken just before; the last ones "
        f"took {'; '.join(passes)}). One thread, imports done. Medians of {setting.repetitions} conversions.\n\n"
        f"Target: ≤ {TIME_TARGET} in all."
    )
    names = dict.fromkeys(stage for times, _ in found.values() for stage in times)
    ordered = [*(stage for stage in names if stage != "all"), "all"]
    rows = [(stage, *(f"{times.get(stage, 0):.1f}" for times, _ in found.values())) for stage in ordered]
    page.table(("stage", *found), rows)


# Memory


def growth(setting: Setting, action: Callable[[nn.Module, Tensor], object], *, double: bool) -> int:
    """Return by how much the peak rises above what was resident once the network stood ready."""
    quiet()
    module, images = network(setting.architecture, setting.side)
    if double:
        module, images = module.double(), images.double()
    with torch.no_grad():
        module(images)
    return rise(lambda: action(module, images))


def verification_pass(module: nn.Module, images: Tensor) -> None:
    """The largest of the passes that verification makes: the gradient with respect to two images in float64."""
    module.requires_grad_(False)
    x = images[:2].clone().requires_grad_()
    torch.autograd.grad(module(x).sum(), x)


def conversion_growth(setting: Setting) -> int:
    return growth(setting, convert, double=False)


def pass_growth(setting: Setting) -> int:
    return growth(setting, verification_pass, double=True)


def report_memory(page: Page, setting: Setting) -> None:
    module, _ = network(setting.architecture, setting.side)
    weights = sum(p.numel() * p.element_size() for p in module.parameters())

    def alone(measure: Callable[[Setting], int]) -> float:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(measure, setting).result() / weights

    whole, one_pass = alone(conversion_growth), alone(pass_growth)
    page.text(
        f"## Memory\n\nIn units of the network's weights ({weights / 2**20:.0f} MiB in float32). Each row in a process "
        "of its own: the peak of the resident set minus the resident set just before, when the network was there and "
        "had run once. The verification pass is the largest one: the gradient with respect to two images, in "
        f"float64, of a network that is in float64 already.\n\nTarget: ≤ {MEMORY_TARGET} for the difference."
    )
    rows = (("conversion, verified", whole), ("one verification pass", one_pass), ("difference", whole - one_pass))
    page.table(("", "weights"), [(name, f"{value:.1f}") for name, value in rows])


# Growth


def chain(length: int) -> nn.Sequential:
    """Convolution, batch norm and ReLU, `length` times.

    Each convolution is close to the identity: a thousand random ones would amplify rounding, or answer the same to
    every image, and then nothing could be verified.
    """
    layers: list[nn.Module] = []
    generator = torch.Generator().manual_seed(0)
    for index in range(length):
        conv = nn.Conv2d(8 if index else 3, 8, 3, padding=1, bias=False)
        with torch.no_grad():
            conv.weight.copy_(0.001 * torch.randn(conv.weight.shape, generator=generator))
            conv.weight[:, :, 1, 1] += torch.eye(*conv.weight.shape[:2])
        layers += [conv, nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def report_growth(page: Page, setting: Setting) -> None:
    chains = {str(length): chain(length) for length in setting.layers}
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    short, long = chains
    page.text(
        f"## Growth\n\nA chain of convolution, batch norm and ReLU, {short} and {long} times, 8 channels, 8 x 8 "
        f"pixels. Processor time, medians of {setting.rounds} rounds in turn.\n\n"
        f"Target: ≤ {GROWTH_TARGET} times as long for twice the layers."
    )
    rows = []
    for verified in (False, True):

        def converted(module: nn.Module, verified: bool = verified) -> None:
            bcos_fx.bcosify(module, example_inputs=x, verified=verified)

        tasks = {name: lambda m=module: converted(copy.deepcopy(m)) for name, module in chains.items()}
        times = interleaved(tasks, setting.rounds, time.process_time)
        seconds = [f"{statistics.median(times[name]):.3g} s" for name in chains]
        rows.append(("with" if verified else "without", *seconds, f"{ratio(times, long, short):.2f}"))
    page.table(("verification", *(f"{name} layers" for name in chains), "ratio"), rows)


def main() -> None:
    options = parsed(__doc__)
    setting = QUICK if options.quick else Setting()
    quiet()
    page = Page("Conversion", options)
    report_time(page, setting)
    report_memory(page, setting)
    report_growth(page, setting)
    page.close()


if __name__ == "__main__":
    main()
