"""Counting constants: what each one contributes to an output, by its own gradient times its own value.

A dynamic linear network computes f(x) = W(x)·x + Σ_c W_c(x)·c with one term for every constant c inside it. To have
these terms sample by sample, each constant is thought to be multiplied by a coefficient per sample that is 1:
the derivative of f with respect to that coefficient is W_c(x)·c. Nothing is computed by subtraction.

The coefficients are tensors of ones (N,), one for each constant. The modules here stand in the graph of an explanation
view. Each has a ``source`` (what the constant is) and a ``column`` (which of the coefficients is its own), and each
returns its input: coefficients matter in the backward pass only. The samples of a value must be the slowest part of its
first dimension, as in (N, C, H, W) or in (N * windows, L, C); with N = 1 any layout works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Coefficients = Sequence[Tensor]


class _Count(torch.autograd.Function):
    """Return y as it is; backwards, the coefficient's gradient is the gradient times the constant, summed by sample."""

    @staticmethod
    def forward(y: Tensor, constant: Tensor, coefficient: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.samples = inputs[2].shape[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor]:
        return gradient, None, _by_sample(gradient, ctx.saved_tensors[0], ctx.samples)


def _by_sample(gradient: Tensor, constant: Tensor, samples: int) -> Tensor:
    """Sum gradient * constant over everything but the samples; the gradient first, where the constant is one number.

    What nothing chose contributes 0, even an infinity: maxima are padded with -inf.
    """
    missing = gradient.dim() - constant.dim()
    repeated = [d for d in range(1, gradient.dim()) if d < missing or constant.shape[d - missing] == 1]
    total = gradient.sum(repeated, keepdim=True) if repeated else gradient
    # 0 * inf is NaN, so an infinite constant counts only where a gradient reached it.
    return (total * constant.where(total != 0, 0)).reshape(samples, -1).sum(1)


def count(y: Tensor, constant: Tensor, coefficient: Tensor) -> Tensor:
    """Return y, to which ``constant`` was added before, so that the constant's contribution can be asked for.

    Args:
        y: (N, ...) or (N * m, ...), samples slowest; not changed.
        constant: broadcasts to y.
        coefficient: (N,) ones; the gradient of an output with respect to it is the constant's contribution per sample.
    """
    counted: Tensor = _Count.apply(y, constant.detach(), coefficient)
    return counted


class Counted(nn.Module):
    """Base of the modules that count one constant.

    Attributes:
        source: what the constant is, for people: a parameter's path, a literal and its node.
        column: index of its coefficient; modules with the same source share one.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.column = 0

    def extra_repr(self) -> str:
        """Return the source and the column."""
        return f"{self.source!r}, column={self.column}"


class CountedShift(Counted):
    """Counts the constant that a layer of ours has added: its bias or shift.

    Args:
        layer: it, with a method ``constant_like``; read again in every call, so that it may be trained or moved.
        source: what is counted.
    """

    def __init__(self, layer: nn.Module, source: str) -> None:
        super().__init__(source)
        self.layer = layer

    def forward(self, y: Tensor, coefficients: Coefficients) -> Tensor:
        """Count in y, the layer's result."""
        layer: Any = self.layer
        constant: Tensor = layer.constant_like(y)
        return count(y, constant, coefficients[self.column])


class CountedAtZero(Counted):
    """Counts the constant that any affine call has added: its value where its input is 0.

    Args:
        call: computes the call from the value that flows through it and the other tensors that it reads.
        source: what is counted.
    """

    def __init__(self, call: Callable[..., Tensor], source: str) -> None:
        super().__init__(source)
        self.call = call

    def forward(self, y: Tensor, coefficients: Coefficients, value: Tensor, *others: Any) -> Tensor:
        """Count in y = call(value, *others)."""
        with torch.no_grad():
            constant = self.call(torch.zeros_like(value), *others)
        return count(y, constant, coefficients[self.column])


class CountedConstant(Counted):
    """Counts a constant that is about to be added to a value, joined with it, or selected beside it.

    Args:
        source: what is counted.
        broadcast: whether the call broadcasts its operands to each other. The constant is then repeated for each sample
            before, so that their contributions stay apart.
    """

    def __init__(self, source: str, *, broadcast: bool) -> None:
        super().__init__(source)
        self.broadcast = broadcast

    def forward(self, constant: Tensor | float, coefficients: Coefficients, carrier: Tensor) -> Tensor:
        """Return the constant.

        Args:
            constant: a tensor or a number, which becomes a tensor of ``carrier``'s dtype.
            coefficients: of all constants.
            carrier: the value that the constant meets; read for its form only.
        """
        if not isinstance(constant, Tensor):
            constant = torch.as_tensor(constant, dtype=carrier.dtype, device=carrier.device)
        elif carrier.is_floating_point() and not constant.is_floating_point():
            constant = constant.to(carrier.dtype)  # as the call itself would; integers have no gradient
        if self.broadcast and carrier.dim() >= max(constant.dim(), 1):
            constant = constant.reshape([1] * (carrier.dim() - constant.dim()) + list(constant.shape))
            if constant.shape[0] == 1:
                constant = constant.expand(carrier.shape[0], *constant.shape[1:])
        # Counted as a value of its own before it is joined: the join's backward pass then says what of it arrives.
        return count(constant.detach(), constant, coefficients[self.column])


class CountedLiteral(CountedConstant):
    """Counts a number that is about to be added to a value or selected beside it.

    Args:
        value: the number.
        source: see :class:`CountedConstant`.
        broadcast: see there too.
    """

    def __init__(self, value: float, source: str, *, broadcast: bool) -> None:
        super().__init__(source, broadcast=broadcast)
        self.value = value

    def forward(self, coefficients: Coefficients, carrier: Tensor) -> Tensor:  # type: ignore[override]
        """Return the number as a tensor in ``carrier``'s dtype."""
        return super().forward(self.value, coefficients, carrier)
