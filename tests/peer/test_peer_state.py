"""Weights go from the package ``bcos`` into a converted network and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.checkpoint import load_peer_state, peer_state
from bcos_fx.convert import BcosNetwork
from bcos_fx.errors import CheckpointError, UsageError
from tests.peer.peer_networks import images, peer_network

pytest.importorskip("bcos", reason="the package bcos is not installed")
pytestmark = pytest.mark.peer


def converted(name: str, recipe: str = "equivalent") -> BcosNetwork:
    return bcos_fx.bcosify(peer_network(name, 32), recipe=recipe, example_inputs=images(32), verified=False)


@pytest.mark.parametrize("name", ["small_vit", "resnet18"])
def test_a_state_goes_there_and_back(name: str) -> None:
    other, third = (peer_network(name, 32, seed) for seed in (1, 2))
    network, x = converted(name), images(32)
    with torch.no_grad():
        before, expected = network(x), other(x)
        assert not torch.allclose(before, expected, rtol=1e-9)
        load_peer_state(network, other.state_dict())
        torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)

        state = peer_state(network)
        assert state.keys() == other.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in other.state_dict().items())
        third.load_state_dict(state, strict=True)
        assert torch.equal(third(x), expected)


def test_keys_that_do_not_fit_are_named_and_change_nothing() -> None:
    network = converted("small_vit")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    good = peer_state(network)
    key = "0.linear_head.linear.linear.weight"
    renamed = {("0.linear_head.linear.linear.wieght" if k == key else k): v for k, v in good.items()}
    for wrong, words in (
        ({k: v for k, v in good.items() if k != key}, "1 missing: 0.linear_head"),
        (renamed, "1 unknown: 0.linear_head.linear.linear.wieght"),
        (
            good | {key: good[key][:5]},
            r"1 of another shape: 0.linear_head.linear.linear.weight \(5, 24\), not \(10, 24",
        ),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_peer_state(network, wrong)
    with pytest.raises(CheckpointError, match=rf"did you mean '{key}'"):
        load_peer_state(network, renamed)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_another_network_is_refused() -> None:
    module = nn.Sequential(nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5)).double()
    network = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=images(32), verified=False)
    with pytest.raises(UsageError, match="did not come from the package bcos"):
        peer_state(network)
    with pytest.raises(UsageError, match="did not come from the package bcos"):
        load_peer_state(network, module.state_dict())
