"""Sigmoids and their like between layers: activations that are not 0 at 0, with that value counted as a constant."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import VerificationError


class Hidden(nn.Module):
    """Layers with a function between them; its input is ``before``."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, 4), function
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "a module": nn.Sigmoid(),
    "hard sigmoid": F.hardsigmoid,
    "softplus": nn.Softplus(beta=2.0),
    "exponential": torch.exp,
    "cosine": torch.cos,
    "hyperbolic cosine": torch.cosh,
    "bell": lambda h: torch.exp(-(h * h)),
}


def given() -> Tensor:
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_ratio_weights_and_the_value_at_0_is_counted(name: str, rewritten: bool) -> None:
    torch.manual_seed(0)
    network: nn.Module = Hidden(FUNCTIONS[name])
    first, last, phi = network.first, network.last, FUNCTIONS[name]
    if rewritten:
        network = bcos_fx.bcosify(network, example_inputs=given(), recipe="equivalent", input="none")
    found = bcos_fx.explain(network, given(), 1)
    h, zero = first(given()), torch.zeros(1, dtype=torch.float64)
    ratio = (phi(h) - phi(zero)) / h
    torch.testing.assert_close(found.input_weights, (last.weight[1] * ratio) @ first.weight, rtol=1e-9, atol=1e-12)
    (share,) = (value for source, value in found.constants.items() if " of 0 at " in source)
    expected = (last.weight[1] * phi(zero)).sum() if name != "bell" else last.weight[1].sum()
    torch.testing.assert_close(share, expected.detach().expand(3), rtol=1e-9, atol=1e-12)
    assert found.complete


def test_several_and_a_norm_between() -> None:
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 8),
        nn.Sigmoid(),
        nn.BatchNorm1d(8),
        nn.Linear(8, 8),
        nn.Softplus(),
        nn.Linear(8, 4),
        nn.Softmax(1),
    ]
    network = nn.Sequential(*layers).double().eval()
    found = bcos_fx.explain(network, given(), 1, output="logits")
    assert found.complete
    assert sum(" of 0 at " in source for source in found.constants) == 2


def test_layers_on_both_sides_are_raised() -> None:
    made = bcos_fx.bcosify(Hidden(torch.sigmoid), example_inputs=given(), recipe="bcosification", input="none")
    assert [row.name for row in made.report.nodes if row.op.startswith("bcos_")] == ["first", "last"]


def test_a_file_holds_such_a_network(tmp_path: object) -> None:
    made = bcos_fx.bcosify(Hidden(nn.Sigmoid()), example_inputs=given(), recipe="equivalent", input="none")
    path = f"{tmp_path}/network.safetensors"
    bcos_fx.save(made, path)
    read = bcos_fx.load(path)
    torch.testing.assert_close(
        bcos_fx.explain(read, given(), 1).input_weights, bcos_fx.explain(made, given(), 1).input_weights
    )


class Gated(Hidden):
    """A gate computed by two layers weights a value: a sigmoid in it weights too."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h) * self.last(torch.sigmoid(h))


def test_what_weights_a_value_stays_a_gate() -> None:
    torch.manual_seed(0)
    network = Gated(torch.sigmoid)
    found = bcos_fx.explain(network, given(), 1)
    gate = network.last(torch.sigmoid(network.first(given())))[:, 1:2]
    expected = gate * (network.last.weight[1] @ network.first.weight)
    torch.testing.assert_close(found.input_weights, expected.detach(), rtol=1e-9, atol=1e-12)
    assert not any(" of 0 at " in source for source in found.constants)


@pytest.mark.parametrize("function", [lambda h: h.softmax(1), torch.reciprocal, lambda h: (h > 0).double()])
def test_what_has_no_ratio_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(VerificationError, match="makes a gate"):
        bcos_fx.explain(Hidden(function), given(), 1)
