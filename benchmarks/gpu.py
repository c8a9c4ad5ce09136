"""Tests and times on a CUDA device, in at most ten minutes; without one it says so and ends.

python benchmarks/gpu.py [--out docs/results/gpu.md] [--quick] [--seconds 540]

First the tests marked `gpu` (tests/gpu), then forward, training step and explanation of the networks of
benchmarks/speed.py, eager and compiled, in units of the original's. What has not begun after --seconds is left out, and
the page says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from measuring import ROOT, Page, interleaved, parser, ratio
from speed import ORIGINAL, PASSES, QUICK, Setting, further
from torch import Tensor, nn

import bcos_fx

DEVICE = "cuda"
OURS = "bcos_fx, as published"


def parsed() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=540, help="begin nothing new after so long")
    return made.parse_args()


def tested() -> str:
    """Run the tests for a GPU; return their last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout[-4000:], flush=True)
    return (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1].strip("= ")


def settled(task: Callable[[], object]) -> Callable[[], object]:
    """The task, until the device has done it."""

    def run() -> None:
        task()
        torch.cuda.synchronize()

    return run


def times_of(given: dict[str, tuple[nn.Module, Tensor]], rounds: int, *, compiled: bool) -> list[str]:
    """Ratios to the original of a forward and of a step, and milliseconds of the original's."""
    cells = []
    for task, training in PASSES.values():
        tasks = {}
        for name in (ORIGINAL, OURS):
            network, x = given[name]
            network = network.train(training)
            tasks[name] = settled(task(torch.compile(network) if compiled else network, x))
        times = interleaved(tasks, rounds)
        cells += [f"{sorted(times[ORIGINAL])[rounds // 2] * 1e3:.1f} ms", f"{ratio(times, OURS, ORIGINAL):.2f}"]
    return cells


def explained(given: dict[str, tuple[nn.Module, Tensor]], rounds: int) -> str:
    """Time of an explanation of the whole batch, in forwards of the same network."""
    network, x = given[OURS]
    network.eval()
    forward, _ = PASSES["forward"]
    tasks = {"forward": settled(forward(network, x)), "explain": settled(lambda: bcos_fx.explain(network, x))}
    return f"{ratio(interleaved(tasks, rounds), 'explain', 'forward'):.2f}"


def memory(network: nn.Module, x: Tensor) -> int:
    """Bytes at the peak of a training step, above what was allocated before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    task, _ = PASSES["forward and backward"]
    task(network.train(), x)()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def report(page: Page, setting: Setting, until: float) -> None:
    rows, left = [], []
    for name in setting.networks:
        if time.monotonic() > until:
            left.append(name)
            continue
        given = {key: (network.to(DEVICE), x.to(DEVICE)) for key, (network, x) in further(name, setting).items()}
        eager = times_of(given, setting.rounds, compiled=False)
        share = f"{memory(*given[OURS]) / memory(*given[ORIGINAL]):.2f}"
        rows.append((name, "eager", *eager, explained(given, setting.rounds), share))
        if time.monotonic() < until:
            rows.append((name, "compiled", *times_of(given, setting.rounds, compiled=True), "", ""))
    head = ("network", "mode", "forward", "ratio", "step", "ratio", "explanation, in forwards", "memory of a step")
    page.table(head, rows)
    if left:
        page.text(f"Left out, for there was no time: {', '.join(left)}.")


def main() -> None:
    options = parsed()
    if not torch.cuda.is_available():
        print("There is no CUDA device here: nothing was run, and no page was written.")
        return
    until = time.monotonic() + options.seconds
    page = Page("Speed on a GPU", options)
    setting = QUICK if options.quick else Setting(batch=32, rounds=15)
    page.text(
        f"- Device: {torch.cuda.get_device_name()}\n- Tests marked `gpu`: {tested()}\n"
        f"- Batch {setting.batch}, {setting.side} x {setting.side} pixels, float32, random weights, B = 2 as published"
        "\n- Medians of ratios to the original in the same round. Targets: forward 1.20 eager and 1.08 compiled, step "
        "1.25 and 1.12"
    )
    report(page, setting, until)
    page.close()


if __name__ == "__main__":
    main()
