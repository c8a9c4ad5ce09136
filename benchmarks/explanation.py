"""Explanations: their time and memory beside the `bcos` package's, and whether contributions add up to the logit.

python benchmarks/explanation.py [--out FILE.md] [--quick]
"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory

import torch
import torchvision
from bcos.models import pretrained as peers
from measuring import Page, interleaved, parsed, ratio
from torch import Tensor, nn

import bcos_fx
from bcos_fx.testing import norm_statistics_from_data_

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TARGETS = 9
FAMILIES = ("resnet50", "mobilenet_v2", "vit_b_16")


@dataclass(frozen=True)
class Setting:
    """What is measured, and how often."""

    architecture: str = "resnet50"
    batch: int = 16
    side: int = 224
    rounds: int = 5
    threads: int = 2


QUICK = Setting("resnet18", batch=2, side=64, rounds=1, threads=1)


def original(setting: Setting) -> tuple[nn.Module, Tensor]:
    """Return a network with norm statistics from data, and images in [0, 1]."""
    torch.manual_seed(0)
    images = torch.rand(setting.batch, 3, setting.side, setting.side)
    network = getattr(torchvision.models, setting.architecture)()
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.count_nonzero():  # a head of zeros answers the same to every image
            nn.init.normal_(parameter, std=0.02)
    return norm_statistics_from_data_(network, images[:4]).eval(), images


def converted(setting: Setting, **options: str) -> nn.Module:
    """Return it converted as published at B = 2."""
    network, images = original(setting)
    return bcos_fx.bcosify(network, mean=MEAN, std=STD, example_inputs=images[:2], verified=False, **options)


def peer_of(setting: Setting) -> nn.Module:
    """Return the peer's own network of the same name."""
    return getattr(peers, setting.architecture)(pretrained=False).eval()


def forward(network: nn.Module, x: Tensor) -> Callable[[], object]:
    def task() -> None:
        with torch.no_grad():
            network(x)

    return task


def explained_by_peer(peer: nn.Module, encoded: Tensor, targets: range) -> Callable[[], object]:
    def task() -> None:
        for target in targets:
            peer.explain(encoded.clone(), target)

    return task


def report_times(page: Page, setting: Setting, ours: nn.Module, peer: nn.Module, images: Tensor) -> None:
    one = images[:1]
    targets = range(TARGETS)
    tasks = {
        "forward": forward(ours, images),
        "batch explained": lambda: bcos_fx.explain(ours, images, 0),
        "targets explained": lambda: bcos_fx.explain(ours, one, [list(targets)]),
        "peer, targets explained": explained_by_peer(peer, torch.cat([one, 1 - one], dim=1), targets),
    }
    times = interleaved(tasks, setting.rounds)
    page.text("## Time")
    rows = [
        (
            f"{setting.batch} images, one target: times the forward pass of the converted network",
            f"{ratio(times, 'batch explained', 'forward'):.2f}",
            "2.80",
        ),
        (
            f"{TARGETS} targets of one image: times the peer's `explain`, called {TARGETS} times",
            f"{ratio(times, 'targets explained', 'peer, targets explained'):.2f}",
            "0.60",
        ),
    ]
    page.table(("what", "ratio", "target: at most"), rows)
    seconds = [(name, f"{statistics.median(values):.3f} s") for name, values in times.items()]
    page.table(("median of", "time"), seconds)


def report_families(page: Page, setting: Setting, *, quick: bool) -> None:
    """Measure explanations and their drawing on networks of several kinds, in forward passes of the same network."""
    rows = []
    for name in ("resnet18",) if quick else FAMILIES:
        own = dataclasses.replace(setting, architecture=name)
        network, images = converted(own), original(own)[1]
        one, targets = images[:1], list(range(TARGETS))
        with TemporaryDirectory() as folder:
            shown = bcos_fx.explain(network, one, 0)
            tasks = {
                "forward": forward(network, images),
                "explained": lambda network=network, images=images: bcos_fx.explain(network, images, 0),
                "forward of one": forward(network, one),
                "one explained": lambda network=network, one=one: bcos_fx.explain(network, one, 0),
                "targets": lambda network=network, one=one, targets=targets: bcos_fx.explain(network, one, [targets]),
                "drawn": lambda shown=shown, folder=folder: shown.save(f"{folder}/shown.png"),
            }
            # Processor time, of one thread: what else the machine does counts little.
            times = interleaved(tasks, setting.rounds, time.process_time)
        used = memory("batch", quick=quick, architecture=name) / setting.batch
        rows.append(
            (
                name,
                f"{ratio(times, 'explained', 'forward'):.2f}",
                f"{ratio(times, 'targets', 'forward of one') / TARGETS:.2f}",
                f"{ratio(times, 'drawn', 'one explained'):.2f}",
                f"{used / 2**20:.0f} MiB",
            )
        )
    page.text(
        "## On networks of other kinds\n\nIn forward passes of the converted network, by processor time: an "
        f"explanation of each of {setting.batch} images, and each of {TARGETS} targets of one image. Drawing the "
        "picture of one explanation, as a share of explaining. Peak memory while the images are explained, for each. "
        "Targets: at most 1.9, 0.5 and 1."
    )
    page.table(("network", "an image", "a target", "drawing", "memory for an image"), rows)


