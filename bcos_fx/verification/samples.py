"""Inputs that a check runs networks on: given ones made usable, or made-up ones that differ strongly.

White noise alone is a weak test: after a global pool all noise images look the same, so a network's
output hardly varies and a comparison proves nothing. The made-up images therefore mix noise, ramps,
flat patches and nearly black or white pictures. Every one carries a little noise besides: exactly equal
neighbors would tie in a max pool, and at a tie two equal networks may have different gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bcos_fx.errors import UsageError

_NOISE = 0.05
_JITTER = 1e-3
_LARGE = 96  # pixels a side, from which on a network can be expected to take three quarters of it
_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class CallInputs:
    """The tensors of one call of a network.

    Attributes:
        tensors: the arguments; those whose first size is ``count`` hold one sample per row.
        names: keyword of each argument, or None when they are positional.
        count: number of samples.
    """

    tensors: tuple[Tensor, ...]
    names: tuple[str, ...] | None
    count: int

    @property
    def arguments(self) -> tuple[Tensor, ...] | dict[str, Tensor]:
        """The tensors as positional or as keyword arguments."""
        return self.tensors if self.names is None else dict(zip(self.names, self.tensors, strict=True))

    def call(self, module: nn.Module) -> Any:
        """Call ``module`` on the tensors."""
        arguments = self.arguments
        return module(**arguments) if isinstance(arguments, dict) else module(*arguments)

    def map(self, change: Callable[[Tensor], Tensor]) -> CallInputs:
        """Apply ``change`` to every tensor."""
        return replace(self, tensors=tuple(change(tensor) for tensor in self.tensors))

    def per_sample(self, change: Callable[[Tensor], Tensor]) -> CallInputs:
        """Apply ``change`` to the tensors that hold one sample per row, and count the rows again."""
        changed = tuple(change(t) if self.is_batched(t) else t for t in self.tensors)
        return CallInputs(changed, self.names, changed[0].shape[0])

    def is_batched(self, tensor: Tensor) -> bool:
        """Return whether a tensor holds one sample per row; others (a mask for all samples, say) are passed whole."""
        return tensor.dim() > 0 and tensor.shape[0] == self.count

    def take(self, start: int, stop: int) -> CallInputs:
        """Select the samples from ``start`` up to ``stop``, as a copy."""
        return self.per_sample(lambda tensor: tensor[start:stop].clone())

    @property
    def image(self) -> Tensor | None:
        """The one floating-point argument (N, C, spatial...), or None when the call is not of that kind."""
        first = self.tensors[0]
        is_image = len(self.tensors) == 1 and first.is_floating_point() and 3 <= first.dim() <= 5
        return first if is_image else None

    def describe(self) -> str:
        """Return the shapes and dtypes, for a message."""
        return ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in self.tensors)


def gather(inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> CallInputs:
    """Take a caller's inputs as detached tensors; nothing of the caller's is changed by what follows.

    Args:
        inputs: one tensor (N, ...), positional arguments, or keyword arguments. The first tensor's first
            size is the number of samples.

    Raises:
        UsageError: not tensors, no samples, numbers that are not finite, or a kind of tensor that no
            check can compare (complex, quantized, sparse, meta).
    """
    names = tuple(inputs) if isinstance(inputs, Mapping) else None
    values: Sequence[object] = inputs if isinstance(inputs, list | tuple) else (inputs,)
    if isinstance(inputs, Mapping):
        values = tuple(inputs.values())
    if not values:
        raise UsageError("the inputs are empty", hint="give a tensor (N, ...), or a tuple or dict of tensors")
    tensors = tuple(_checked_input(value, index) for index, value in enumerate(values))
    if tensors[0].dim() == 0 or tensors[0].shape[0] == 0:
        raise UsageError(
            f"the first input has shape {tuple(tensors[0].shape)}: no samples",
            hint="give at least one sample, in the first dimension",
        )
    return CallInputs(tensors, names, tensors[0].shape[0])


def _checked_input(value: object, index: int) -> Tensor:
    where = f"input {index}"
    if not isinstance(value, Tensor):
        raise UsageError(
            f"expected a tensor, got {type(value).__name__}",
            where=where,
            hint="give a tensor (N, ...), or a tuple or dict of tensors",
        )
    if value.is_complex() or value.is_quantized or value.is_meta or value.layout != torch.strided:
        raise UsageError(
            f"cannot compare on a tensor of dtype {value.dtype}, layout {value.layout}, device {value.device}",
            where=where,
            hint="give a dense real tensor",
        )
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        raise UsageError("the inputs hold NaN or infinity", where=where, hint="remove those samples")
    return value.detach()


def synthetic_images(shape: Sequence[int], count: int, *, seed: int) -> CallInputs:
    """Make up ``count`` samples (count, *shape) in [0, 1), float64, that differ strongly from each other.

    Args:
        shape: (C, spatial...) of an image, (T, D) of a sequence, or (D,) of a vector.
        count: number of samples.
        seed: of the private generator; the global one is not touched.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = (_ramps, _patches, _noise, _dark, _bright)
    samples = []
    for index in range(count):
        structure = kinds[index % len(kinds)](tuple(shape), generator)
        samples.append((1 - _NOISE) * structure + _NOISE * _noise(tuple(shape), generator))
    return CallInputs((torch.stack(samples),), None, count)


