"""Batch norm without mean subtraction: a scale per channel and one constant.

In eval, batch norm is w (x - mean)/sigma + bias = (w/sigma) x + (bias - w mean/sigma): an uncentered scale and one
constant, :meth:`constant`. The constant is kept as what it is made of, so that the layer is torch's to the last bit, in
every precision, and a calibration that exchanges the statistics has nothing to fold again. In training the layer
divides by the batch's deviation and subtracts no batch mean: the uncentered batch norm of Böhle et al., "B-cos
Alignment for Inherently Interpretable CNNs and Vision Transformers", TPAMI 2024, section 3.3.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcos_fx.errors import UsageError
from bcos_fx.nn.dynamic import require_exactly
from bcos_fx.nn.functional import pieces, stored


class _Variance(torch.autograd.Function):
    """x (N, C, ...) itself, its channels' biased variance, many times faster than ``x.var``, and their mean.

    The variance's gradient is added to that of x where that lies: whoever gets the x that is returned must be alone.
    """

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[...], *_moments(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(inputs[0], output[2])

    @staticmethod
    def backward(ctx: Any, to_x: Tensor, to_variance: Tensor, _: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        factor = _by_channel(to_variance * (2 * x.shape[1] / x.numel()), x)
        if torch.is_grad_enabled():  # a graph of the gradient is asked for
            centred: Tensor = x - x.mean(_all_but_channels(x), keepdim=True)
            return to_x + centred * factor
        # (x - mean) * factor without an array for the difference: x * factor is added in place, mean * factor taken
        # off.
        offset = _by_channel(mean, x) * factor
        for to_x_, x_ in pieces(to_x, x, whole=factor):
            to_x_.addcmul_(x_, factor).sub_(offset)
        return to_x


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the biased variance and the mean of x's channels (N, C, ...)."""
    if x.dim() == 4 and x.is_cpu and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)  # slower than what follows in other layouts
        return variance, mean
    dims = _all_but_channels(x)
    mean = x.mean(dims, keepdim=True)
    return (x - mean).square_().mean(dims), mean.flatten()


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [dim for dim in range(x.dim()) if dim != 1]


