"""Calls that are short for several others are recorded as those, and compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bcos_fx.explanation.certify import certify
from bcos_fx.testing import randomise_
from bcos_fx.tracing import trace

Function = Callable[["Net", Tensor], Tensor]

CALLS: dict[str, Function] = {
    "addcmul": lambda net, x: torch.addcmul(x, net.a, x.relu()),
    "addcmul, scaled": lambda net, x: x.addcmul(net.fc(x), x.sigmoid(), value=0.5),
    "addcdiv": lambda net, x: torch.addcdiv(x, x, net.a.abs() + 1, value=2),
    "addmm": lambda net, x: torch.addmm(net.a, x, net.fc.weight),
    "addmm, scaled": lambda net, x: net.a.addmm(x, net.fc.weight, beta=0.5, alpha=2),
    "addmm without its input": lambda net, x: torch.addmm(net.a * torch.inf, x, net.fc.weight, beta=0),
    "baddbmm": lambda net, x: torch.baddbmm(net.a, x.unsqueeze(1), net.fc.weight.expand(x.shape[0], 6, 6)).squeeze(1),
    "lerp": lambda net, x: torch.lerp(x, net.fc(x), 0.3),
    "lerp by a tensor": lambda net, x: x.lerp(net.fc(x), net.a.sigmoid()),
    "glu": lambda net, x: F.glu(torch.cat([net.fc(x), x], 1)),
    "a GLU": lambda net, x: net.glu(torch.cat([net.fc(x), x], 1)),
}


class Net(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.fc, self.a, self.glu = nn.Linear(6, 6), nn.Parameter(torch.randn(6)), nn.GLU(1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


@pytest.mark.parametrize("name", CALLS)
def test_it_is_recorded_as_its_parts_and_is_dynamic_linear(name: str) -> None:
    network = randomise_(Net(CALLS[name])).double().eval()
    x = torch.rand(3, 6, dtype=torch.float64)
    graph_module = trace(network, x).graph_module
    called = {getattr(node.target, "__name__", str(node.target)) for node in graph_module.graph.nodes}
    assert not called & {"addcmul", "addcdiv", "addmm", "baddbmm", "lerp", "glu"}
    torch.testing.assert_close(graph_module(x), network(x), rtol=1e-12, atol=1e-12)
    certification = certify(network, x)
    assert certification.ok, certification.to_text()
    assert certification.completeness is not None
    assert certification.completeness.verdict == "complete", certification.to_text()
