"""The logit layer that ends a B-cos network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError


class LogitLayer(nn.Module):
    """y = x / temperature + bias, any shape, with two fixed numbers.

    B-cos networks trained with binary cross entropy start from a low probability per class, by the logit bias
    log(1 / (C - 1)) (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 3.2).

    Args:
        bias: added to every logit.
        temperature: finite and positive.

    Raises:
        UsageError: a number that is not finite, or a temperature that is not positive.
    """

    def __init__(self, bias: float = 0.0, temperature: float = 1.0) -> None:
        super().__init__()
        if not math.isfinite(bias):
            raise UsageError(f"bias is {bias!r}", where="LogitLayer", hint="give a finite number")
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"temperature is {temperature!r}", where="LogitLayer", hint="give a positive number")
        self.bias = bias
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift; a new tensor of x's shape and dtype."""
        return x / self.temperature + self.bias

    def constant_like(self, y: Tensor) -> Tensor:
        """Return the bias as a tensor that broadcasts to y."""
        return torch.full((), self.bias, dtype=y.dtype, device=y.device)

    def extra_repr(self) -> str:
        """Return the two numbers."""
        return f"bias={self.bias:g}, temperature={self.temperature:g}"
