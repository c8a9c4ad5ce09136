"""A trace neither fills a cache of the module's code, nor takes from it what no graph would hold."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from bcos_fx.tracing import trace


@functools.lru_cache(maxsize=4)
def grid(height: int, width: int) -> Tensor:
    return torch.arange(height * width, dtype=torch.float32).reshape(height, width)


def behind_a_wrapper(function):  # type: ignore[no-untyped-def]
    kept = functools.lru_cache(function)

    @functools.wraps(function)
    def wrapper(*args: int) -> Tensor:
        return kept(*args)

    return wrapper


@behind_a_wrapper
def column(height: int) -> Tensor:
    return torch.arange(height, dtype=torch.float32).reshape(-1, 1)


class Gridded(nn.Module):
    @functools.lru_cache(maxsize=4)  # noqa: B019
    def row(self, width: int) -> Tensor:
        return torch.arange(width, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return x + grid(x.shape[2], x.shape[3]) * column(x.shape[2]) + self.row(x.shape[3])


def test_sizes_pass_through_cached_functions() -> None:
    module, cached = Gridded().eval(), grid
    module(torch.zeros(1, 1, 3, 4))
    before = grid.cache_info()
    graph_module = trace(module, torch.zeros(2, 1, 3, 4)).graph_module
    assert grid is cached
    assert grid.cache_info() == before
    assert Gridded.row.cache_info().currsize == 1
    for shape in ((2, 1, 3, 4), (1, 1, 5, 2)):
        x = torch.rand(shape)
        assert torch.equal(graph_module(x), module(x))
