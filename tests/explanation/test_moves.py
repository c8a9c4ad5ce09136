"""An explanation follows a network to another precision, buffers that its graph reads included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx


class Placed(nn.Module):
    """Features plus positions that are no parameters, as fixed encodings are."""

    positions: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", torch.randn(6))
        self.inner, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.inner(x + self.positions)))


@pytest.fixture
def network() -> Any:
    torch.manual_seed(0)
    return bcos_fx.bcosify(Placed().eval(), example_inputs=torch.randn(2, 6), recipe="equivalent")


@pytest.mark.parametrize("steps", [(torch.bfloat16,), (torch.bfloat16, torch.float64), (torch.float64,)])
def test_a_view_that_is_kept_reads_the_buffers_of_now(steps: tuple[torch.dtype, ...], network: Any) -> None:
    x = torch.randn(3, 6)
    assert bcos_fx.explain(network, x).complete
    for dtype in steps:
        network.to(dtype)
        found = bcos_fx.explain(network, x.to(dtype))
        assert found.weights.dtype == dtype
        with torch.no_grad():
            torch.testing.assert_close(found.scores, network(x.to(dtype)))
    assert found.complete
    if steps[-1] == torch.float64:
        assert found.residual.abs().max() <= 1e-12


def test_a_buffer_put_in_anothers_place_is_read(network: Any) -> None:
    x = torch.randn(3, 6)
    before = bcos_fx.explain(network, x)
    network.positions = network.positions + 1
    after = bcos_fx.explain(network, x)
    assert not torch.allclose(before.scores, after.scores)
    with torch.no_grad():
        torch.testing.assert_close(after.scores, network(x))


def test_a_view_is_kept_while_nothing_changes(network: Any) -> None:
    from bcos_fx.explanation.view import view_of

    first = view_of(network)
    assert view_of(network) is first
    network.double()
    assert view_of(network) is not first
