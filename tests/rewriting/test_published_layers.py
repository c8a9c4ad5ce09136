"""B-cosified layers, as published, keep their own B, scale and eps under every recipe, and the report states each B."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx import nn as bnn
from tests.rewriting.peer_layers import PeerLogitLayer, PeerRawConv, PeerRawLinear


class Published(nn.Module):
    """Two B-cosified layers, a plain one between them, and a logit layer."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.first, self.plain = PeerRawConv(6, 8, **options), nn.Conv2d(8, 8, 1, bias=False)
        self.last, self.logits = PeerRawLinear(8, 5), PeerLogitLayer(None, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.logits(self.last(self.plain(self.first(x).relu()).mean((2, 3))))
        return y


def images() -> Tensor:
    x = torch.rand(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.cat([x, 1 - x], 1)


def published(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    return Published(**options).double().eval()


@pytest.mark.parametrize("recipe", ["bcosification", "equivalent", "gradual", "bcos-v2", "clip"])
def test_b_is_raised_by_no_recipe(recipe: str, tmp_path: Any) -> None:
    module, x = published(), images()
    network = bcos_fx.bcosify(module, recipe=recipe, example_inputs=x)
    torch.testing.assert_close(network(x), module(x), rtol=1e-13, atol=1e-13)
    layers: dict[str, Any] = {name: network.get_submodule(name) for name in ("first", "last")}
    assert {name: (layer.b, layer.scale, layer.eps, layer.eps_at) for name, layer in layers.items()} == {
        "first": (2.0, "raw", 1e-6, "square"),
        "last": (2.0, "raw", 1e-12, "norm"),
    }
    assert network.get_submodule("plain").b == 1
    assert network.report.pressures() == {2.0: ["first", "last"], 1.0: ["plain"]}
    assert "2 in 2 of the layers (first, last); 1 in 1 of the layers (plain)" in network.report.to_text()
    assert "peer_bcos_raw_conv2d -> bcos_conv2d (B = 2)" in network.report.to_text(nodes=True, width=200)

    bcos_fx.save(network, tmp_path / "network.safetensors")
    loaded = bcos_fx.load(tmp_path / "network.safetensors")
    assert torch.equal(loaded(x), network(x))
    assert loaded.report.pressures() == network.report.pressures()


def test_layers_at_b_1_are_taken_with_their_bias() -> None:
    module, x = published(b=1, bias=True), images()
    network = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=x)
    torch.testing.assert_close(network(x), module(x), rtol=1e-13, atol=1e-13)
    assert network.report.pressures() == {2.0: ["last"], 1.0: ["first", "plain"]}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"b": 1.5}, "at B = 1.5 it adds 1e-6"),
        ({"bias": True}, "scales its bias too"),
        ({"learned": True}, "its B is being learned"),
    ],
)
def test_what_ours_do_not_compute_is_left_alone_with_the_reason(options: dict[str, Any], words: str) -> None:
    module, x = published(**options), images()
    network = bcos_fx.bcosify(module, recipe="bcosification", example_inputs=x)
    assert any(miss.rule == "peer-bcos-layer" and words in miss.reason for miss in network.report.near_misses)
    assert not isinstance(network.get_submodule("first"), bnn.BcosLayer)
    torch.testing.assert_close(network(x), module(x), rtol=1e-13, atol=1e-13)


def test_a_b_that_is_a_parameter_is_read() -> None:
    module, x = published(), images()
    module.first.b = nn.Parameter(torch.tensor(2.0, dtype=torch.float64), requires_grad=False)
    network = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=x)
    assert network.get_submodule("first").b == 2
