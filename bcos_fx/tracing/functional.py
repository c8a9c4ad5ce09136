"""What traced graphs call besides PyTorch: out-of-place forms of in-place operations, and checks of what was read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import has_side_effect

from bcos_fx.errors import TraceError


def set_item(tensor: Tensor, index: Any, value: Tensor | float) -> Tensor:
    """Return a copy of `tensor` in which ``copy[index]`` is `value`.

    Args:
        tensor: any shape; not changed.
        index: whatever ``tensor[index]`` takes.
        value: a number, or a tensor that broadcasts to the shape of ``tensor[index]``.

    Returns:
        A new tensor with the shape and dtype of `tensor`.
    """
    changed = tensor.clone()
    changed[index] = value
    return changed


def copy_into(tensor: Tensor, source: Tensor) -> Tensor:
    """Return `source` in the shape, dtype and device of `tensor`: what ``tensor.copy_(source)`` would leave there.

    Args:
        tensor: any shape; only its form is read, not its values.
        source: a tensor that broadcasts to the shape of `tensor`.
    """
    return source.to(device=tensor.device, dtype=tensor.dtype).expand_as(tensor).clone()


def fill(tensor: Tensor, value: Tensor | float) -> Tensor:
    """Return a tensor of the form of `tensor` with `value` everywhere: what ``tensor.fill_(value)`` would leave there.

    Args:
        tensor: any shape; only its form is read, not its values.
        value: a number or a tensor without dimensions.
    """
    return torch.empty_like(tensor).fill_(value)


@has_side_effect  # nothing uses its result, and a graph without it would be wrong in silence
def require(value: Tensor, expected: bool | int | float, source: str) -> None:
    """Refuse an input for which Python code of the original would have read another value than in the example run.

    Args:
        value: a tensor of one element; not changed.
        expected: what Python code read when the graph was traced.
        source: the line that read it.

    Raises:
        TraceError: the values differ, so the graph does not hold for this input.
    """
    actual = value.item()
    if actual != expected:
        raise TraceError(
            f"the graph was traced for inputs of which Python code reads {expected}, and now it would read {actual}",
            where=source,
            hint="convert the original again with such an input as the example",
        )
