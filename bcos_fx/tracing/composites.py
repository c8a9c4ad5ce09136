"""Calls that are short for several others. They are recorded as those others, which rules and analysis speak of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bcos_fx.tracing.attention import Part, multi_head_attention


def find(function: Callable[..., Any], part: Part) -> Callable[..., Any] | None:
    """Return the function that computes what a PyTorch function or method does by several calls; None for others.

    Args:
        function: as it was called.
        part: names parts of the module that is running, for calls that are short for several layers.
    """
    if function is functional.multi_head_attention_forward:
        return functools.partial(multi_head_attention, part)
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


def _not_aligned(input: Tensor, mask: Tensor) -> bool:
    """Say that a mask does not fit a nested tensor: an encoder then goes the ordinary way, which computes the same."""
    return False


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
    torch._nested_tensor_from_mask_left_aligned: _not_aligned,
}
