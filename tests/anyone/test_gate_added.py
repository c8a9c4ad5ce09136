"""A gate that is added to a value: its share is a constant of this input, counted and named."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import VerificationError


class Added(nn.Module):
    def __init__(self, join: Callable[..., Tensor], gate: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.value, self.inner, self.join, self.gate = nn.Linear(6, 8), nn.Linear(6, 8), join, gate
        self.fc: nn.Module = nn.LazyLinear(3)
        self.double().eval()

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(x).relu(), self.gate(self.inner(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.join(*self.parts(x)))


JOINS: dict[str, Callable[..., Tensor]] = {
    "sum": lambda v, g: v + g,
    "gate first": lambda v, g: g.add(v),
    "difference": lambda v, g: v - g,
    "joined": lambda v, g: torch.cat([v, g], 1),
    "larger": lambda v, g: torch.maximum(v, g),
    "where": lambda v, g: torch.where(v > 0.1, v, g),
    "weight and sum": lambda v, g: v * g + g,
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda y: y.softmax(1),
    "exp": torch.exp,
    "comparison": lambda y: (y > 0).to(y.dtype),
}


def expected(network: Added, x: Tensor, target: int) -> Tensor:
    """W(x) by autograd, with the gate held fixed by hand."""
    leaf = x.clone().requires_grad_()
    value, gate = network.parts(leaf)
    (found,) = torch.autograd.grad(network.fc(network.join(value, gate.detach()))[:, target].sum(), leaf)
    return found


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("join", JOINS)
def test_its_share_is_counted(join: str, gate: str) -> None:
    torch.manual_seed(0)
    network, x = Added(JOINS[join], GATES[gate]), torch.randn(3, 6).double()
    network(x)
    found = bcos_fx.explain(network, x, 1)
    torch.testing.assert_close(found.weights, expected(network, x, 1), rtol=1e-9, atol=1e-12)
    assert found.residual.abs().max() < 1e-12
    assert any(name.startswith("the gate ") for name in found.constants)
    certificate = bcos_fx.certify(network, x)
    assert certificate.ok, certificate.to_text()
    assert "its share is counted as a constant" in certificate.to_text()


def test_the_share_by_hand() -> None:
    torch.manual_seed(0)
    network, x = Added(JOINS["sum"], torch.sigmoid), torch.randn(3, 6).double()
    network(x)
    found = bcos_fx.explain(network, x, 1)
    share = (network.parts(x)[1] @ network.fc.get_parameter("weight")[1]).detach()
    torch.testing.assert_close(found.constants["the gate sigmoid"], share, rtol=1e-9, atol=1e-12)


def test_a_gate_alone_is_still_no_value() -> None:
    network, x = Added(lambda v, g: g, lambda h: h.softmax(1)), torch.randn(3, 6).double()
    network(x)
    with pytest.raises(VerificationError):
        bcos_fx.explain(network, x, 1)


def test_where_the_gate_is_nearly_everything_nothing_is_called_complete() -> None:
    network, x = Added(lambda v, g: 1e-9 * v + g, torch.sigmoid), torch.randn(3, 6).double()
    network(x)
    found = bcos_fx.explain(network, x, 1)
    assert found.verdict == "not tested"
    assert "NOT TESTED" in repr(found)
