"""Frozen variants: modules of an explanation view, whose gradient with respect to their input is the dynamic weight.

Each returns the value of what it stands for, and holds fixed whatever is not linear in it: the alignment of a B-cos
layer, 1/sigma of a norm, the ratio phi(x)/x of an activation (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022,
section 3.2; for norms and gates Böhle et al., "B-cos Alignment for Inherently Interpretable CNNs and Vision
Transformers", TPAMI 2024, section 3). Parameters are held fixed too: a view explains, it does not train.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StopGradient(nn.Module):
    """The value of a gate, which is only a weight: no gradient flows through it."""

    def forward(self, gate: Tensor) -> Tensor:
        """Return ``gate`` detached."""
        return gate.detach()


class FrozenLayer(nn.Module):
    """A layer of ours with its dynamic factor held fixed.

    Args:
        layer: it, with a method ``frozen``; read again in every call, so that it may be trained or moved.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer; shapes as its own."""
        layer: Any = self.layer
        y: Tensor = layer.frozen(x)
        return y


class _WithRatio(torch.autograd.Function):
    """A value phi(x), whose gradient by x is a given ratio."""

    @staticmethod
    def forward(x: Tensor, value: Tensor, ratio: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.saved_tensors[0], None, None


class FrozenRatio(nn.Module):
    """x · phi(x)/x with the ratio held fixed, for an elementwise phi with phi(0) = 0.

    At x = 0 the ratio is phi'(0) where that is finite, else 0; that of a phi that stops gradients is taken near 0.

    Args:
        function: phi, of x and the tensors that it reads besides, such as a learned power.
        uniform: phi is the same for every number and takes x of any shape; not that of a layer with tensors of its own.
    """

    def __init__(self, function: Callable[..., Tensor], *, uniform: bool = True) -> None:
        super().__init__()
        self.function, self.uniform = function, uniform

    def forward(self, x: Tensor, *options: Tensor) -> Tensor:
        """Apply phi elementwise; any shape."""
        with torch.no_grad():
            value = self.function(x, *options)
            # Below the smallest normal number a quotient is rounding and no ratio.
            zero = x.abs() < torch.finfo(x.dtype).tiny
            ratio = torch.where(zero, self._slope(x, options), value / torch.where(zero, 1, x))
        if torch.compiler.is_exporting():  # what reads an exported graph knows products
            return x * ratio
        y: Tensor = _WithRatio.apply(x, value, ratio)  # and no product, which would round phi(x) once more
        return y

    def _slope(self, x: Tensor, options: tuple[Tensor, ...]) -> Tensor:
        """Return phi'(0): a tensor without dimensions, or one like x where phi may differ between elements."""
        with torch.inference_mode(False), torch.enable_grad():
            form: list[int] | torch.Size = x.shape if options or not self.uniform else []
            origin = torch.zeros(form, dtype=x.dtype, device=x.device, requires_grad=True)
            value = self.function(origin, *options)
            # Not every runtime that reads an exported graph has the backward operations of activations.
            if torch.compiler.is_exporting() or not value.requires_grad:
                near = torch.full_like(origin, torch.finfo(x.dtype).tiny)
                return self.function(near, *options) / near
            (slope,) = torch.autograd.grad(value.sum(), origin)
        return torch.where(slope.isfinite(), slope, 0)


class FrozenShiftedRatio(FrozenRatio):
    """phi(0) + x · (phi(x) - phi(0))/x with the ratio held fixed, for an elementwise phi that is defined at 0.

    Args:
        phi: of x alone.
        source: what phi(0) is called among the constants.
    """

    def __init__(self, phi: Callable[[Tensor], Tensor], source: str) -> None:
        super().__init__(lambda x: phi(x) - phi(x.new_zeros(1)))
        self.phi, self.source = phi, source

    def forward(self, x: Tensor, *options: Tensor) -> Tensor:
        """Apply phi elementwise; any shape."""
        return super().forward(x) + self.constant_like(x)

    def constant_like(self, y: Tensor) -> Tensor:
        """Return phi(0) in the shape of the result."""
        return self.phi(y.new_zeros(1)).expand_as(y)


class FrozenScale(nn.Module):
    """A scale f as g · f/g with the quotient held fixed, where g grows as its input does: g(tx) = t·g(x) for t > 0.

    By Euler's theorem the gradient of g times its input is g. A variance is a standard deviation times itself so, and a
    distance that is kept from 0 by a small number is a distance without it, times their quotient.

    Args:
        function: f.
        homogeneous: g, of the same arguments.
    """

    def __init__(self, function: Callable[..., Tensor], homogeneous: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function, self.homogeneous = function, homogeneous

    def forward(self, *x: Tensor) -> Tensor:
        """Return f of tensors of any shape that it takes; where g is 0 nothing of it is explained."""
        with torch.no_grad():
            value = self.function(*x)
        scale = self.homogeneous(*x)
        zero = scale.detach() == 0
        y = scale * torch.where(zero, 0, value / torch.where(zero, 1, scale.detach()))
        return y + (value - y).detach()


class FrozenL2Normalisation(nn.Module):
    """x / max(|x|_p, eps) with the denominator held fixed.

    Args:
        p: order of the norm.
        dim: dimension or dimensions that it runs over.
        eps: least denominator.
    """

    def __init__(self, p: float, dim: int | tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.p, self.dim, self.eps = p, dim, eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize; any shape."""
        norm: Tensor = torch.linalg.vector_norm(x.detach(), self.p, self.dim, keepdim=True)
        return x / norm.clamp_min(self.eps)


class FrozenResponseNorm(nn.Module):
    """Local response norm with its denominator held fixed (Krizhevsky, Sutskever and Hinton, NeurIPS 2012, sec. 3.3).

    Args:
        size: of the window over channels; all four as for :class:`torch.nn.LocalResponseNorm`.
        alpha: factor of the mean power.
        beta: exponent.
        k: what is added to it.
    """

    def __init__(self, size: int, alpha: float, beta: float, k: float) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, ...)."""
        power = x.detach().square().transpose(1, -1)
        padded = F.pad(power, (self.size // 2, (self.size - 1) // 2))
        mean = padded.unfold(-1, self.size, 1).mean(-1).transpose(1, -1)
        factor: Tensor = (self.k + self.alpha * mean).pow(-self.beta)
        return x * factor
