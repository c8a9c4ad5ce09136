"""Any small network: converted, it is the same function; the caller's module is as it was; twice is once."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import bcos_fx
from bcos_fx.testing import images, networks
from bcos_fx.testing.blocks import CASTS
from bcos_fx.testing.networks import Network
from bcos_fx.verification import verify

EXAMPLES = 40
MANY = 2_000
FLOAT32 = 1e-3
"""Rounding of a small network in float32, whose largest output is 1."""


def _snapshot(module: nn.Module) -> dict[str, object]:
    flags = {name: part.training for name, part in module.named_modules()}
    return {"state": copy.deepcopy(module.state_dict()), "flags": flags, "attributes": set(vars(module))}


def _unchanged(module: nn.Module, before: dict[str, object]) -> bool:
    state = before["state"]
    assert isinstance(state, dict)
    now = module.state_dict()
    same = list(state) == list(now) and all(torch.equal(state[key], now[key]) for key in state)
    return same and before["flags"] == _snapshot(module)["flags"] and before["attributes"] == set(vars(module))


def _examples(network: Network) -> torch.Tensor:
    return torch.rand(2, *network.input_shape)


def _is_image(network: Network) -> bool:
    return len(network.input_shape) == 3 and network.input_shape[0] in (1, 3)


def _inputs(network: Network) -> torch.Tensor:
    """Eight samples of both signs; an image, which will be encoded, is in [0, 1]."""
    return (torch.rand if _is_image(network) else torch.randn)(8, *network.input_shape)


def _statistics(network: Network) -> dict[str, list[float]]:
    """Mean and std that give an image network values of both signs too."""
    channels = network.input_shape[0]
    return {"mean": [0.5] * channels, "std": [0.25] * channels} if _is_image(network) else {}


def _proven(converted: bcos_fx.convert.BcosNetwork) -> None:
    """No run found a difference, and one could have: at another size a small network may be dead to its input."""
    found = converted.report.figures.verification
    assert found is not None
    verdicts = [row["verdict"] for row in found["comparisons"]]
    assert "different" not in verdicts, found["detail"]
    assume("equal" in verdicts)


@settings(max_examples=EXAMPLES)
@given(network=networks(), scale=st.sampled_from(["cosine", "raw", "unit"]))
def test_equivalent_is_equivalent(network: Network, scale: str) -> None:
    """Proven within the conversion, and once more from outside, on the network in float64."""
    before = _snapshot(network)
    inputs = _inputs(network)
    converted = bcos_fx.bcosify(
        network,
        example_inputs=_examples(network),
        recipe="equivalent",
        scale=scale,
        images=inputs,
        **_statistics(network),
    )
    assert _unchanged(network, before)
    _proven(converted)
    if scale != "unit":  # a gain is a new parameter, rounded to the network's own precision
        result = verify(network, converted, inputs)
        assert "different" not in {row.verdict for row in result.comparisons}, result.detail


@settings(max_examples=EXAMPLES)
@given(network=networks(dims=(1, 2, 3), casts=[cast for cast in CASTS if cast != "none"], max_blocks=3))
def test_networks_that_name_float32_are_proven_too(network: Network) -> None:
    """The casts change nothing in float32, in which the original runs; the graph is proven in float64."""
    check_in_float32(network)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=MANY)
@given(network=networks(casts=list(CASTS)))
def test_very_many_networks(network: Network) -> None:
    check_in_float32(network)


def check_in_float32(network: Network) -> None:
    converted = bcos_fx.bcosify(network, example_inputs=_examples(network), recipe="equivalent")
    _proven(converted)
    inputs = torch.rand(4, *network.input_shape)
    expected = network(inputs).detach()
    error = (converted(inputs).detach() - expected).abs().max() / expected.abs().max()
    assert error < FLOAT32
    assert converted.double()(inputs.double()).dtype == torch.float64


@settings(max_examples=EXAMPLES // 2)
@given(network=networks(), given_images=st.data())
def test_mean_and_std_move_into_the_network(network: Network, given_images: st.DataObject) -> None:
    shape = network.input_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        return
    mean, std = [0.3] * shape[0], [0.25] * shape[0]
    converted = bcos_fx.bcosify(
        network.double(), example_inputs=_examples(network).double(), recipe="equivalent", mean=mean, std=std
    )
    x = given_images.draw(images(network)).double().clamp(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(converted(x), network((x - 0.3) / 0.25), rtol=1e-9, atol=1e-9)


@settings(max_examples=EXAMPLES // 2)
@given(network=networks())
def test_every_layer_on_a_value_path_is_converted_and_raised(network: Network) -> None:
    converted = bcos_fx.bcosify(network, example_inputs=_examples(network))
    coverage = converted.report.coverage
    assert coverage.share == 1.0, [miss for miss in converted.report.near_misses if miss.rule == "layer-to-bcos"]
    layers = [m for m in converted.modules() if isinstance(m, bcos_fx.nn.BcosLayer)]
    assert layers or coverage.total == 0
    assert all(layer.b == 2 for layer in layers)
    assert all(layer.bias is None for layer in layers)


@settings(max_examples=EXAMPLES // 4)
@given(network=networks())
def test_converted_twice_is_converted_once(network: Network) -> None:
    once = bcos_fx.bcosify(network, example_inputs=_examples(network))
    twice = bcos_fx.bcosify(once)
    assert twice is not once
    assert any("already converted" in note for note in twice.report.notes)
    x = _examples(network)
    with torch.no_grad():
        assert torch.equal(once(x), twice(x))
    assert {p.data_ptr() for p in once.parameters()}.isdisjoint(p.data_ptr() for p in twice.parameters())


@settings(max_examples=EXAMPLES // 4)
@given(network=networks(), recipe=st.sampled_from(["bcosification", "equivalent", "bcos-v2"]))
def test_a_plan_is_the_report_without_its_figures(network: Network, recipe: str) -> None:
    dry = bcos_fx.plan(network, example_inputs=_examples(network), recipe=recipe)
    real = bcos_fx.bcosify(network, example_inputs=_examples(network), recipe=recipe)
    assert dry.to_json() == real.report.without_figures().to_json()


@settings(max_examples=EXAMPLES // 4)
@given(network=networks())
def test_copies_and_states_round_trip(network: Network) -> None:
    converted = bcos_fx.bcosify(network, example_inputs=_examples(network))
    twin = copy.deepcopy(converted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    twin.load_state_dict(converted.state_dict())
    x = _examples(network)
    with torch.no_grad():
        assert torch.equal(converted(x), twin(x))
    assert twin.report == converted.report


@pytest.mark.slow
@settings(max_examples=500)
@given(network=networks(max_blocks=7), scale=st.sampled_from(["cosine", "raw", "unit"]))
def test_equivalent_is_equivalent_at_length(network: Network, scale: str) -> None:
    inputs = _inputs(network)
    converted = bcos_fx.bcosify(
        network,
        example_inputs=_examples(network),
        recipe="equivalent",
        scale=scale,
        images=inputs,
        **_statistics(network),
    )
    _proven(converted)
    assert converted.report.coverage.share == 1.0
