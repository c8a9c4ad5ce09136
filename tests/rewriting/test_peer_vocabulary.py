"""Other packages' layers are known by name: nothing of theirs is imported, no file can hold or name them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx import nn as bnn
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.artifact.modules import ModuleReader
from bcos_fx.errors import ArtifactError, RuleError
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.spelling import resolve
from bcos_fx.tracing import trace
from tests.rewriting import peer_layers as peers

ROOT = Path(__file__).resolve().parents[2]


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 6, 9, 9)


class Network(nn.Module):
    """A small network of stand-ins for the package's layers, with a plain layer."""

    def __init__(self, b: float = 2) -> None:
        super().__init__()
        self.conv = peers.PeerConv(6, 4, b=b)
        self.norm = peers.PeerBatchNorm(4)
        self.plain = nn.Conv2d(4, 4, 1, bias=False)
        self.head = peers.PeerLinear(4, 5)
        self.logits = peers.PeerLogitLayer(bias=-3.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.logits(self.head(self.plain(self.norm(self.conv(x))).mean((2, 3))))
        return y


def test_no_peer_is_imported() -> None:
    code = (
        "import sys, bcos_fx; from bcos_fx.rewriting.core.rulefile import known_names; "
        "from bcos_fx.rewriting.core.recipe import load_recipe; known_names(); load_recipe('equivalent'); "
        "raise SystemExit(any(name.partition('.')[0] == 'bcos' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr or "a peer's package was imported"


def test_a_peers_name_means_no_class() -> None:
    assert vocabulary().leaves
    for name in vocabulary().leaves:
        with pytest.raises(RuleError):
            resolve(name)
        assert name not in vocabulary().spellings.values()
    assert not set(ModuleReader(vocabulary(), {})._classes) & set(vocabulary().leaves)


def test_a_peers_layer_stays_whole_in_a_trace_and_a_subclass_does_not() -> None:
    class Mine(peers.PeerConv):  # type: ignore[misc, valid-type]
        pass

    for layer, whole in ((peers.PeerConv(6, 4), True), (Mine(6, 4), False)):
        graph = trace(nn.Sequential(layer), images(), leaf_modules=vocabulary().leaves).graph_module.graph
        assert any(node.op == "call_module" for node in graph.nodes) is whole


def test_a_network_keeps_its_own_b_under_every_recipe() -> None:
    """Here the peer's B = 1 is not the recipe's, and the plain layer beside it is left as it is."""
    module = Network(b=1).eval()
    x = images()
    for recipe in ("bcosification", "bcos-v2"):
        network = bcos_fx.bcosify(module, recipe=recipe, bias="keep", example_inputs=x)
        assert [network.get_submodule(n).b for n in ("conv", "plain", "head")] == [1.0, 1.0, 2.0]
        assert len([n for n in network.graph.nodes if "logit" in str(n.target)]) == 1
        torch.testing.assert_close(network(x), module(x))
        assert any(miss.rule == "alignment-raised" and miss.node == "plain" for miss in network.report.near_misses)


def test_a_converted_network_is_saved_like_any_other() -> None:
    module = Network().eval()
    network = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=images())
    again: Any = from_bytes(to_bytes(network))
    x = images()
    assert torch.equal(again(x), network(x))
    assert isinstance(again.conv, bnn.BcosConv2d)
    assert (again.conv.gain, again.conv.eps, again.head.eps_at) == (None, 1e-6, "norm")


def test_a_layer_that_stayed_cannot_be_saved() -> None:
    network = bcos_fx.bcosify(Network(b=1.5).eval(), recipe="equivalent", example_inputs=images())
    with pytest.raises(ArtifactError, match=r"bcos\.modules\.bcosconv2d\.BcosConv2d cannot be stored"):
        to_bytes(network)
