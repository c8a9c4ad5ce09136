"""Calls that are short for several others. They are recorded as those others, which rules and analysis speak of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def find(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the function that computes what a PyTorch function or method does by several calls; None for others."""
    return _COMPOSITES.get(function)


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + _scaled(tensor1 * tensor2, value)


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + _scaled(tensor1 / tensor2, value)


def _addmm(input: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    product = _scaled(torch.matmul(first, second), alpha)
    return product if beta == 0 else _scaled(input, beta) + product  # with 0 the input may hold anything


def _lerp(input: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    return input + weight * (end - input)


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


def _scaled(value: Tensor, factor: Any) -> Tensor:
    return value if isinstance(factor, int | float) and factor == 1 else value * factor


_COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.addcmul: _addcmul,
    torch.Tensor.addcmul: _addcmul,
    torch.addcdiv: _addcdiv,
    torch.Tensor.addcdiv: _addcdiv,
    torch.addmm: _addmm,
    torch.Tensor.addmm: _addmm,
    torch.baddbmm: _addmm,
    torch.Tensor.baddbmm: _addmm,
    torch.lerp: _lerp,
    torch.Tensor.lerp: _lerp,
    functional.glu: _glu,
}
