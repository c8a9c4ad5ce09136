"""Networks of the bcos package, taken as they are: the same outputs, the same dynamic weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.nn import BcosLayer
from bcos_fx.rewriting.location import rules_directory
from bcos_fx.rewriting.rulefile import read_rules

peers = pytest.importorskip("bcos.models.pretrained", reason="the bcos package, to compare with, is not installed")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.vision,
    pytest.mark.filterwarnings("ignore"),  # of the package itself
]

NETWORKS = [
    pytest.param("resnet18", 32, id="resnet18"),
    pytest.param("densenet121", 32, id="densenet121", marks=pytest.mark.slow),
    pytest.param("vgg11_bnu", 32, id="vgg11_bnu", marks=pytest.mark.slow),
    pytest.param("convnext_tiny", 64, id="convnext_tiny", marks=pytest.mark.slow),
    pytest.param("simple_vit_ti_patch16_224", 224, id="simple_vit", marks=pytest.mark.slow),
]


def encoded(side: int) -> Tensor:
    x = torch.rand(2, 3, side, side, dtype=torch.float64)
    return torch.cat([x, 1 - x], dim=1)


def statistics_from_data_(network: nn.Module, x: Tensor) -> None:
    """Give each uncentred batch norm the variance that it sees: fresh ones leave nothing but the logit bias."""

    def take(norm: Any, given: tuple[Tensor, ...]) -> None:
        norm.running_var.copy_(given[0].var((0, 2, 3), unbiased=False))

    hooks = [
        module.register_forward_pre_hook(take)
        for module in network.modules()
        if type(module).__name__ == "BatchNormUncentered2d"
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()


def made(name: str, side: int) -> tuple[Any, Tensor, float]:
    network = getattr(peers, name)(pretrained=False).double().eval()
    x = encoded(side)
    statistics_from_data_(network, x)
    biases = [m.logit_bias for m in network.modules() if type(m).__name__ == "LogitLayer"]
    return network, x, biases[0] or 0.0


@pytest.mark.parametrize(("name", "side"), NETWORKS)
def test_a_peer_is_taken_as_it_is(name: str, side: int) -> None:
    network, x, bias = made(name, side)
    ours = bcos_fx.bcosify(network, recipe="equivalent", example_inputs=x, verified=False)
    with torch.no_grad():
        expected, actual = network(x) - bias, ours(x) - bias
    assert (expected.amax(0) - expected.amin(0)).max() > 1e-3 * expected.abs().max(), "the outputs hardly vary"
    assert (actual - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert ours.report.coverage.share == 1
    assert not [m for m in ours.modules() if type(m).__module__.startswith("bcos.")]
    assert not any(spec.encoded for spec in ours.record.inputs)
    found = bcos_fx.explain(ours, x[:1], 5)
    image = x[:1].clone().requires_grad_()
    with network.explanation_mode():
        network(image)[0, 5].backward()
    assert image.grad is not None
    assert (found.weights - image.grad).abs().max() <= 1e-6 * image.grad.abs().max()
    assert found.complete


def test_layers_keep_their_b_under_every_recipe() -> None:
    network, x, _ = made("resnet18", 32)
    for options in ({"recipe": "equivalent"}, {"recipe": "bcosification", "b": 1.5}, {"recipe": "bcos-v2", "b": 3}):
        ours = bcos_fx.bcosify(network, example_inputs=x, verified=False, **options)
        assert {m.b for m in ours.modules() if isinstance(m, BcosLayer)} == {2.0}
        rules = {rule.name for rule in read_rules(rules_directory() / "interop-bcos.toml")}
        assert rules <= set(ours.report.rule_counts())


def test_a_peer_is_explained_without_being_converted() -> None:
    network, x, _ = made("resnet18", 32)
    found = bcos_fx.explain(network, x, 5)
    assert found.complete
    assert list(found.constants) == ["logit_layer.bias"]


def test_what_ours_does_not_do_is_refused_by_name() -> None:
    from bcos.modules import BcosConv2d

    for options, words in (({"max_out": 2}, "MaxOut"), ({"b": 1.5}, "adds a constant to the cosine")):
        network = nn.Sequential(BcosConv2d(6, 4, 3, **options)).eval()
        report = bcos_fx.plan(network, example_inputs=torch.rand(2, 6, 8, 8), recipe="equivalent")
        assert any(words in miss.reason for miss in report.near_misses)


def test_a_converted_peer_is_saved_and_loaded_without_the_package(tmp_path: Any) -> None:
    network, x, _ = made("resnet18", 32)
    ours = bcos_fx.bcosify(network, recipe="equivalent", example_inputs=x, verified=False)
    again = bcos_fx.load(bcos_fx.save(ours, tmp_path / "peer.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(x), ours(x))
