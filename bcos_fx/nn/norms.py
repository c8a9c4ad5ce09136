"""Layer, group, instance and RMS norm whose scale 1/sigma(x) is a factor of its own.

y = (x - mean(x)) * factor(x) * weight + bias with factor(x) = 1/sqrt(var(x) + eps). Subtracting the mean is linear;
only the factor is not, and an explanation holds it constant. ``centred=False`` leaves the mean in and still divides by
the centered deviation: the uncentered norms of Böhle et al., "B-cos Alignment for Inherently Interpretable CNNs and
Vision Transformers", TPAMI 2024, section 3.3. Each class extends torch's of the same name, and
centered it runs that one's kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError
from bcos_fx.nn.dynamic import DynamicLayer, require_exactly
from bcos_fx.nn.functional import statistics_dtype


class NormLayer(DynamicLayer):
    """What all norms share; used through its subclasses.

    Attributes:
        weight: Parameter or None.
        bias: Parameter or None; may be set to None later.
    """

    plain_class: ClassVar[type[nn.Module]]
    plain_options: ClassVar[tuple[str, ...]]

    weight: Any  # Parameters or None: torch's layers differ in how they declare them
    bias: Any
    eps: Any

    @classmethod
    def _sharing(cls, module: nn.Module, **own: bool) -> Self:
        """Build from torch's layer with its options and its Parameter objects."""
        require_exactly(module, cls.plain_class, cls)
        options: dict[str, Any] = {name: getattr(module, name) for name in cls.plain_options}
        layer = cls(**options, device="meta", **own)
        layer.weight, layer.bias = module.weight, getattr(module, "bias", None)
        return layer.train(module.training)

    def recompose(self, linear: Tensor, factor: Tensor) -> Tensor:
        """Multiply, then apply weight and bias, in the dtype of ``linear``."""
        y = linear * factor
        if self.weight is not None:
            y = y * self._broadcast(self.weight.to(y.dtype), y)
        if self.bias is not None:
            y = y + self._broadcast(self.bias.to(y.dtype), y)
        return y

    def constant_like(self, y: Tensor) -> Tensor:
        """Return the bias, detached, shaped to broadcast to y."""
        return self._broadcast(self.bias.detach().to(y.dtype), y)

    def _broadcast(self, parameter: Tensor, y: Tensor) -> Tensor:
        """Reshape a weight or bias so that it broadcasts to y."""
        return parameter


