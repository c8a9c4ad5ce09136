"""B-cos networks of the package ``bcos`` are taken as they are: same outputs, same B, same explanations."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx import nn as bnn
from bcos_fx.explanation.view import view_of
from tests.peer.peer_networks import images, logit_bias, peer_network

pytest.importorskip("bcos", reason="the package bcos is not installed")
pytestmark = pytest.mark.peer

SIZES = {"small_vit": 32, "resnet18": 32}
SLOW = {"densenet121": 64, "convnext_tiny": 64, "vgg11_bnu": 32, "simple_vit_ti_patch16_224": 64}
NETWORKS = [*SIZES, *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.timeout(1500)]) for name in SLOW)]


def peer_layers(network: nn.Module) -> dict[str, float]:
    """Path -> B of the package's B-cos layers."""
    return {
        path: float(part.b)  # type: ignore[arg-type]
        for path, part in network.named_modules()
        if type(part).__name__ in ("BcosConv2d", "BcosLinear") and type(part).__module__.startswith("bcos.")
    }


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def explained(network: Any, x: Tensor) -> tuple[int, Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = network.explain(x.clone().requires_grad_())
    return result["explained_class_idx"], result["dynamic_linear_weights"].detach()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_taken_as_it_is(name: str) -> None:
    """Equal outputs and weights, every layer ours with its own B, nothing encoded, under both kinds of recipes."""
    size = (SIZES | SLOW)[name]
    peer = peer_network(name, size)
    x = images(size)
    bias = logit_bias(peer)
    with torch.no_grad():
        expected = peer(x) - bias
    assert float(expected.abs().max()) > 1e-6, "the network answers nothing, so that nothing is compared"
    k, weights = explained(peer, x[:1])

    for recipe in ("equivalent", "bcosification"):
        network = bcos_fx.bcosify(peer, recipe=recipe, example_inputs=x, verified=recipe == "equivalent")
        with torch.no_grad():
            assert relative(network(x) - bias, expected) <= 1e-9
        assert network.report.coverage.share == 1
        assert not [path for path, part in network.named_modules() if type(part).__module__.startswith("bcos.")]
        ours = {path: part.b for path, part in network.named_modules() if isinstance(part, bnn.BcosLayer)}
        assert {path: ours[path] for path in peer_layers(peer)} == peer_layers(peer)
        assert {b for path, b in ours.items() if path not in peer_layers(peer)} <= {1.0}
        assert not network.record.inputs[0].encoded
        assert not network.report.figures.drift

        found = view_of(network).dynamic_weights([x[:1]], lambda y: y[:, k : k + 1])
        assert relative(found.weights[0, 0], weights[0]) <= 1e-6
        assert view_of(network).certificate.ok


def conv_layers() -> dict[str, nn.Module]:
    from bcos.modules import BcosConv2d
    from bcos.modules.bcosconv2d import BcosConv2dWithScale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "plain": BcosConv2d(6, 8, 3, padding=1),
            "stride": BcosConv2d(6, 8, 3, stride=2),
            "groups": BcosConv2d(6, 12, 3, groups=3),
            "depthwise": BcosConv2d(6, 6, 5, padding=2, groups=6),
            "dilation": BcosConv2d(6, 8, 3, dilation=2),
            "rectangle": BcosConv2d(6, 8, (1, 3), padding=(0, 1)),
            "B = 1": BcosConv2d(6, 8, 3, b=1),
            "scaled": BcosConv2dWithScale(6, 8, 3),
            "scaled by a number": BcosConv2dWithScale(6, 8, 3, scale=0.3),
        }


