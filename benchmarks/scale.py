"""What the conversion of a large network costs: peak memory, and work in forward passes of the original.

python benchmarks/scale.py [NETWORK ...] [--out FILE.md] [--quick]

Each network is converted in a process of its own, one after the other, and only where there is memory enough; results
are kept beside the page (scale.jsonl), so that a run goes on where the last one stopped, and a later one adds to it.
Each names the digest of the code that it is of: those of other code are measured again, and marked until then.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Page, measured_pages, parser
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import bcos_fx
from bcos_fx.testing import norm_statistics_from_data_

RESULTS = Path(__file__).with_name("scale.jsonl")
MEMORY_TARGET, WORK_TARGET = 12, 15
SPARE = 14  # GiB that must be free before a network of more than half a billion parameters is begun
GIB = 2**30


def vision(name: str, side: int) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Return a network of torchvision with random weights, and what it is converted with."""
    import torchvision

    images = torch.rand(2, 3, side, side)
    network = getattr(torchvision.models, name)()
    for parameter in network.parameters():
        if parameter.dim() > 1 and not parameter.count_nonzero():  # a head of zeros answers the same to every image
            nn.init.normal_(parameter, std=0.02)
    norm_statistics_from_data_(network, images)
    return network.eval(), images, {}


def language(width: int, depth: int, words: int) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    """Return a Llama with random weights, from its embeddings on, and what it is converted with."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=depth,
        num_attention_heads=width // 64, num_key_value_heads=width // 64, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), torch.randn(2, 16, width), {"output_key": "logits", "recipe": "bcos-lm"}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor, dict[str, Any]]]] = {
    "resnet18": lambda: vision("resnet18", 64),
    "vit_b_16": lambda: vision("vit_b_16", 224),
    "regnet_y_32gf": lambda: vision("regnet_y_32gf", 224),
    "vit_l_16": lambda: vision("vit_l_16", 224),
    "llama, 0.1 B": lambda: language(768, 12, 8000),
    "vit_h_14": lambda: vision("vit_h_14", 224),
    "regnet_y_128gf": lambda: vision("regnet_y_128gf", 224),
    "llama, 1 B": lambda: language(2048, 14, 32000),
}
LARGE = ("vit_h_14", "regnet_y_128gf", "llama, 1 B")


class Work(TorchDispatchMode):
    """Counts the floating-point operations of products, by precision."""

    def __init__(self) -> None:
        super().__init__()
        self.done: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            precision = next(x.dtype for x in args if isinstance(x, Tensor) and x.is_floating_point())
            self.done[str(precision).removeprefix("torch.")] += count(*args, **(kwargs or {}), out_val=result)
        return result


def work(action: Callable[[], Any]) -> tuple[Counter[str], Any]:
    with Work() as counted:
        result = action()
    return counted.done, result


def measure(name: str) -> dict[str, Any]:
    """Convert one network in this process, and return what it took."""
    torch.manual_seed(0)
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer, which no counter looks into
    network, example, options = NETWORKS[name]()
    given: Any = {"inputs_embeds": example} if "output_key" in options else example
    loaded = _peak()

    def forward() -> object:
        with torch.no_grad():
            return network(**given) if isinstance(given, dict) else network(given)

    one, _ = work(forward)
    began = time.process_time()
    done, converted = work(lambda: bcos_fx.bcosify(network, example_inputs=given, **options))
    proof = converted.report.figures.verification
    unit = sum(one.values())
    return {
        "network": name,
        "code": code(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "loaded": loaded,
        "peak": _peak(),
        "float32": done["float32"] / unit,
        "float64": done["float64"] / unit,
        "seconds": time.process_time() - began,
        "verdict": "equal" if proof["ok"] else "not equal",
        "error": proof["error"],
        "method": proof["method"],
        "blocks": sum("block" in row["name"] and "gradient" not in row["name"] for row in proof["comparisons"]),
    }


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def code() -> str:
    """Return the digest of the code that is measured here."""
    return next(page.digest() for page in measured_pages() if page.name == "scale")


def available() -> float:
    """Return how many GiB the system can give; without that knowledge, none."""
    file = Path("/proc/meminfo")
    lines = dict(line.split(":") for line in file.read_text().splitlines()) if file.exists() else {}
    return int(lines["MemAvailable"].split()[0]) / 2**20 if "MemAvailable" in lines else 0.0


def results() -> dict[str, dict[str, Any]]:
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    return {row["network"]: row for row in map(json.loads, lines)}


def options() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; none: those without a result")
    made.add_argument("--page", action="store_true", help="measure nothing: write the page of what was measured")
    made.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return made.parse_args()


def run(names: list[str]) -> None:
    """Measure networks, each in a process of its own."""
    for name in names:
        if name in LARGE and available() < SPARE:
            print(f"{name}: left out, {available():.1f} GiB are free and {SPARE} are wanted", file=sys.stderr)
            continue
        done = subprocess.run([sys.executable, __file__, "--one", name], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{name}: failed with exit code {done.returncode}", file=sys.stderr)
            continue
        with RESULTS.open("a") as file:
            file.write(done.stdout.splitlines()[-1] + "\n")


def main() -> None:
    asked = options()
    if asked.one:
        print(json.dumps(measure(asked.networks[0])))
        return
    known = {name for name, row in results().items() if row.get("code") == code()}
    if asked.quick:
        rows = [measure("resnet18")]
    else:
        if not asked.page:
            run(asked.networks or [name for name in NETWORKS if name not in known])
        rows = [row for name, row in results().items() if name in NETWORKS]
    page = Page("Conversion at scale", asked, current=all(row.get("code") == code() for row in rows))
    page.text(
        "`bcosify(network)`, verified by the default method, an example of two samples, one thread, random weights. "
        "Memory: the largest resident set of the process (`getrusage`), with Python, the libraries and the caller's "
        "network. Work: floating-point operations of all products (linear layers, convolutions, attention, and the way "
        "back through them), in forward passes of the original on the example; a pass in float64 takes about twice the "
        "time of one in float32.\n\n"
        "Code: whether a row is of the code that `make bench` finds, or of an earlier state of it.\n\n"
        f"Targets: ≤ {MEMORY_TARGET} GiB and ≤ {WORK_TARGET} forward passes."
    )
    head = (
        "network",
        "parameters",
        "loaded",
        "peak",
        "float32",
        "float64",
        "passes",
        "verdict",
        "error",
        "method",
        "blocks",
        "code",
    )
    page.table(head, [_row(row) for row in rows])
    missing = [name for name in NETWORKS if name not in {row["network"] for row in rows}]
    if missing and not asked.quick:
        page.text(f"Not measured yet: {', '.join(missing)}.")
    page.close()


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    counted = [row["float32"], row["float64"]] if row["float32"] is not None else []  # None: not counted in full
    passes = [f"{number:.1f}" for number in (*counted, sum(counted))] if counted else ["-"] * 3
    return (
        row["network"], f"{row['parameters'] / 1e6:.0f} M", f"{row['loaded']:.1f} GiB", f"{row['peak']:.1f} GiB",
        *passes, row["verdict"],
        f"{row['error']:.1e}", row["method"], str(row["blocks"]), "this" if row.get("code") == code() else "earlier",
    )  # fmt: skip


if __name__ == "__main__":
    main()
