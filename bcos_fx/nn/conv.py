"""B-cos convolutions and transposed convolutions in one, two and three dimensions; see :mod:`bcos_fx.nn.bcos`.

The |x|^2 of patches is a sum over windows of the energies, padded as the layer pads its input; with groups, a
convolution with ones, through the layer's own forward.

A transposed convolution is a convolution of the zero-stuffed input with the flipped kernel. So the |x|^2 of an
output is the transposed convolution of the energies with ones, and |w| runs over a whole kernel per output channel
and group, that is over the first (input) axis of a weight in the layout (inputs, outputs / groups, *kernel).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcos_fx.nn.bcos import BcosLayer, EpsAt, Scale
from bcos_fx.nn.depthwise import Windows, depthwise
from bcos_fx.nn.functional import statistics_dtype

Size: TypeAlias = int | tuple[int, ...]
PaddingMode: TypeAlias = Literal["zeros", "reflect", "replicate", "circular"]

# Up to this many pixels an image torch's 1 x 1 convolution of channels-last images takes up to 1.4 times as long as the
# product of matrices that it is.
_FEW_POSITIONS = 64
# Kernels up to this size are written out for a compiler: those of 7 x 7, which are in use.
_MANY_PLACES = 49


class _Convolution(BcosLayer):
    """What all six share: how energies per pixel become energies per patch."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: Any  # a string or a tuple: torch's layers differ in how they declare it
    output_padding: tuple[int, ...]
    dilation: tuple[int, ...]
    in_channels: int
    out_channels: int
    groups: int

    def _groups(self) -> int:
        return self.groups

    def _pool(self, energies: Tensor, output_size: Sequence[int] | None) -> Tensor:
        if self._sees_single_pixels() and output_size is None:
            return energies
        # Through the layer's own product, so that stride, padding and dilation are the layer's in every case.
        ones = energies.new_ones(self.groups, 1, *self.kernel_size)
        # A fast convolution algorithm may round a sum of zeros to just below zero.
        return self._map(energies, ones, output_size).clamp_min(0)

    def _sees_single_pixels(self) -> bool:
        """Return whether output positions see one pixel each, and no padding: then there is nothing to add up."""
        padded = any(self.output_padding) or (not isinstance(self.padding, str) and any(self.padding))
        return not padded and set(self.kernel_size) == {1} and set(self.stride) == {1}


