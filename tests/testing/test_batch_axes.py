"""Any network whose samples lie elsewhere is explained as it is where they lie first."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, given, settings

import bcos_fx
from bcos_fx.testing import SamplesElsewhere, networks_with_samples_elsewhere

EXAMPLES = 12


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks_with_samples_elsewhere())
def test_explanations_follow_the_samples(network: SamplesElsewhere) -> None:
    network.double()
    count = 1 if network.axis is None else 3
    x = torch.rand(count, *network.network.input_shape, dtype=torch.float64)
    plain = bcos_fx.explain(network.network, x, 1, allow_incomplete=True)
    found = bcos_fx.explain(network, network.own_form(x), (1,), batch_axis=network.axis, allow_incomplete=True)
    torch.testing.assert_close(found.output, plain.output)
    torch.testing.assert_close(found.weights.reshape(plain.weights.shape), plain.weights)
    assert found.verdict == plain.verdict
