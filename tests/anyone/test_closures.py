"""Hooks, lambdas and patched forwards that refer to their own network: the copy that is traced has its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bcos_fx
from bcos_fx.tracing.modules import deep_copy


class Net(nn.Module):
    """Three layers, and a place for functions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.gain = nn.Parameter(torch.rand(8))
        self.seen: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


def keeping_features() -> nn.Module:
    class Kept(Net):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            return self.c(self.seen["a"] + self.seen["b"].relu())

    net = Kept()

    def keep(name: str) -> Callable[..., None]:
        def hook(part: nn.Module, given: Any, got: Tensor) -> None:
            net.seen[name] = got

        return hook

    net.a.register_forward_hook(keep("a"))
    net.b.register_forward_hook(keep("b"))
    return net


def keeping_by_partial() -> nn.Module:
    class Kept(Net):
        def forward(self, x: Tensor) -> Tensor:
            self.a(x)
            return self.c(self.seen["a"].relu())

    def keep(name: str, part: nn.Module, given: Any, got: Tensor, *, into: dict[str, Tensor]) -> None:
        into[name] = got

    net = Kept()
    net.a.register_forward_hook(partial(keep, "a", into=net.seen))
    return net


def changing() -> nn.Module:
    net = Net()
    net.a.register_forward_hook(lambda part, given, got: got * net.gain)
    net.b.register_forward_pre_hook(lambda part, given: (given[0] + net.a.bias,))
    return net


def patched() -> nn.Module:
    net = Net()
    old = net.forward
    net.forward = lambda x: old(2 * x) + 1  # type: ignore[method-assign]
    return net


def patched_by_default() -> nn.Module:
    net = Net()
    net.forward = lambda x, own=net: own.c(own.b(x @ own.a.weight.T))  # type: ignore[method-assign, misc]
    return net


def steps() -> nn.Module:
    class Steps(Net):
        def __init__(self) -> None:
            super().__init__()
            self.steps = [lambda x: self.a(x).relu(), {"last": lambda x: self.c(x * self.gain)}["last"]]
            self.each = {"act": (F.relu, lambda x: self.act(x))}
            self.act = lambda x: F.leaky_relu(x, 0.1) * self.gain

        def forward(self, x: Tensor) -> Tensor:
            return self.steps[1](self.each["act"][1](self.steps[0](x)))

    return Steps()


def recursive() -> nn.Module:
    class Recursive(Net):
        def __init__(self) -> None:
            super().__init__()

            def go(x: Tensor, times: int) -> Tensor:
                return go(self.b(x).relu(), times - 1) if times else self.c(x)

            self.go = go

        def forward(self, x: Tensor) -> Tensor:
            return self.go(self.a(x).relu(), 2)

    return Recursive()


KINDS = (keeping_features, keeping_by_partial, changing, patched, patched_by_default, steps, recursive)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("used", [False, True], ids=["new", "used before"])
def test_it_is_the_copys_own(make: Callable[[], nn.Module], used: bool) -> None:
    torch.manual_seed(0)
    module = make().double().eval()
    x = torch.randn(3, 6, dtype=torch.float64)
    if used:
        module(x + 1)
    seen = dict(module.seen)  # type: ignore[arg-type]
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    found = bcos_fx.explain(module, x, 1)
    assert dict(module.seen) == seen  # type: ignore[arg-type]
    assert network.report.coverage.share == 1
    leaf = x.clone().requires_grad_()
    value = module(leaf)[:, 1]
    value.sum().backward()
    torch.testing.assert_close(network(x)[:, 1], value)
    torch.testing.assert_close(found.weights, leaf.grad)
    torch.testing.assert_close(bcos_fx.explain(network, x, 1).weights, leaf.grad)


def test_functions_that_lead_nowhere_stay_the_same_and_the_callers_containers_too() -> None:
    net = Net()
    outside = {"gain": lambda x: x * net.gain, "pool": F.max_pool2d}
    before = dict(outside)
    net.pool, net.scaled = F.max_pool2d, lambda x: outside["gain"](x)
    copied: Any = deep_copy(net)
    assert copied.pool is F.max_pool2d
    assert outside == before
    with torch.no_grad():
        copied.gain.zero_()
    assert not copied.scaled(torch.ones(8)).any()
    assert net.scaled(torch.ones(8)).any()