class _BcosConv(_Convolution):
    """What the three convolutions share: torch's constructor plus the B-cos options."""

    plain_options = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: str | Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        b: float = 2.0,
        scale: Scale = "cosine",
        eps: float | None = None,
        gain: bool = True,
        eps_at: EpsAt = "square",
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self._set_transform(b, scale, eps, gain, eps_at)

    def _scaled_product(self, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
        if not self._is_depthwise_for(x):
            return super()._scaled_product(x, output_size)
        return depthwise(x, self._effective_weight(), self._cosine_weight_norm(), self._windows(x), self.b)

    def _input_norm(self, x: Tensor, output_size: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        if not self._is_depthwise_for(x):
            return super()._input_norm(x, output_size)
        windows = self._windows(x)  # as the forward does, to the last bit
        return x, windows.norms(windows.roots(x))

    def _windows(self, x: Tensor) -> Windows:
        margins = tuple(self._margins()[::-2])
        return Windows(self.kernel_size, self.stride, margins, self.dilation, *self._stabilizers(x.dtype))

    def _is_depthwise_for(self, x: Tensor) -> bool:
        """Return whether each channel is convolved with kernels of its own, on a processor with caches to stay in."""
        margins = self._margins()
        return (
            x.is_cpu
            and not torch.compiler.is_compiling()
            and self._sees_channels_alone(x)
            and margins[::2] == margins[1::2]
        )

    def _sees_channels_alone(self, x: Tensor) -> bool:
        """Return whether this is a depthwise layer on a zero-padded batch, computed in the input's own precision."""
        return (
            1 < self.groups == self.in_channels
            and x.dim() == self.spatial + 2
            and not torch.is_autocast_enabled(x.device.type)
            and x.dtype == self.weight.dtype == statistics_dtype(x.dtype)
            and (self.padding_mode == "zeros" or not any(self._margins()))
        )

    def _fuses(self, energies: Tensor) -> bool:
        """Return whether a compiler makes one loop of a depthwise layer's norms and what follows them."""
        return (
            torch.compiler.is_compiling()
            and not torch.compiler.is_exporting()  # what reads an exported graph knows convolutions
            and not (torch.is_grad_enabled() and energies.requires_grad)  # the way back would add up scattered values
            and math.prod(self.kernel_size) <= _MANY_PLACES
            and self._sees_channels_alone(energies)
        )

    def _window_sums(self, x: Tensor) -> Tensor:
        """Add up what each kernel sees of x (N, C, ...), as a sum of shifted views."""
        # Not the product: it stays a convolution, for which the compiler stores the layer's input. Written out as well,
        # all that computes that input would be computed for every place of the kernel.
        x = F.pad(x, self._margins())
        sizes = [x.shape[axis - self.spatial] for axis in range(self.spatial)]
        total: Any = 0
        for place in itertools.product(*map(range, self.kernel_size)):
            shifts = [index * dilation for index, dilation in zip(place, self.dilation, strict=True)]
            left = [(k - 1 - i) * d for k, i, d in zip(self.kernel_size, place, self.dilation, strict=True)]
            ends = [size - rest for size, rest in zip(sizes, left, strict=True)]
            seen: Any = (..., *map(slice, shifts, ends, self.stride))
            total = total + x[seen]
        sums: Tensor = total
        return sums

    def _steps(self, output_size: Sequence[int] | None) -> Sequence[int]:
        return self.stride if self._sees_single_pixels() else ()

    def _sees_single_pixels(self) -> bool:
        return set(self.kernel_size) == {1} and not any(self._margins())

    def _margins(self) -> list[int]:
        """Return the padding of each dimension, last one first, as :func:`torch.nn.functional.pad` takes it."""
        plain: Any = self
        margins: list[int] = list(plain._reversed_padding_repeated_twice)
        return margins

    def _pool(self, energies: Tensor, output_size: Sequence[int] | None) -> Tensor:
        if self._sees_single_pixels():
            return energies
        if self._fuses(energies):
            return self._window_sums(energies)
        if self.groups > 1:  # many maps: a convolution is worth its overhead
            return super()._pool(energies, output_size)
        mode = "constant" if self.padding_mode == "zeros" else str(self.padding_mode)
        total = F.pad(energies, self._margins(), mode)
        for axis, (size, stride, dilation) in enumerate(zip(self.kernel_size, self.stride, self.dilation, strict=True)):
            # One axis after the other: a window of ones is separable, and k + k sums replace k * k.
            windows = total.unfold(axis - self.spatial, (size - 1) * dilation + 1, stride)
            total = (windows[..., ::dilation] if dilation > 1 else windows).sum(-1)
        return total

    def _map(self, x: Tensor, weight: Tensor, output_size: Sequence[int] | None) -> Tensor:
        if self._multiplies_matrices(x):
            return F.linear(x.movedim(1, -1), weight.flatten(1)).movedim(-1, 1)
        plain: Any = self  # torch's own convolution, with its padding, for any weight
        product: Tensor = plain._conv_forward(x, weight, None)
        return product

    def _multiplies_matrices(self, x: Tensor) -> bool:
        """Return whether the layer is one matrix product, and faster as such: a classifier at every position, say."""
        return (
            self.spatial == 2
            and x.dim() == 4
            and x.is_cpu
            and not torch.compiler.is_compiling()  # asked before a size that it may keep open
            and x.stride(1) == 1
            and x.shape[2] * x.shape[3] <= _FEW_POSITIONS
            and self.groups == 1
            and self._sees_single_pixels()
            and set(self.stride) == {1}
        )


class _BcosConvTranspose(_Convolution):
    """What the three transposed convolutions share."""

    plain_options = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "output_padding",
        "groups",
        "dilation",
        "padding_mode",
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        b: float = 2.0,
        scale: Scale = "cosine",
        eps: float | None = None,
        gain: bool = True,
        eps_at: EpsAt = "square",
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            output_padding,
            groups,
            bias,
            dilation,
            padding_mode,
            device,
            dtype,
        )
        self._set_transform(b, scale, eps, gain, eps_at)

    def _plain_forward(self, x: Tensor, output_size: Sequence[int] | None) -> Tensor:
        y: Tensor = self.plain_class.forward(self, x, output_size)
        return y

    def _map(self, x: Tensor, weight: Tensor, output_size: Sequence[int] | None) -> Tensor:
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.spatial - 1]
        plain: Any = self
        output_padding = plain._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, self.spatial, self.dilation
        )
        return transposed(x, weight, None, self.stride, self.padding, output_padding, self.groups, self.dilation)

    def _weight_norm(self) -> Tensor:
        return self._floored_norm(self._by_group(self.weight), (1, *range(3, 3 + self.spatial)))

    def _unit_weight(self) -> Tensor:
        inverse = self._inverse_weight_norm().view(self.groups, 1, -1, *[1] * self.spatial)
        return (self._by_group(self.weight) * inverse).flatten(0, 1).to(self.weight.dtype)

    def _per_output(self, values: Tensor) -> Tensor:
        inputs = len(self.weight) // self.groups
        spread = values.view(self.groups, 1, -1).expand(-1, inputs, -1).flatten(0, 1)
        return spread.view(*spread.shape, *[1] * self.spatial)

    def _by_group(self, weight: Tensor) -> Tensor:
        """View a weight as (groups, inputs per group, outputs per group, *kernel)."""
        return torch.unflatten(weight, 0, (self.groups, -1))


class BcosConv1d(_BcosConv, nn.Conv1d):
    """B-cos form of :class:`torch.nn.Conv1d`: (N, C, L) or (C, L)."""

    plain_class = nn.Conv1d
    spatial = 1


class BcosConv2d(_BcosConv, nn.Conv2d):
    """B-cos form of :class:`torch.nn.Conv2d`: (N, C, H, W) or (C, H, W)."""

    plain_class = nn.Conv2d
    spatial = 2


class BcosConv3d(_BcosConv, nn.Conv3d):
    """B-cos form of :class:`torch.nn.Conv3d`: (N, C, D, H, W) or (C, D, H, W)."""

    plain_class = nn.Conv3d
    spatial = 3


class BcosConvTranspose1d(_BcosConvTranspose, nn.ConvTranspose1d):
    """B-cos form of :class:`torch.nn.ConvTranspose1d`: (N, C, L) or (C, L)."""

    plain_class = nn.ConvTranspose1d
    spatial = 1


class BcosConvTranspose2d(_BcosConvTranspose, nn.ConvTranspose2d):
    """B-cos form of :class:`torch.nn.ConvTranspose2d`: (N, C, H, W) or (C, H, W)."""

    plain_class = nn.ConvTranspose2d
    spatial = 2


class BcosConvTranspose3d(_BcosConvTranspose, nn.ConvTranspose3d):
    """B-cos form of :class:`torch.nn.ConvTranspose3d`: (N, C, D, H, W) or (C, D, H, W)."""

    plain_class = nn.ConvTranspose3d
    spatial = 3
