"""Time and memory of converted networks, in units of the original's, beside the `bcos` package's own network.

python benchmarks/speed.py [--out FILE.md] [--quick]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torchvision
from bcos.models import pretrained as peers
from measuring import Page, Times, interleaved, parsed, ratio
from torch import Tensor, nn

import bcos_fx
from bcos_fx.testing import norm_statistics_from_data_

ORIGINAL = "original"
TARGETS = {"forward": 1.20, "forward and backward": 1.35, "saved activations": 1.5}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    architecture: str = "resnet50"
    batch: int = 4
    side: int = 224
    rounds: int = 25
    threads: tuple[int, ...] = (1, 2)
    formats: tuple[str, ...] = tuple(FORMATS)


QUICK = Setting("resnet18", batch=2, side=64, rounds=1, threads=(1,), formats=("contiguous",))


def subjects(setting: Setting) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return name -> network and its input: the original first, then what is compared with it."""
    torch.manual_seed(0)
    images = torch.rand(setting.batch, 3, setting.side, setting.side)
    original = norm_statistics_from_data_(getattr(torchvision.models, setting.architecture)(), images).eval()
    example = images[:2]

    def converted(**options: str) -> nn.Module:
        return bcos_fx.bcosify(original, recipe="bcosification", example_inputs=example, b=2, verified=False, **options)

    # The peer's users encode an image while loading it; its networks begin with six channels.
    peer = getattr(peers, setting.architecture)(pretrained=False)
    return {
        ORIGINAL: (original, images),
        "bcos_fx, as published": (converted(), images),
        'bcos_fx, scale="cosine"': (converted(scale="cosine"), images),
        "bcos": (peer, torch.cat([images, 1 - images], dim=1)),
    }


def forward(network: nn.Module, x: Tensor) -> Callable[[], object]:
    def task() -> None:
        with torch.no_grad():
            network(x)

    return task


def forward_and_backward(network: nn.Module, x: Tensor) -> Callable[[], object]:
    def task() -> None:
        network.zero_grad(set_to_none=True)
        network(x).square().sum().backward()

    return task


PASSES = {"forward": (forward, False), "forward and backward": (forward_and_backward, True)}


def timed(kind: str, given: dict[str, tuple[nn.Module, Tensor]], layout: str, rounds: int) -> Times:
    """Time one kind of pass through all networks, in eval or train mode, in one memory format."""
    task, training = PASSES[kind]
    memory_format = FORMATS[layout]
    tasks = {}
    for name, (network, x) in given.items():
        network.train(training).to(memory_format=memory_format)
        tasks[name] = task(network, x.contiguous(memory_format=memory_format))
    return interleaved(tasks, rounds)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Return the bytes that autograd keeps for the backward pass, each storage once, the network's own left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = network.train()(x)  # alive until the end: no address can come twice
    del output
    return sum(kept.values())


def report_times(page: Page, setting: Setting, given: dict[str, tuple[nn.Module, Tensor]]) -> None:
    for kind in PASSES:
        rows = []
        for threads in setting.threads:
            torch.set_num_threads(threads)
            for layout in setting.formats:
                times = timed(kind, given, layout, setting.rounds)
                cells = [f"{statistics.median(times[ORIGINAL]) * 1e3:.0f} ms"]
                cells += [f"{ratio(times, name, ORIGINAL):.2f}" for name in given if name != ORIGINAL]
                rows.append((str(threads), layout, *cells))
        page.text(f"## {kind.capitalize()}\n\nTarget: ≤ {TARGETS[kind]:.2f} times the original.")
        page.table(("threads", "layout", *given), rows)


def report_memory(page: Page, given: dict[str, tuple[nn.Module, Tensor]]) -> None:
    kept = {name: saved_bytes(network, x.contiguous()) for name, (network, x) in given.items()}
    first = kept[ORIGINAL]
    page.text(
        f"## Saved activations\n\nTarget: ≤ {TARGETS['saved activations']:.2f} times the original. Bytes of all "
        "storages that autograd saves for the backward pass in train mode, each once, parameters and buffers left out."
    )
    cells = [f"{first / 2**20:.0f} MiB", *(f"{kept[name] / first:.2f}" for name in given if name != ORIGINAL)]
    page.table(tuple(given), [cells])


def main() -> None:
    options = parsed(__doc__)
    setting = QUICK if options.quick else Setting()
    torch.set_flush_denormal(True)
    page = Page("Speed and memory at B = 2", options)
    name = setting.architecture
    page.text(
        f"- Original: torchvision's {name}, random weights, norm statistics from the images\n"
        '- "as published": `bcosify(original, recipe="bcosification")`; the other differs in `scale`. Their input '
        "encoding and six-channel first layer are part of what is measured\n"
        f"- bcos: that package's own {name}, random weights, B = 2, on images already encoded\n"
        f"- Batch {setting.batch}, {setting.side} x {setting.side} pixels, float32, denormals flushed to zero, "
        f"medians of {setting.rounds} rounds over all networks in turn; for the others the median of their ratios "
        "to the original in the same round\n"
        "- Forward: eval mode without gradients. Forward and backward: train mode, gradients of all parameters"
    )
    given = subjects(setting)
    report_times(page, setting, given)
    report_memory(page, given)
    page.close()


if __name__ == "__main__":
    main()
