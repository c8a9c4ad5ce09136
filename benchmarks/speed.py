"""Time and memory of converted networks, in units of the original's, beside the `bcos` package's own network.

python benchmarks/speed.py [--rounds 25] [--out FILE.md] [--quick]
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torchvision
from bcos.models import pretrained as peers
from measuring import Page, Times, interleaved, parser, ratio
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import bcos_fx
from bcos_fx.network import BcosNetwork
from bcos_fx.testing import norm_statistics_from_data_

ORIGINAL = "original"
TARGETS = {"forward": 1.20, "forward and backward": 1.35, "saved activations": 1.5}
FOLDED_TARGET = 1.03
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
    networks: tuple[str, ...] = (  # timm's names
        "resnet18",
        "vit_small_patch16_224",
        "efficientnet_b0",
        "mobilenetv2_100",
        "densenet121",
        "convnext_atto",
        "tf_efficientnet_lite0",
    )
    compiled_steps: tuple[str, ...] = ("resnet18", "mobilenetv2_100")  # compiling the way back takes minutes
    backend: str = "inductor"


QUICK = Setting(
    "resnet18",
    batch=2,
    side=64,
    rounds=1,
    threads=(1,),
    formats=("contiguous",),
    networks=("mobilenetv2_050",),
    compiled_steps=(),
    backend="eager",  # shows that the script runs, in a second
)
# What the peer calls the networks that it has too.
PEERS = {"resnet18": "resnet18", "vit_small_patch16_224": "simple_vit_s_patch16_224", "densenet121": "densenet121"}


def converted(original: nn.Module, images: Tensor, **options: str) -> nn.Module:
    """Return a network converted as published, at B = 2."""
    return bcos_fx.bcosify(original, recipe="bcosification", example_inputs=images[:2], b=2, verified=False, **options)


def subjects(setting: Setting) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return name -> network and its input: the original first, then what is compared with it."""
    torch.manual_seed(0)
    images = torch.rand(setting.batch, 3, setting.side, setting.side)
    original = norm_statistics_from_data_(getattr(torchvision.models, setting.architecture)(), images).eval()
    # The peer's users encode an image while loading it; its networks begin with six channels.
    peer = getattr(peers, setting.architecture)(pretrained=False)
    return {
        ORIGINAL: (original, images),
        "bcos_fx, as published": (converted(original, images), images),
        'bcos_fx, scale="cosine"': (converted(original, images, scale="cosine"), images),
        "bcos": (peer, torch.cat([images, 1 - images], dim=1)),
    }


def further(name: str, setting: Setting) -> dict[str, tuple[nn.Module, Tensor]]:
    """Return name -> network and its input, as :func:`subjects` does, for one of timm's architectures."""
    torch.manual_seed(0)
    images = torch.rand(setting.batch, 3, setting.side, setting.side)
    original = norm_statistics_from_data_(timm.create_model(name), images).eval()
    given = {
        ORIGINAL: (original, images),
        "bcos_fx, as published": (converted(original, images), images),
        'bcos_fx, scale="cosine"': (converted(original, images, scale="cosine"), images),
    }
    if (factory := getattr(peers, PEERS.get(name, ""), None)) is not None:
        given["bcos"] = (factory(pretrained=False), torch.cat([images, 1 - images], dim=1))
    return given


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


def report_networks(page: Page, setting: Setting) -> None:
    columns = ("bcos_fx, as published", 'bcos_fx, scale="cosine"', "bcos")
    page.text(
        "## Other networks\n\nTimm's, random weights, contiguous, forward / forward and backward. Targets: ≤ 1.20 and "
        "≤ 1.25. A dash where the `bcos` package has no such network; its ViT is a SimpleViT."
    )
    rows = []
    for name in setting.networks:
        given = further(name, setting)
        for threads in setting.threads:
            torch.set_num_threads(threads)
            times = {kind: timed(kind, given, "contiguous", setting.rounds) for kind in PASSES}
            first = " / ".join(f"{statistics.median(found[ORIGINAL]) * 1e3:.0f}" for found in times.values())
            cells = [
                " / ".join(f"{ratio(found, column, ORIGINAL):.2f}" for found in times.values())
                if column in given
                else "-"
                for column in columns
            ]
            rows.append((name, str(threads), f"{first} ms", *cells))
    page.table(("network", "threads", ORIGINAL, *columns), rows)


def report_compiled(page: Page, setting: Setting) -> None:
    columns = ("bcos_fx, as published", 'bcos_fx, scale="cosine"')
    page.text(
        "## Compiled\n\nThe same networks after `torch.compile`, converted ones and original alike; forward / forward "
        "and backward, a dash where the latter was not compiled. Targets: ≤ 1.08 and ≤ 1.12."
    )
    rows = []
    threads = setting.threads[0]
    torch.set_num_threads(threads)
    for name in setting.networks:
        cells: dict[str, list[str]] = {column: [] for column in (ORIGINAL, *columns)}
        for kind in PASSES if name in setting.compiled_steps else ("forward",):
            torch._dynamo.reset()
            given = {
                key: (torch.compile(net, backend=setting.backend), x)
                for key, (net, x) in further(name, setting).items()
                if key in cells
            }
            times = timed(kind, given, "contiguous", setting.rounds)
            cells[ORIGINAL].append(f"{statistics.median(times[ORIGINAL]) * 1e3:.0f}")
            for column in columns:
                cells[column].append(f"{ratio(times, column, ORIGINAL):.2f}")
        rest = [" / ".join(cells[column]) + ("" if name in setting.compiled_steps else " / -") for column in cells]
        rows.append((name, str(threads), f"{rest[0]} ms", *rest[1:]))
    page.table(("network", "threads", ORIGINAL, *columns), rows)


def report_folded(page: Page, setting: Setting, given: dict[str, tuple[nn.Module, Tensor]]) -> None:
    page.text(
        f"## Folded\n\nThe original with its batch norms folded by torch (`torch.fx.experimental.optimization.fuse`), "
        f"and what `bcos_fx.optimize` makes of the others; forward, contiguous; as they are, and all of them after "
        f"`torch.compile`. Target: ≤ {FOLDED_TARGET:.2f} times."
    )
    original, images = given[ORIGINAL]
    nets = {ORIGINAL: fuse(original.eval())}
    nets |= {name: bcos_fx.optimize(net.eval()) for name, (net, _) in given.items() if isinstance(net, BcosNetwork)}
    rows = []
    for threads, compiled in itertools.product(setting.threads, (False, True)):
        torch.set_num_threads(threads)
        torch._dynamo.reset()
        folded = {
            name: (torch.compile(net, backend=setting.backend) if compiled else net, images)
            for name, net in nets.items()
        }
        times = timed("forward", folded, "contiguous", setting.rounds)
        cells = [f"{ratio(times, name, ORIGINAL):.2f}" for name in folded if name != ORIGINAL]
        first = f"{statistics.median(times[ORIGINAL]) * 1e3:.0f} ms"
        rows.append((str(threads), "yes" if compiled else "no", first, *cells))
    page.table(("threads", "compiled", *nets), rows)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=Setting.rounds, help="times that each is measured, in turn")
    options = made.parse_args()
    setting = QUICK if options.quick else Setting(rounds=options.rounds)
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
    report_folded(page, setting, given)
    report_networks(page, setting)
    report_compiled(page, setting)
    page.close()


if __name__ == "__main__":
    main()