class _BatchNormUncentred(nn.Module):
    """Uncentered batch norm; used through the classes for 1, 2 and 3 dimensions.

    Eval: y = x * weight / sqrt(running_var + eps) + constant. Training: the batch's biased variance (about its mean)
    takes the place of running_var, which is updated in place with the unbiased one; nothing else is updated.

    Deliberately no subclass of torch's batch norms: what converts those (``SyncBatchNorm``) would center it again.

    Args:
        num_features: channels C.
        eps: added to the variance.
        momentum: weight of the newest batch in ``running_var``; None for the mean over all batches.
        affine: whether there is a weight (and, with ``shift``, a bias).
        shift: whether there is a constant at all; without it there is neither bias nor running mean.
        device: where the tensors lie.
        dtype: their dtype.

    Attributes:
        running_mean: buffer (C,) or None, the mean inside the constant. Training does not move it.
    """

    plain_class: ClassVar[type[nn.Module]]
    ranks: ClassVar[tuple[int, ...]]

    running_mean: Tensor | None
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        shift: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.shift = affine, shift
        placed: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight: nn.Parameter | None
        self.bias: nn.Parameter | None
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features, **placed)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features, **placed)) if affine and shift else None)
        self.register_buffer("running_mean", torch.zeros(num_features, **placed) if shift else None)
        self.register_buffer("running_var", torch.ones(num_features, **placed))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long, device=device))

    @classmethod
    def from_plain(cls, module: nn.Module) -> Self:
        """Build from torch's batch norm of the same dimensions; equal to it in eval, ``module`` stays as it is.

        Returns:
            A layer with the **same** Parameters and buffers, and the training flag.

        Raises:
            UsageError: another class, or no running statistics (its output then depends on the other samples).
        """
        require_exactly(module, cls.plain_class, cls)
        if module._buffers.get("running_mean") is None or module._buffers.get("running_var") is None:
            raise UsageError(
                "a batch norm without running statistics depends on the other samples of its batch",
                where=cls.__name__,
                hint="leave it as it is, or train it with track_running_stats=True",
            )
        options: dict[str, Any] = {
            name: getattr(module, name) for name in ("num_features", "eps", "momentum", "affine")
        }
        layer = cls(**options, device="meta")
        layer._parameters |= {name: module._parameters[name] for name in layer._parameters}
        layer._buffers |= {name: module._buffers[name] for name in layer._buffers}
        return layer.train(module.training)

    def constant(self) -> Tensor | None:
        """Return the constant (C,) that eval adds, bias - weight * running_mean / sigma; None where there is none."""
        if self.running_mean is None:
            return None
        shift = -self.running_mean * self._scale(self.running_var)
        return shift if self.bias is None else shift + self.bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, ...).

        Raises:
            UsageError: another rank, or one value per channel in training.
        """
        if x.dim() not in self.ranks:
            raise UsageError(f"the input has shape {tuple(x.shape)}", where=type(self).__name__)
        if self.training:
            return self._train_forward(x)
        if self.running_mean is None:  # a product is all there is, and faster than torch's kernel
            return (x * _by_channel(stored(self._scale(self.running_var)), x)).to(x.dtype)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def frozen(self, x: Tensor) -> Tensor:
        """Return the layer's value in eval, parameters detached; nothing of x's size is kept for the backward pass."""
        scale = self._broadcast(self._scale(self.running_var), x)
        if self.running_mean is None:
            return x * scale
        return torch.addcmul(self.constant_like(x), x, scale)

    def constant_like(self, y: Tensor) -> Tensor:
        """Return the constant that eval adds, detached, shaped to broadcast to y; 0 if there is none."""
        constant = self.constant()
        return self._broadcast(torch.zeros_like(self.running_var) if constant is None else constant, y)

    def _scale(self, variance: Tensor) -> Tensor:
        """Return the factor of each channel, weight / sigma."""
        inverse = (variance + self.eps).rsqrt()
        return inverse if self.weight is None else inverse * self.weight

    def _broadcast(self, values: Tensor, y: Tensor) -> Tensor:
        return _by_channel(values.detach().to(y.dtype), y)

    def _train_forward(self, x: Tensor) -> Tensor:
        count = x.numel() // self.num_features
        if count < 2:
            raise UsageError("training needs more than one value per channel", where=type(self).__name__)
        # Before _track() moves running_var: this batch is shifted by the constant as it was when the batch began.
        constant = self.constant()
        x, variance = self._measured(x)
        self._track(variance.detach() * (count / (count - 1)))
        scale = self._scale(variance)
        # torch's own kernel, with mean 0 and variance 1: one pass forwards, one backwards, whatever is added.
        zero, one = torch.zeros_like(variance), torch.ones_like(variance)
        return F.batch_norm(x, zero, one, scale, constant, False, 0.0, 0.0)

    def _measured(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return x to normalize, and the biased variance of its channels in the dtype of the statistics."""
        precise = x.to(self.running_var.dtype)
        if torch.compiler.is_compiling():  # which differentiates this, and would not see the gradient overwritten
            return x, precise.var(_all_but_channels(x), correction=0)
        shared, variance, _ = _Variance.apply(precise)
        return shared.to(x.dtype), variance

    def _track(self, variance: Tensor) -> None:
        self.num_batches_tracked += 1
        newest = 1 / self.num_batches_tracked.to(variance.dtype) if self.momentum is None else self.momentum
        self.running_var.lerp_(variance, torch.as_tensor(newest, dtype=variance.dtype, device=variance.device))

    def extra_repr(self) -> str:
        """Return the options as torch prints them."""
        options = f"eps={self.eps}, momentum={self.momentum}, affine={self.affine}, shift={self.shift}"
        return f"{self.num_features}, {options}"


class BatchNormUncentred1d(_BatchNormUncentred):
    """Uncentered form of :class:`torch.nn.BatchNorm1d`: (N, C) or (N, C, L)."""

    plain_class = nn.BatchNorm1d
    ranks = (2, 3)


class BatchNormUncentred2d(_BatchNormUncentred):
    """Uncentered form of :class:`torch.nn.BatchNorm2d`: (N, C, H, W)."""

    plain_class = nn.BatchNorm2d
    ranks = (4,)


class BatchNormUncentred3d(_BatchNormUncentred):
    """Uncentered form of :class:`torch.nn.BatchNorm3d`: (N, C, D, H, W)."""

    plain_class = nn.BatchNorm3d
    ranks = (5,)