def report_sums(page: Page, setting: Setting) -> None:
    """Compare Σ contributions / logit, with the input mean as a hidden constant and in the encoding's linear map."""
    _, images = original(setting)
    few = images[:4].double()
    # Without a logit layer and in float64: outputs of a random network at B = 2 are tiny, and still a sum of parts.
    network = converted(setting, head="keep").double()
    inner, whole = bcos_fx.explain(network, few, source="normalisation"), bcos_fx.explain(network, few)
    encoded = torch.cat([few, 1 - few], dim=1)
    hidden = (inner.weights / torch.tensor(STD * 2).view(1, 6, 1, 1) * encoded).flatten(1).sum(1) / inner.output
    added = whole.contributions.flatten(1).sum(1) / whole.output
    page.text(
        "## Do contributions add up to the logit?\n\nΣ contributions / logit for the predicted class of each image, "
        "without logit bias. The published code subtracts the mean inside the network, as a constant that "
        "contributions then miss; here the normalization is a linear map of the encoded image."
    )
    rows = [
        ("the mean as a constant, as published", *(f"{value:.4f}" for value in hidden.tolist())),
        ("the mean in the linear map, bcos_fx", *(f"{value:.4f}" for value in added.tolist())),
    ]
    page.table(("way", *(f"image {n}" for n in range(len(few)))), rows)


_MEMORY = """
import dataclasses, sys, torch
sys.path.insert(0, sys.argv[1])
import explanation as e, bcos_fx
from measuring import rise
setting = dataclasses.replace(e.QUICK if sys.argv[2] == "quick" else e.Setting(), architecture=sys.argv[4])
torch.set_num_threads(setting.threads)
torch.set_flush_denormal(True)
ours, images = e.converted(setting), e.original(setting)[1]
e.forward(ours, images[:1])()
if sys.argv[3] == "ours":
    task = lambda: bcos_fx.explain(ours, images[:1], [list(range(e.TARGETS))])
elif sys.argv[3] == "peer":
    task = e.explained_by_peer(e.peer_of(setting), torch.cat([images[:1], 1 - images[:1]], dim=1), range(e.TARGETS))
else:
    task = lambda: bcos_fx.explain(ours, images, 0)
print(rise(task))
"""


def memory(which: str, *, quick: bool, architecture: str) -> int:
    """Return the bytes by which a task lifts the resident memory of a process of its own."""
    words = [sys.executable, "-c", _MEMORY, __file__.rpartition("/")[0] or ".", "quick" if quick else "full", which]
    done = subprocess.run([*words, architecture], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def report_memory(page: Page, setting: Setting, *, quick: bool) -> None:
    page.text(
        "## Peak memory\n\nIn a process of its own each: the peak of the resident set while explaining minus the "
        "resident set just before, when the network had run once."
    )
    rows = []
    for which, what in (
        ("batch", f"{setting.batch} images, one target"),
        ("ours", f"{TARGETS} targets of one image"),
        ("peer", f"{TARGETS} targets of one image, the peer's `explain`"),
    ):
        used = memory(which, quick=quick, architecture=setting.architecture)
        rows.append((what, f"{used / 2**20:.0f} MiB"))
    page.table(("what", "peak"), rows)


def main() -> None:
    options = parsed(__doc__)
    setting = QUICK if options.quick else Setting()
    torch.set_flush_denormal(True)
    torch.set_num_threads(setting.threads)
    page = Page("Explanations", options)
    page.text(
        f"- Ours: torchvision's {setting.architecture}, random weights, norm statistics from the images, converted "
        "as published at B = 2 with the usual mean and std\n"
        f"- The peer: the bcos package's own {setting.architecture}, random weights, B = 2, on an encoded image\n"
        f"- {setting.side} x {setting.side} pixels, float32, {setting.threads} threads, denormals flushed to zero, "
        f"{setting.rounds} rounds over all tasks in turn, medians of the ratios within a round"
    )
    report_times(page, setting, converted(setting), peer_of(setting), original(setting)[1])
    report_memory(page, setting, quick=options.quick)
    torch.set_num_threads(1)
    report_families(page, setting, quick=options.quick)
    report_sums(page, setting)
    page.close()


if __name__ == "__main__":
    main()
