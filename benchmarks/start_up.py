"""How long starting takes: the command line's help, a first conversion, and tracing a network of many small layers.

python benchmarks/start_up.py [--out FILE.md] [--quick]
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from measuring import Page, interleaved, parsed, ratio

RUNS = 10
TARGET, CONVERSION_TARGET, TRACING_TARGET = 0.5, 1.3, 2
NODES = 2000
RESNET = "import torch, torchvision; network = torchvision.models.resnet18().eval(); "
COMMANDS = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "python -m bcos_fx --help": (sys.executable, "-m", "bcos_fx", "--help"),
    "import torch, torchvision": (sys.executable, "-c", RESNET),
    "the same, and two forwards of ResNet-18": (
        sys.executable, "-c",
        RESNET + "images = torch.rand(1, 3, 224, 224); torch.set_grad_enabled(False); network(images); network(images)",
    ),
    "the same, import bcos_fx, bcosify(ResNet-18, verified=False)": (
        sys.executable, "-c", RESNET + "import bcos_fx; bcos_fx.bcosify(network, verified=False)",
    ),
    "the same, import bcos_fx, bcosify(ResNet-18)": (
        sys.executable, "-c", RESNET + "import bcos_fx; bcos_fx.bcosify(network)",
    ),
}  # fmt: skip


def work_of_commands() -> float:
    """Return the processor time that all finished child processes took, in seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tracing(nodes: int, runs: int) -> list[float]:
    """Return the processor time of tracing a network of so many small layers, after a run on another one."""
    from torch import nn, rand

    from bcos_fx.tracing import trace

    layers = (nn.Linear(4, 4), nn.ReLU(), nn.LayerNorm(4), nn.Tanh())
    times = []
    for count in (len(layers), *[nodes] * runs):
        network = nn.Sequential(*(nn.Sequential(*layers) for _ in range(count // len(layers)))).eval()
        start = time.process_time()
        trace(network, rand(2, 4))
        times.append(time.process_time() - start)
    return times[1:]


def main() -> None:
    options = parsed(__doc__)
    page = Page("Start-up", options)
    runs = 2 if options.quick else RUNS

    with tempfile.TemporaryDirectory() as cache:
        # Byte code is kept, as an installation has it.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": cache, "OMP_NUM_THREADS": "1"}

        def start(command: tuple[str, ...]) -> None:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

        times = interleaved({name: lambda c=c: start(c) for name, c in COMMANDS.items()}, runs, work_of_commands)
    page.text(
        f"Medians of {runs} runs each, in turn, after one that fills the file cache and compiles to byte code. "
        "Processor time, one thread."
    )
    rows = [(name, f"{statistics.median(taken):.3f} s") for name, taken in times.items()]
    plain, ours, _, forwards, unverified, converted = times
    page.table(
        ("command", "time"),
        [
            *rows,
            (
                "help, beyond starting Python",
                f"{statistics.median(times[ours]) - statistics.median(times[plain]):.3f} s (target ≤ {TARGET} s)",
            ),
            (
                "conversion, by two forwards",
                f"{ratio(times, converted, forwards):.2f} (target ≤ {CONVERSION_TARGET}; unverified "
                f"{ratio(times, unverified, forwards):.2f})",
            ),
            (
                f"tracing {NODES} nodes",
                f"{statistics.median(tracing(NODES, runs)):.3f} s (target ≤ {TRACING_TARGET} s)",
            ),
        ],
    )
    page.close()


if __name__ == "__main__":
    main()
