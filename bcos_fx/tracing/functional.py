"""Out-of-place forms of operations that PyTorch has in place only; a traced graph calls these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def set_item(tensor: Tensor, index: Any, value: Any) -> Tensor:
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


def fill(tensor: Tensor, value: Any) -> Tensor:
    """Return a tensor of the form of `tensor` with `value` everywhere: what ``tensor.fill_(value)`` would leave there.

    Args:
        tensor: any shape; only its form is read, not its values.
        value: a number or a tensor without dimensions.
    """
    return torch.empty_like(tensor).fill_(value)
