"""Drift of changing rules: a network that stops answering with numbers is refused, with the rule's name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bcos_fx
from bcos_fx.errors import RewriteError

BLIND = """
[[rule]]
name = "average-of-infinities"
phase = "pool"
preserves = "never"
source = "a mutant"
why = "It does not look at what was padded."
[rule.match.pool]
op = "max_pool2d"
[rule.replace.pool]
build = "average-pool"
inputs = "pool.input"
"""


class Padded(nn.Module):
    """Pads with -inf before a maximum, by a call or a module."""

    def __init__(self, pad: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.pad, self.pool, self.fc = nn.Conv2d(3, 4, 3), pad, nn.MaxPool2d(3, 2), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y = functional.pad(y, (0, 1, 0, 1), value=-math.inf) if self.pad is None else self.pad(y)
        return self.fc(self.pool(y).mean((2, 3)))


def images() -> Tensor:
    return torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def test_padding_of_a_maximum_is_no_infinity_in_an_average() -> None:
    network = bcos_fx.bcosify(Padded(None), example_inputs=images())
    counts = network.report.rule_counts()
    assert counts["padded-max-pool-to-average-pool"] == 2
    assert not any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    assert bool(network(images()).isfinite().all())


def test_padding_that_no_rule_takes_leaves_the_maximum_and_says_so() -> None:
    network = bcos_fx.bcosify(Padded(nn.ConstantPad2d((0, 1, 0, 1), -math.inf)), example_inputs=images())
    assert any(isinstance(module, nn.MaxPool2d) for module in network.modules())
    assert bool(network(images()).isfinite().all())
    reasons = [miss.reason for miss in network.report.near_misses if miss.rule == "max-pool-to-average-pool"]
    assert reasons == ["its input is padded with -inf, which would be averaged"]


def test_a_rule_that_leaves_no_numbers_is_named(tmp_path: Path) -> None:
    path = tmp_path / "blind.toml"
    path.write_text(BLIND, encoding="utf-8")
    module = Padded(nn.ConstantPad2d((0, 1, 0, 1), -math.inf))
    with pytest.raises(RewriteError, match="NaN or infinity once rule 'average-of-infinities' is applied"):
        bcos_fx.bcosify(module, example_inputs=images(), recipe="equivalent", rules=[path])
    with pytest.raises(RewriteError, match="average-of-infinities"):
        bcos_fx.bcosify(module, example_inputs=images(), rules=[path])
