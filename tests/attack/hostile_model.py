"""A network whose layers have names that a terminal would obey."""

from __future__ import annotations

import torch
from torch import nn

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil[bold red]\u2066"


def build() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential()
    network.add_module(f"conv{HOSTILE}", nn.Conv2d(3, 4, 3, padding=1))
    network.add_module("relu", nn.ReLU())
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", nn.Flatten())
    network.add_module(f"fc{HOSTILE}", nn.Linear(4, 3))
    return network.eval()
