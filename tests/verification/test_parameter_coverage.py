"""Whether all parameters were copied: a checker, tried on networks from which one is missing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.network import BcosNetwork
from bcos_fx.testing import randomise_
from bcos_fx.verification.parameter_coverage import parameter_coverage


class Several(nn.Module):
    """A convolution, attention with packed projections, a product with a stored matrix, and a head nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.positions = nn.Parameter(torch.zeros(4, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.proj = nn.Parameter(torch.zeros(8, 5))
        self.aside = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.positions
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return x.mean(1) @ self.proj


def made(recipe: str = "equivalent", **options: object) -> tuple[nn.Module, BcosNetwork]:
    module = randomise_(Several()).eval()
    network = bcos_fx.bcosify(
        module, example_inputs=torch.rand(2, 3, 8, 8), recipe=recipe, mean=(0.5,) * 3, std=(0.5,) * 3, **options
    )
    return module, network


def how(module: nn.Module, network: BcosNetwork) -> dict[str, str]:
    return {row.name: row.how for row in parameter_coverage(module, network).rows}


def test_every_parameter_is_found() -> None:
    module, network = made()
    found = parameter_coverage(module, network)
    assert found.ok, found
    ways = how(module, network)
    assert ways["stem.weight"] == "halves"
    assert ways["proj"] == "transposed"
    assert ways["attention.in_proj_weight"] == "cut"
    assert ways["aside.weight"] == ways["aside.bias"] == "unused"
    assert ways["positions"] == ways["norm.bias"] == "whole"
    assert list(ways) == [name for name, _ in module.named_parameters()]


def test_a_parameter_that_was_not_copied_is_missing() -> None:
    """As in published code, where a layer was made again and its weights were never loaded."""
    module, network = made()
    for name, parameter in network.named_parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[-1] += 0.5
        assert not parameter_coverage(module, network).ok, name
        assert parameter_coverage(module, network).missing, name
        with torch.no_grad():
            parameter.copy_(kept)
    assert parameter_coverage(module, network).ok


def test_two_parameters_of_equal_numbers_need_two_copies() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).eval()
    module[2].load_state_dict(module[0].state_dict())
    network = bcos_fx.bcosify(module, recipe="equivalent")
    assert parameter_coverage(module, network).ok
    nn.init.zeros_(network.get_parameter("2.weight"))
    assert parameter_coverage(module, network).missing == ("2.weight",)


def test_what_a_rule_removed_is_told_apart_from_what_is_missing() -> None:
    module, network = made("clip", positions="strip")
    found = parameter_coverage(module, network)
    rows = {row.name: row for row in found.rows}
    assert not found.ok
    assert not found.missing
    assert rows["positions"].where == ("positional-embedding-removed",)
    assert rows["stem.bias"].where == ("layer-bias-stripped",)
    assert rows["norm.bias"].where == ("norm-shift-stripped",)
    nn.init.zeros_(network.get_parameter("norm.weight"))
    nn.init.zeros_(network.get_parameter("stem.weight"))
    assert "stem.weight" in parameter_coverage(module, network).missing
