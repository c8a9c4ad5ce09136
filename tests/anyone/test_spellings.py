"""However a call is written - function, method, in place - it converts, is certified, explained, stored and read."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.explanation.certify import certify
from bcos_fx.rewriting.core.op import Op
from tests.rewriting.spelled import Call, Spelled, cases, in_place


class Net(nn.Module):
    """One call between a layer and the output: every number of its result is one of the network's."""

    def __init__(self, spelled: Spelled) -> None:
        super().__init__()
        self.spelled = spelled
        self.positive = any(value.positive for value in spelled.values)
        sizes = [torch.Size(value.shape).numel() for value in spelled.values]
        self.first = nn.Linear(6, sum(sizes), bias=False)
        self.sizes = sizes
        self.names = [f"constant{number}" for number, leaf in enumerate(spelled.leaves) if isinstance(leaf, Tensor)]
        places = [number for number, leaf in enumerate(spelled.leaves) if isinstance(leaf, Tensor)]
        for name, place in zip(self.names, places, strict=True):
            self.register_buffer(name, spelled.leaves[place])
        self.places = places
        with torch.no_grad():
            count = len(spelled(spelled.draw(0)))
        self.last = nn.Linear(count, 2, bias=False)  # so that no output is of constants alone

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = nn.functional.softsign(hidden.relu()) * 0.9 + 0.05 if self.positive else hidden  # within (0, 1)
        parts = hidden.split(self.sizes, 1)
        values = [part.reshape(value.shape) for part, value in zip(parts, self.spelled.values, strict=True)]
        for name, place in zip(self.names, self.places, strict=True):
            self.spelled.leaves[place] = getattr(self, name)
        return self.last(self.spelled(values).reshape(1, -1))


def _network(op: Op, function: Call, example: dict[str, Any]) -> tuple[Net, Tensor]:
    network = Net(Spelled(op, function, example)).double().eval()
    return network, 3 * torch.randn(1, 6, dtype=torch.float64)


@pytest.mark.parametrize(("op", "function", "example"), [*cases(), *in_place()])
def test_it_converts_is_explained_and_comes_back(op: Op, function: Call, example: dict[str, Any]) -> None:
    network, x = _network(op, function, example)
    with warnings.catch_warnings(action="ignore"):
        converted = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", verified=False)
    out = network(x)
    torch.testing.assert_close(converted(x), out, rtol=1e-9, atol=1e-9)
    found = certify(converted, x)
    assert found.ok, found.to_text()
    assert found.completeness is not None
    assert found.completeness.verdict == "complete", found.to_text()
    again = from_bytes(to_bytes(converted))
    torch.testing.assert_close(again(x), out, rtol=1e-9, atol=1e-9)
    if op.linearity in ("linear", "selection") and not network.positive:
        explained = bcos_fx.explain(converted, x, target=lambda y: y.sum(1))
        gradient = torch.autograd.functional.jacobian(lambda given: network(given).sum(), x)
        torch.testing.assert_close(explained.weights.reshape(-1), gradient.reshape(-1), rtol=1e-9, atol=1e-9)
