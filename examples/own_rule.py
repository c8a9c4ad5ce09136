"""A rule of one's own: GELU becomes ReLU, whose weight is 0 or 1.

Run it with ``python examples/own_rule.py``. It registers a builder, writes the rule file, and converts a small network
with it; the report shows how far the rule moved the output.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import bcos_fx
from bcos_fx.rules import Build, builder

RULE = """
[[rule]]
name = "gelu-to-relu"
phase = "align"
preserves = "never"
source = "an experiment"
why = "A ReLU selects: what passes it keeps its weight."

[rule.match.gelu]
op = "gelu"

[rule.replace.relu]
build = "relu"
inputs = "gelu.input"
"""


@builder("relu")
def relu(build: Build) -> nn.Module:
    """Make the module that takes the matched node's place; ``build.call`` has the node and its options."""
    return nn.ReLU()


def main() -> None:
    """Convert a small network with the rule above and show the report."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gelu.toml"
        path.write_text(RULE, encoding="utf-8")
        converted = bcos_fx.bcosify(network, rules=[path])
    sys.stdout.write(converted.report.to_text())


if __name__ == "__main__":
    main()
