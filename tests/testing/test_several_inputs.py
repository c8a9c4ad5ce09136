"""Any network of several inputs: W(x) of each of them is its gradient, and all of them share one sum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import bcos_fx
from bcos_fx.explanation.view import view_of
from bcos_fx.rewriting.core import flow
from bcos_fx.testing import JointNetwork, joint_inputs, joint_networks
from bcos_fx.testing.several_inputs import JOINS, NOT_PIECEWISE_LINEAR, JointSpecification

EXAMPLES = 40
SLOW = [HealthCheck.too_slow]


def gradient(network: JointNetwork, inputs: list[Tensor], place: int) -> Tensor:
    """(N, ...) of the second score, by autograd of the original."""
    leaves = [value.clone().requires_grad_(place == index) for index, value in enumerate(inputs)]
    return torch.autograd.grad(network(*leaves)[:, 1].sum(), leaves[place])[0]


def linear_sources(network: JointNetwork) -> dict[int, str]:
    """Place of an input -> how it enters, for all in which the network is piecewise linear."""
    joins = list(network.specification.joins)
    joins.insert(network.image, "image")
    return {place: join for place, join in enumerate(joins) if join not in NOT_PIECEWISE_LINEAR}


def source_names(network: JointNetwork, inputs: list[Tensor]) -> list[str]:
    view = view_of(network, inputs, source=None)
    return [str(node.target) for node in view.inputs]


def check(network: JointNetwork) -> None:
    inputs = joint_inputs(network)
    sources = source_names(network, inputs)
    for place in linear_sources(network):
        found = bcos_fx.explain(network, inputs[0], 1, others=inputs[1:], source=sources[place])
        torch.testing.assert_close(found.weights, gradient(network, inputs, place), rtol=1e-8, atol=1e-11)
        assert found.residual.abs().max() < 1e-10
        assert found.verdict != "incomplete"


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=SLOW)
@given(joint_networks())
def test_the_weights_of_every_input_are_its_gradient(network: JointNetwork) -> None:
    check(network)


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=SLOW)
@given(joint_networks(most=2))
def test_a_converted_network_is_explained_by_every_input(network: JointNetwork) -> None:
    inputs = joint_inputs(network)
    model = bcos_fx.bcosify(network, example_inputs=inputs, recipe="equivalent", verified=False)
    for place in linear_sources(network):
        source = model.record.inputs[place].name
        found = bcos_fx.explain(model, inputs[0], 1, others=inputs[1:], source=source)
        torch.testing.assert_close(found.input_weights, gradient(network, inputs, place), rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(found.output, network(*inputs)[:, 1].detach(), rtol=1e-9, atol=1e-11)


@settings(max_examples=EXAMPLES // 2, deadline=None, suppress_health_check=SLOW)
@given(joint_networks())
def test_all_inputs_together_share_one_sum(network: JointNetwork) -> None:
    inputs = joint_inputs(network)
    sources = source_names(network, inputs)
    chosen = [sources[place] for place in linear_sources(network)]
    joint = bcos_fx.explain(network, inputs[0], 1, others=inputs[1:], source=chosen, allow_incomplete=True)
    by_hand = sum(joint.totals.values()) + joint.constants.total()
    torch.testing.assert_close(by_hand, network(*inputs)[:, 1].detach(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("join", sorted(JOINS))
@pytest.mark.parametrize("first", [0, 1])
def test_every_join(join: str, first: int) -> None:
    network = JointSpecification(side=4, width=3, joins=(join,), first=first, pool="mean", seed=5).build()
    check(network)


def test_a_value_that_is_taken_for_the_gate_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that these networks are for: of two factors the activated one is the gate, whatever is explained."""
    network = JointSpecification(side=4, width=3, joins=("mask",), first=0, pool="mean", seed=5).build()
    monkeypatch.setattr(flow._Analysis, "_relevant", lambda self, nodes: list(nodes))
    monkeypatch.setattr(flow._Analysis, "_note_dependence", lambda self, node: self._from_main.add(node))
    with pytest.raises(AssertionError):
        check(network)
