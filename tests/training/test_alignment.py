"""B and constants of a network under a schedule, against the same numbers computed apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError, VerificationError
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosConv2d, BcosLayer, BcosLinear
from bcos_fx.rewriting.core.registry import PREDICATES
from bcos_fx.training import schedulable_layers
from bcos_fx.training.alignment import Alignment
from bcos_fx.training.fading import Fading
from bcos_fx.training.schedulable_layers import constants_of, layers_of_phase, without_zero_constants
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course
from tests.training.small_runs import converted, images


def pressures(network: BcosNetwork) -> list[float]:
    return [module.b for module in network.modules() if isinstance(module, BcosLayer)]


def constants(network: BcosNetwork) -> list[Tensor]:
    return [c.clone() for path in layers_of_phase(network, "bias") for c in constants_of(network.get_submodule(path))]


def test_places_are_those_of_the_rules() -> None:
    network = converted()
    assert layers_of_phase(network, "align") == ["0", "4", "8"]
    assert set(layers_of_phase(network, "bias")) == {"0", "1", "4", "8"}
    assert pressures(network) == [1.0] * 3


def test_b_rises_by_the_first_pattern_that_fits() -> None:
    network = converted()
    twin = copy.deepcopy(network)
    alignment = Alignment(
        [network, twin], [BSchedule(layers="4", to=3.0, course=Course("linear", end=1.0)), BSchedule()]
    )
    alignment.set(0.0)
    assert pressures(network) == pressures(twin) == [2.0, 1.0, 2.0]
    alignment.set(0.25)
    assert pressures(network) == [2.0, 1.5, 2.0]
    assert alignment.mean() == pytest.approx(5.5 / 3)
    assert alignment.scheduled(0.5) == (2.0, 2.0, 2.0)
    with pytest.raises(UsageError, match="decides about no B-cos layer"):
        Alignment([network], [BSchedule(), BSchedule(layers="0")])


def test_a_rise_of_all_layers_leaves_b_that_the_conversion_chose() -> None:
    chosen = converted(b={"4": 1.0})
    alignment = Alignment([chosen], [BSchedule()])
    alignment.set(1.0)
    assert pressures(chosen) == [2.0, 1.0, 2.0]
    named = converted(b={"4": 1.0})
    Alignment([named], [BSchedule(layers="4", to=1.5), BSchedule()]).set(1.0)
    assert pressures(named) == [2.0, 1.5, 2.0]
    for b in ({"4": 1.0, "*": 3.0}, 3.0):  # the rest is the rest, however it is written
        everywhere = converted(b=b)
        Alignment([everywhere], [BSchedule()]).set(1.0)
        assert pressures(everywhere) == [2.0, 1.0 if isinstance(b, dict) else 2.0, 2.0]


@pytest.mark.parametrize("scale", ["cosine", "raw", "unit"])
@pytest.mark.parametrize("b", [1.0, 1.3, 2.0])
def test_a_layer_that_follows_a_tensor_computes_the_same(b: float, scale: str) -> None:
    layer = BcosConv2d(4, 6, 3, padding=1, groups=2, b=b, scale=scale, dtype=torch.float64)  # type: ignore[arg-type]
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    plain = layer(x)
    expected = torch.autograd.grad(plain.square().sum(), [x, layer.weight])
    layer.follow(nn.Parameter(torch.tensor(b, dtype=torch.float64)))
    found = layer(x)
    assert torch.allclose(found, plain, rtol=1e-12)
    for a, e in zip(torch.autograd.grad(found.square().sum(), [x, layer.weight]), expected, strict=True):
        assert torch.allclose(a, e, rtol=1e-10, atol=1e-12)
    assert "pressure" not in layer.state_dict()
    layer.follow(None)
    assert torch.equal(layer(x), plain)


def test_the_gradient_of_b_is_that_of_differences() -> None:
    layer = BcosLinear(5, 3, b=1.4, dtype=torch.float64)
    x = torch.randn(4, 5, dtype=torch.float64)
    pressure = nn.Parameter(torch.tensor(1.4, dtype=torch.float64))
    layer.follow(pressure)
    (found,) = torch.autograd.grad(layer(x).square().sum(), pressure)
    layer.follow(None)
    values = []
    for b in (1.4 - 1e-6, 1.4 + 1e-6):
        layer.b = b
        values.append(layer(x).square().sum().item())
    assert float(found) == pytest.approx((values[1] - values[0]) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("b", [1.0, 1.0001, 1.25, 1.5, 2.0, 2.5])
@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_training_stays_finite_on_empty_and_tiny_patches(b: float, follows: bool, autocast: torch.dtype | None) -> None:
    """|0|^(B-1) has an infinite derivative for 1 < B < 2: seen at the first step of a rising B."""
    layer = BcosConv2d(3, 4, 3, padding=1, b=b)
    pressure = nn.Parameter(torch.tensor(b))
    if follows:
        layer.follow(pressure)
    x = torch.rand(4, 3, 6, 6)
    x[0] = 0
    x[1] *= 1e-25
    x[2, :, :3] = 0
    x[3] *= 1e-38
    x.requires_grad_()
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        loss = layer(x).float().square().sum() * 2**10
    loss.backward()
    given = [x.grad, layer.weight.grad, layer.bias.grad, *([pressure.grad] if follows else [])]
    for gradient in given:
        assert gradient is not None
        assert bool(torch.isfinite(gradient).all())
    assert bool(torch.isfinite(loss))


def test_a_learned_b_drifts_and_is_clamped() -> None:
    network = converted()
    alignment = Alignment([network], [BSchedule(layers="0", learned="layer", drift=1.0), BSchedule(learned="network")])
    assert set(alignment.pressures) == {"0", "network *"}
    network.train()(images()[0]).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad)) for p in alignment.learned())
    with torch.no_grad():
        alignment.pressures["network *"].fill_(0.3)
    alignment.after_step(lr=0.25)
    assert alignment.pressures["0"].item() == pytest.approx(1.25)  # a quarter of the way from 1 to 2
    alignment.set(0.0)
    assert pressures(network) == [1.25, 1.0, 1.0]
    alignment.settle()
    assert all(m.pressure is None for m in network.modules() if isinstance(m, BcosLayer))


def test_constants_fade_with_the_mean_that_is_folded_into_them() -> None:
    network = converted()
    before = constants(network)
    fading = Fading([network], [BiasDecay(course=Course("linear", end=1.0))])
    fading.begin()
    for step in range(3):
        fading.after_step(step / 4, (step + 1) / 4, lr=0.1)
    for was, now in zip(before, constants(network), strict=True):
        assert torch.allclose(now, was / 4)
    fading.after_step(0.75, 1.0, lr=0.1)
    assert not any(bool(c.any()) for c in constants(network))


def test_decay_of_constants_and_layers_that_keep_them() -> None:
    network = converted()
    kept = network.get_submodule("8").bias.detach().clone()
    before = network.get_submodule("0").bias.detach().clone()
    fading = Fading(
        [network], [BiasDecay(layers="8", decay=0.0, course=Course("linear", start=0.9, end=1.0)), BiasDecay(decay=2)]
    )
    fading.after_step(0.0, 0.5, lr=0.1)
    assert torch.equal(network.get_submodule("8").bias, kept)
    assert torch.allclose(network.get_submodule("0").bias, before * 0.8)
    with pytest.raises(UsageError, match="decides about no layer with a bias"):
        Fading([network], [BiasDecay(layers="2")])


def test_zero_constants_leave_the_graph_and_others_stay() -> None:
    network, (pixels, _) = converted(), images()
    Fading([network], [BiasDecay(layers="[01]")]).begin()
    stripped = without_zero_constants(network, pixels)
    assert torch.equal(stripped(pixels), network(pixels))
    assert layers_of_phase(stripped, "bias") == ["4", "8"]
    assert stripped.get_submodule("1").shift is False
    assert stripped.get_submodule("0").bias is None
    assert stripped.get_submodule("0").weight is network.get_submodule("0").weight
    assert stripped.report.options["bias"] == "strip"
    assert {"layer-bias-stripped", "norm-shift-stripped"} <= set(stripped.report.rules)
    assert without_zero_constants(stripped, pixels) is stripped


def test_taking_out_what_is_not_zero_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (pixels, _) = converted(), images()
    monkeypatch.setattr(schedulable_layers, "_has_zero_bias", PREDICATES["has-bias"])
    with pytest.raises(VerificationError, match="taking out biases that are 0 changed the network"):
        without_zero_constants(network, pixels)
