"""State dicts of B-cos v2 go into torchvision's plain architectures, without the package that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bcos_fx
from bcos_fx.checkpoint import read_model
from bcos_fx.nn import BcosLayer
from tests.peer.peer_networks import images, peer_network

pytest.importorskip("bcos", reason="the package bcos is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")
pytestmark = pytest.mark.peer


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_hub_file_is_its_network(wrapped: bool, tmp_path: Path) -> None:
    peer = peer_network("resnet18", 64)
    state: dict[str, Any] = dict(peer.state_dict())
    if wrapped:  # as the training of that package saves it
        state = {"state_dict": {f"model.{key}": tensor for key, tensor in state.items()}, "epoch": 9}
    torch.save(state, tmp_path / "hub.pth")
    module = read_model(tmp_path / "hub.pth", arch="torchvision:resnet18")
    x = images(64)[:, :3]
    network = bcos_fx.bcosify(module.double(), recipe="bcosification", example_inputs=x)
    assert network.record.inputs[0].encoded
    layers = [part for part in network.modules() if isinstance(part, BcosLayer)]
    assert {(layer.b, layer.scale, layer.eps, layer.gain) for layer in layers} == {(2.0, "unit", 1e-6, None)}
    with torch.no_grad():
        found, expected = network(x), peer(images(64))
    spread = expected - expected.mean()
    assert float((found - expected).abs().max()) <= 1e-5 * float(spread.abs().max())  # read into float32
    bcos_fx.save(network, tmp_path / "network.safetensors")
    assert torch.equal(bcos_fx.load(tmp_path / "network.safetensors")(x), network(x))