class _FrozenLayerNorm(torch.autograd.Function):
    """Torch's own layer norm, bit by bit, with 1/sigma held fixed where its gradient is computed."""

    @staticmethod
    def forward(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
        return torch.native_layer_norm(x, shape, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.dims = tuple(range(-len(inputs[1]), 0))
        ctx.save_for_backward(inputs[2], output[2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *others: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight, factor = ctx.saved_tensors
        # torch's own backward would add the terms by which 1/sigma depends on x; with sigma fixed only the mean is
        # left.
        to_x = (gradient if weight is None else gradient * weight) * factor
        return (to_x - to_x.mean(ctx.dims, keepdim=True)).to(gradient.dtype), None, None, None, None


class CenteringNorm(NormLayer):
    """The norms with a mean.

    Attributes:
        centred: whether the mean is subtracted.
    """

    centred: bool

    @classmethod
    def from_plain(cls, module: nn.Module, *, centred: bool = True) -> Self:
        """Build from torch's layer of the same name, which stays as it is.

        Returns:
            A layer with every option of ``module``, the **same Parameter objects** and the training flag.

        Raises:
            UsageError: another class, or running statistics.
        """
        return cls._sharing(module, centred=centred)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x; shape and dtype as torch's layer of the same name."""
        if self.centred:
            y: Tensor = self.plain_class.forward(self, x)
            return y
        return self.recompose(*self.decompose(x))

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split into x (less its mean, if centred) and 1/sigma(x), both in x's shape and dtype.

        The statistics of 16-bit inputs are computed in float32.
        """
        grouped = self._grouped(x)
        wide = grouped.to(statistics_dtype(x.dtype))
        variance, mean = torch.var_mean(wide, self._dims(x), correction=0, keepdim=True)
        linear = (wide - mean).to(x.dtype) if self.centred else grouped
        factor = (variance + self.eps).rsqrt().to(x.dtype).expand_as(grouped)
        return linear.reshape(x.shape), factor.reshape(x.shape)

    def _grouped(self, x: Tensor) -> Tensor:
        """View x so that statistics run over ``_dims``."""
        return x

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        """Return the dimensions of the grouped x that statistics run over."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return torch's options, then whether the mean is subtracted."""
        return f"{super().extra_repr()}, centred={self.centred}"


class LayerNorm(CenteringNorm, nn.LayerNorm):
    """Form of :class:`torch.nn.LayerNorm`: (..., *normalized_shape); Ba, Kiros and Hinton, 2016, section 3."""

    plain_class = nn.LayerNorm
    plain_options = ("normalized_shape", "eps", "elementwise_affine")
    _axis: ClassVar[int] = -1

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        centred: bool = True,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.centred = centred

    def frozen(self, x: Tensor) -> Tensor:
        """Return the layer's value, bit by bit, with 1/sigma and all parameters detached."""
        if not self.centred or torch.compiler.is_exporting() or torch.is_autocast_enabled(x.device.type):
            return super().frozen(x)
        weight, bias = (None if value is None else value.detach() for value in (self.weight, self.bias))
        last = x.movedim(self._axis, -1)
        y: Tensor = _FrozenLayerNorm.apply(last, self.normalized_shape, weight, bias, self.eps)[0]
        return y.movedim(-1, self._axis)

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(-len(self.normalized_shape), 0))


class PositionNorm(LayerNorm):
    """Layer norm over the channels at each position of (N, C, ...); Li et al., NeurIPS 2019, section 3.

    Constructor and :meth:`from_plain` are those of :class:`LayerNorm`, for a normalized shape (C,).
    """

    _axis = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, ...), each position by itself; shape and dtype are x's."""
        if self.centred:
            return nn.LayerNorm.forward(self, x.movedim(1, -1)).movedim(-1, 1)
        return self.recompose(*self.decompose(x))

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        return (1,)

    def _broadcast(self, parameter: Tensor, y: Tensor) -> Tensor:
        return parameter.view(-1, *[1] * (y.dim() - 2))


class GroupNorm(CenteringNorm, nn.GroupNorm):
    """Form of :class:`torch.nn.GroupNorm`: (N, C, ...); Wu and He, ECCV 2018, section 3."""

    plain_class = nn.GroupNorm
    plain_options = ("num_groups", "num_channels", "eps", "affine")

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        centred: bool = True,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self.centred = centred
        if not bias:
            self.bias = None

    def _grouped(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, 1, (self.num_groups, -1))

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(2, x.dim() + 1))

    def _broadcast(self, parameter: Tensor, y: Tensor) -> Tensor:
        return parameter.view(-1, *[1] * (y.dim() - 2))


class _InstanceNorm(CenteringNorm):
    """Instance norm over the last ``spatial`` dimensions (Ulyanov, Vedaldi and Lempitsky, 2016, section 2)."""

    plain_options = ("num_features", "eps", "momentum", "affine", "track_running_stats")
    spatial: ClassVar[int]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        centred: bool = True,
    ) -> None:
        if track_running_stats:
            raise UsageError(
                "an instance norm with running statistics is a batch norm in eval and another function in training",
                where=type(self).__name__,
                hint="leave the layer as it is",
            )
        super().__init__(num_features, eps, momentum, affine, False, device, dtype)
        self.centred = centred
        if not bias:
            self.bias = None

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        return tuple(range(-self.spatial, 0))

    def _broadcast(self, parameter: Tensor, y: Tensor) -> Tensor:
        return parameter.view(-1, *[1] * self.spatial)


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """Form of :class:`torch.nn.InstanceNorm1d` without running statistics: (N, C, L) or (C, L)."""

    plain_class = nn.InstanceNorm1d
    spatial = 1


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """Form of :class:`torch.nn.InstanceNorm2d` without running statistics: (N, C, H, W) or (C, H, W)."""

    plain_class = nn.InstanceNorm2d
    spatial = 2


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """Form of :class:`torch.nn.InstanceNorm3d` without running statistics: (N, C, D, H, W) or (C, D, H, W)."""

    plain_class = nn.InstanceNorm3d
    spatial = 3


class RMSNorm(NormLayer, nn.RMSNorm):
    """Form of :class:`torch.nn.RMSNorm`: (..., *normalized_shape); Zhang and Sennrich, NeurIPS 2019, section 4.

    It has neither mean nor bias: the linear part is x itself, the factor 1/sqrt(mean x^2 + eps).
    """

    plain_class = nn.RMSNorm
    plain_options = ("normalized_shape", "eps", "elementwise_affine")

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.bias = None

    @classmethod
    def from_plain(cls, module: nn.Module) -> Self:
        """Build from :class:`torch.nn.RMSNorm`, sharing its Parameter; UsageError for another class."""
        return cls._sharing(module)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x by torch's kernel; shape and dtype are x's."""
        return nn.RMSNorm.forward(self, x)

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split into x and 1/sqrt(mean x^2 + eps), broadcastable to it; statistics in float32 for 16-bit x."""
        dims = tuple(range(-len(self.normalized_shape), 0))
        power = x.to(statistics_dtype(x.dtype)).square().mean(dims, keepdim=True)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return x, (power + eps).rsqrt().to(x.dtype)
