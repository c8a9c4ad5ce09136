"""Any small network: what is certified is complete, converted or not; what is spoiled on the value path is named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import bcos_fx
from bcos_fx.explanation.certify import certify
from bcos_fx.explanation.completeness import all_numbers, check_completeness
from bcos_fx.explanation.view import view_of
from bcos_fx.testing import networks
from bcos_fx.testing.networks import Network

EXAMPLES = 60

# Drawn by name: reprs of networks and functions are no examples that could be read.
SPOILS: dict[str, Callable[[Tensor], Tensor]] = {
    "compare": lambda x: (x > 0.1).to(x.dtype),
    "function_of_two": lambda x: torch.atan2(x, 1 + x.abs()),
    "logarithm": lambda x: torch.log(1 + x.abs()),
    "softmax": lambda x: torch.softmax(x, 1),
    "rounding": torch.floor,
    "special_function": torch.special.i0,
}


class Spoiled(nn.Module):
    """Something done to a network's features before its classifier."""

    def __init__(self, network: Network, function: Callable[[Tensor], Tensor], *, gate: bool) -> None:
        super().__init__()
        self.body, self.head, self.function, self.gate = network.body, network.head, function, gate
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        changed = self.function(y)
        if self.gate:
            changed = y * torch.sigmoid(changed)
        return self.head(changed)


def samples(network: Network) -> Tensor:
    """The same for every example of a shape, so that what failed once fails again."""
    return torch.rand(3, *network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def holds(module: nn.Module, x: Tensor) -> None:
    view = view_of(module, x)
    assert view.certificate.ok, view.certificate.to_text()
    assert tuple(dict.fromkeys(c.source for c in view.certificate.constants)) == view.sources
    found = check_completeness(view, [x], select=all_numbers(most=1000))
    assert found.worst <= 1e-9, str(found)
    with torch.no_grad():
        difference = (view.value([x]) - module(x)).flatten(1).abs()
    assert bool((difference <= 1e-9 * found.terms.clamp_min(1)).all()), float(difference.max())


@settings(max_examples=EXAMPLES // 4)
@given(network=networks(max_blocks=3))
def test_a_network_as_it_comes_is_certified_and_complete(network: Network) -> None:
    holds(network.double(), samples(network))


@settings(max_examples=EXAMPLES // 4)
@given(
    network=networks(max_blocks=3),
    recipe=st.sampled_from(["equivalent", "bcosification", "bcos-v2"]),
    scale=st.sampled_from(["cosine", "raw", "unit"]),
)
def test_a_converted_network_is_certified_and_complete(network: Network, recipe: str, scale: str) -> None:
    x = samples(network)
    options = {} if recipe == "bcos-v2" else {"scale": scale}
    converted = bcos_fx.bcosify(network, example_inputs=x.float(), recipe=recipe, verified=False, **options)
    holds(converted.double(), x)


@settings(max_examples=EXAMPLES // 4)
@given(network=networks(max_blocks=2), spoil=st.sampled_from(sorted(SPOILS)))
def test_a_spoiled_value_path_is_named(network: Network, spoil: str) -> None:
    certificate = certify(Spoiled(network, SPOILS[spoil], gate=False), samples(network))
    assert not certificate.ok
    assert any(spoil in found.op for found in certificate.breaks), certificate.to_text()
    assert all("test_linearity_properties" in (found.source or "") for found in certificate.breaks)


@settings(max_examples=EXAMPLES // 4)
@given(network=networks(max_blocks=2), spoil=st.sampled_from(sorted(SPOILS)))
def test_a_spoiled_gate_breaks_nothing(network: Network, spoil: str) -> None:
    holds(Spoiled(network, SPOILS[spoil], gate=True), samples(network))


@pytest.mark.slow
@settings(max_examples=500)
@given(network=networks(max_blocks=7), recipe=st.sampled_from(["none", "equivalent", "bcosification"]))
def test_certified_is_complete_at_length(network: Network, recipe: str) -> None:
    x = samples(network)
    module: nn.Module = network
    if recipe != "none":
        module = bcos_fx.bcosify(network, example_inputs=x.float(), recipe=recipe, verified=False)
    holds(module.double(), x)