def _noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _ramps(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Rise or fall linearly along each spatial axis, another way in each channel."""
    channels, spatial = (shape[0], shape[1:]) if len(shape) > 1 else (1, shape)
    total = torch.zeros((channels, *spatial), dtype=torch.float64)
    for axis, size in enumerate(spatial):
        ends = _noise((2, channels), generator)
        ramp = ends[0, :, None] + (ends[1] - ends[0])[:, None] * torch.linspace(0, 1, size, dtype=torch.float64)
        total = total + ramp.reshape(channels, *(size if other == axis else 1 for other in range(len(spatial))))
    return (total / len(spatial)).reshape(shape)


def _patches(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Make flat patches, two to a side, each of its own color."""
    channels, spatial = (shape[0], shape[1:]) if len(shape) > 1 else (1, shape)
    patches = _noise((channels, *(2 for _ in spatial)), generator)
    for axis, size in enumerate(spatial, start=1):
        patches = patches.index_select(axis, torch.arange(size) * 2 // max(size, 1))
    return patches.reshape(shape)


def _dark(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return _noise(shape, generator) ** 8


def _bright(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 1 - _dark(shape, generator)


def extend(batch: CallInputs, count: int, *, seed: int) -> CallInputs:
    """Add samples until there are ``count``: given ones with their values shuffled, so in the same range.

    A shuffled sample holds only values that the given one holds, so class indices and tokens stay valid, and those of
    integers stay in their row: the rows of a list of edges may count other nodes.
    Floating-point samples are averaged with their shuffled selves, which keeps some of their structure.
    """
    missing = count - batch.count
    if missing <= 0:
        return batch
    generator = torch.Generator().manual_seed(seed)

    def grow(tensor: Tensor) -> Tensor:
        rows = [_shuffled(tensor[index % batch.count], generator) for index in range(missing)]
        return torch.cat([tensor, torch.stack(rows)])

    return batch.per_sample(grow)


def _shuffled(row: Tensor, generator: torch.Generator) -> Tensor:
    if row.dim() > 1 and not row.is_floating_point():
        return row.gather(-1, torch.rand(row.shape, generator=generator).argsort(-1).to(row.device))
    order = torch.randperm(row.numel(), generator=generator).to(row.device)
    shuffled = row.flatten()[order].view(row.shape)
    return (row + shuffled) / 2 if row.is_floating_point() else shuffled


def jitter(batch: CallInputs, *, seed: int) -> CallInputs:
    """Blend a thousandth of noise into floating-point tensors, within their range, to break ties between pixels."""
    generator = torch.Generator().manual_seed(seed)

    def blend(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return tensor
        low, high = tensor.amin(), tensor.amax()
        # Drawn in float64 whatever the input is, so that every precision sees the same noise.
        noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        return (1 - _JITTER) * tensor + _JITTER * (low + (high - low) * noise)

    return batch.map(blend)


def nudge(batch: CallInputs, *, seed: int) -> CallInputs:
    """Round every floating-point value the other way: each moves up or down by one unit in its last place."""
    generator = torch.Generator().manual_seed(seed)

    return batch.map(lambda tensor: round_otherwise(tensor, generator) if tensor.is_floating_point() else tensor)


def round_otherwise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Move each value of a floating-point tensor up or down by one unit in its last place."""
    up = torch.rand(tensor.shape, generator=generator).to(tensor.device) < 0.5
    return torch.nextafter(tensor, torch.where(up, math.inf, -math.inf).to(tensor))


def resize(batch: CallInputs, size: Sequence[int]) -> CallInputs:
    """Interpolate the one image argument to another spatial size."""
    mode = _INTERPOLATION[len(size)]
    return batch.map(lambda image: F.interpolate(image, size=list(size), mode=mode, align_corners=False))


def other_sizes(batch: CallInputs) -> Iterator[tuple[int, ...]]:
    """Yield spatial sizes worth trying besides the batch's own: another in all sides, and oblong.

    Small sides grow, so that no layer is left without pixels; large ones shrink, which tests as much at half the cost.
    """
    if batch.image is None:
        return
    spatial = tuple(batch.image.shape[2:])
    sign = -1 if min(spatial) >= _LARGE else 1
    yield tuple(side + sign * max(side // 4, 1) for side in spatial)
    if len(spatial) > 1:
        yield (spatial[0] + sign * max(spatial[0] // 8, 1), *spatial[1:])