def norm_layers() -> dict[str, nn.Module]:
    from bcos.modules import norms

    return {
        "BatchNormUncentered2d": norms.BatchNormUncentered2d(6),
        "batch norm, no bias": norms.NoBias(norms.BatchNormUncentered2d)(6),
        "batch norm, unaffine": norms.Unaffine(norms.BatchNormUncentered2d)(6),
        "BatchNorm2d": norms.BatchNorm2d(6),
        "GroupNormUncentered2d": norms.GroupNormUncentered2d(2, 6),
        "group norm, no bias": norms.NoBias(norms.GroupNormUncentered2d)(2, 6),
        "GNInstanceNormUncentered2d": norms.GNInstanceNormUncentered2d(6),
        "GNLayerNormUncentered2d": norms.GNLayerNormUncentered2d(6),
        "PositionNormUncentered2d": norms.PositionNormUncentered2d(6),
        "position norm, unaffine": norms.Unaffine(norms.PositionNormUncentered2d)(6),
        "AllNormUncentered2d": norms.AllNormUncentered2d(6),
        "DetachableGroupNorm2d": norms.DetachableGroupNorm2d(3, 6),
        "DetachableGNInstanceNorm2d": norms.DetachableGNInstanceNorm2d(6),
        "DetachableGNLayerNorm2d": norms.NoBias(norms.DetachableGNLayerNorm2d)(6),
        "DetachablePositionNorm2d": norms.DetachablePositionNorm2d(6),
        "position norm, no bias": norms.NoBias(norms.DetachablePositionNorm2d)(6),
        "DetachableLayerNorm": norms.DetachableLayerNorm((6, 9, 9)),
    }


def _ours(layer: nn.Module) -> bcos_fx.convert.BcosNetwork:
    for name, parameter in layer.double().named_parameters():
        nn.init.normal_(parameter, 1.0 if name == "weight" and parameter.dim() == 1 else 0.0, 0.5)
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64) + 0.5
    if isinstance(layer, nn.BatchNorm2d):
        layer.running_var.copy_(torch.linspace(0.5, 2, layer.num_features))  # type: ignore[union-attr]
    network = bcos_fx.bcosify(nn.Sequential(layer.eval()), recipe="equivalent", example_inputs=x)
    with torch.no_grad():
        torch.testing.assert_close(network(x), layer(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(network(0 * x), layer(0 * x), rtol=1e-12, atol=1e-12)
    assert not [part for part in network.modules() if type(part).__module__.startswith("bcos.")]
    return network


@pytest.mark.parametrize("name", ["plain", "stride", "groups", "depthwise", "dilation", "rectangle", "B = 1"])
def test_convolutions(name: str) -> None:
    layer: Any = conv_layers()[name]
    made = _ours(layer).get_submodule("0")
    assert isinstance(made, bnn.BcosConv2d)
    assert made.b == layer.b


@pytest.mark.parametrize("name", ["scaled", "scaled by a number"])
def test_scaled_convolutions_keep_their_fixed_scale(name: str) -> None:
    made = _ours(conv_layers()[name]).get_submodule("0")
    assert isinstance(made, bnn.BcosConv2d)
    assert made.gain is not None
    assert not made.gain.requires_grad


@pytest.mark.parametrize("name", [*norm_layers()])
def test_norms(name: str) -> None:
    _ours(norm_layers()[name])


def test_linear_layers_and_zero_rows() -> None:
    from bcos.modules import BcosLinear

    layer = nn.Sequential(nn.Flatten(2), BcosLinear(81, 5))
    _ours(layer)


class Mixed(nn.Module):
    """Layers of the package at B = 1 and B = 2 beside a plain one."""

    def __init__(self, b: float = 1, max_out: int = 1) -> None:
        super().__init__()
        from bcos.modules import BcosConv2d

        self.first = BcosConv2d(6, 8, 3, b=b, max_out=max_out)
        self.second = BcosConv2d(8, 8, 3, b=2)
        self.plain = nn.Conv2d(8, 5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.plain(self.second(self.first(x))).mean((2, 3))
        return y


def test_every_layer_keeps_its_own_b() -> None:
    module = Mixed().double()
    network = bcos_fx.bcosify(module, recipe="bcosification", head="keep", example_inputs=images(9))
    assert [network.get_submodule(name).b for name in ("first", "second", "plain")] == [1.0, 2.0, 1.0]
    assert any("meant to be plain" in miss.reason for miss in network.report.near_misses)
    torch.testing.assert_close(network(images(9)), module(images(9)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("options", "words"), [({"b": 1.5}, "adds 1e-6"), ({"max_out": 2}, "MaxOut")])
def test_what_our_layers_do_not_compute_stays_and_says_why(options: dict[str, Any], words: str) -> None:
    module = Mixed(**options).double()
    network = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=images(9))
    assert any(miss.rule == "peer-bcos-layer" and words in miss.reason for miss in network.report.near_misses)
    assert network.report.coverage.share < 1
    assert not view_of(network).certificate.ok
    torch.testing.assert_close(network(images(9)), module(images(9)), rtol=1e-12, atol=1e-12)
