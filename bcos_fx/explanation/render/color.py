"""Colors of B-cos explanations.

The weights W(x) of an encoded image [x, 1 - x] are themselves a color: the one that, at this place, counts most for
the explained output (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 4; Böhle et al., "B-cos Alignment
for Inherently Interpretable CNNs and Vision Transformers", TPAMI 2024, section 4). Per pixel the vector of weights is
scaled to a largest entry of 1 and cut at 0; a color channel is the share of its weight on x in that on x and 1 - x.
Opacity is the length of the vector where the pixel contributes to the output, smoothed, and full from a percentile on.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bcos_fx.errors import UsageError, check_count

if TYPE_CHECKING:
    from bcos_fx.explanation.result import Result

# 15 pixels at 224, as published; a wider strip of frames would be too small to read.
_SMOOTH, _SIDE, _FRAMES = 15, 224, 8
_AGAINST, _FOR = torch.tensor([0.13, 0.33, 0.68]), torch.tensor([0.76, 0.13, 0.16])


def colored(weights: Tensor, contributions: Tensor, *, smooth: int | None = None, percentile: float = 99.5) -> Tensor:
    """Turn dynamic weights into colors with opacity.

    Args:
        weights: (N, 2C, H, W), W(x) on [x, 1 - x], C 1 or 3.
        contributions: (N, H, W), their products with the image, summed over channels.
        smooth: width of the box that opacity is averaged over, odd; None: 15 at 224 pixels, in proportion.
        percentile: in (0, 100], of each image's opacities: full from there on.

    Returns:
        (N, 4, H, W) red, green, blue and opacity, in [0, 1].

    Raises:
        UsageError: other shapes, an even ``smooth``, or a percentile out of range.
    """
    if weights.dim() != 4 or weights.shape[1] not in (2, 6) or contributions.shape != weights[:, 0].shape:
        raise UsageError(
            f"weights {tuple(weights.shape)} and contributions {tuple(contributions.shape)} have no colors",
            hint="give (N, 6, H, W) and (N, H, W)",
        )
    width = _box(weights, smooth)
    length = weights.norm(dim=1, keepdim=True)
    opacity = torch.where(contributions.unsqueeze(1) > 0, length, 0)
    # A box filter is separable: two passes of `width` sums each in place of width * width.
    opacity = _boxed(_boxed(opacity, (1, width)), (width, 1))
    full = _full(opacity, percentile).view(-1, 1, 1, 1)
    opacity = (opacity / torch.where(full > 0, full, 1)).clamp(0, 1)
    return torch.cat([_hue(weights), opacity], dim=1)


def _full(values: Tensor, percentile: float) -> Tensor:
    """Return the values (N,) from which on a picture is full: the percentile, or the largest where that is 0."""
    if not isinstance(percentile, Real) or not 0 < percentile <= 100:
        raise UsageError(f"percentile is {percentile!r}", hint="give a number above 0, at most 100")
    flat = values.detach().flatten(1).double().cpu()
    # numpy's selection takes time linear in the number of pixels; torch.quantile accepts at most 16 million.
    full = torch.from_numpy(np.quantile(flat.numpy(), percentile / 100, axis=1))
    return torch.where(full > 0, full, flat.amax(1)).to(values)


def _boxed(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Average (N, 1, H, W) over a box with zeros beyond the border, as published; a square box rows first."""
    return F.avg_pool2d(values, size, stride=1, padding=(size[0] // 2, size[1] // 2))


def _box(weights: Tensor, smooth: int | None) -> int:
    height, width = weights.shape[2:]
    if smooth is None:
        return max(1, 2 * round((_SMOOTH * min(height, width) / _SIDE - 1) / 2) + 1)
    hint = "give an odd number of pixels, smaller than the image"
    check_count("smooth", smooth, hint=hint)
    if smooth % 2 == 0 or smooth > 2 * min(height, width):
        raise UsageError(f"smooth is {smooth!r}", hint=hint)
    return smooth


def _hue(weights: Tensor) -> Tensor:
    """Return each channel's share of weight on x, (N, 3, H, W), negative weights cut; black where there is none."""
    largest = weights.abs().amax(1, keepdim=True)
    scaled = (weights / torch.where(largest > 0, largest, 1)).clamp_min(0)
    straight, inverse = scaled.chunk(2, dim=1)
    total = straight + inverse
    share = straight / torch.where(total > 0, total, 1)
    return share.expand(-1, 3, -1, -1)


def signed(
    contributions: Tensor,
    *,
    percentile: float = 99.5,
    colors: Callable[[npt.NDArray[np.float64]], npt.ArrayLike] | None = None,
    opaque: bool = True,
) -> Tensor:
    """Turn contributions into colors: red counts for the output, blue against it, white is nothing.

    Args:
        contributions: (N, H, W).
        percentile: in (0, 100], of each image's absolute contributions: full color from there on.
        colors: other colors: an array of shares, 0 for all against and 1 for all for, to their red, green and blue
            (and more) in [0, 1], such as a color map of matplotlib.
        opaque: fill every pixel; else a pixel is as opaque as its contribution is strong.

    Returns:
        (N, 4, H, W) in [0, 1].
    """
    full = _full(contributions.abs(), percentile).view(-1, 1, 1)
    strength = (contributions / torch.where(full > 0, full, 1)).clamp(-1, 1).unsqueeze(1)
    against, speaking_for = (end.to(contributions).view(1, 3, 1, 1) for end in (_AGAINST, _FOR))
    if colors is not None:
        shares = ((strength.squeeze(1) + 1) / 2).detach().cpu().numpy()
        color = torch.from_numpy(np.asarray(colors(shares))[..., :3]).to(strength).movedim(-1, 1)
    elif opaque:
        color = torch.where(strength < 0, 1 + strength * (1 - against), 1 - strength * (1 - speaking_for))
    else:
        color = torch.where(strength < 0, against, speaking_for).expand(-1, 3, -1, -1)
    return torch.cat([color, torch.ones_like(strength) if opaque else strength.abs()], dim=1)


def overlaid(picture: Image.Image, photograph: Image.Image) -> Image.Image:
    """Return a picture over a photograph, which is drawn in light gray; a pixel of a coarser picture is a block."""
    # From 96 to 255: light enough for the colors above it to stand out.
    gray = photograph.convert("L").point(lambda value: 96 + value * 5 // 8).convert("RGBA")
    over = picture.convert("RGBA")
    if over.size != gray.size:
        over = over.resize(gray.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(gray, over)


def pictures(
    explanation: Result, *, smooth: int | None = None, percentile: float = 99.5, opaque: bool = True
) -> Tensor:
    """Return the picture of each sample and target: colored where W(x) has colors, signed elsewhere.

    Of clips and volumes at most 8 frames or slices stand beside each other. Signed ones fill every pixel if ``opaque``.

    Returns:
        (N * K, 4, H, W) in [0, 1], on the CPU, a sample's targets beside each other.

    Raises:
        UsageError: the source is not an image, clip or volume.
    """
    if len(explanation.axes) not in (2, 3):
        raise UsageError(
            f"an explanation by {tuple(explanation.encoded.shape[1:])} is not a picture",
            hint="its numbers are in .contributions; .plot() draws them",
        )
    values = planes(explanation)
    if not explanation.colors:
        return signed(values, percentile=percentile, opaque=opaque)
    # N and K become one dimension; channels may be last in the network.
    weights = explanation.weights.flatten(0, -4).movedim(explanation.channel_axis or 1, 1).float().cpu()
    weights = in_blocks(weights, explanation.blocks)
    return colored(weights, values, smooth=smooth, percentile=percentile)


def planes(explanation: Result) -> Tensor:
    """Return the contributions of each sample and target as a plane (N * K, H, W), frames beside each other."""
    values = explanation.contributions
    rank = len(explanation.axes)
    values = in_blocks(values.reshape(-1, *values.shape[-rank:]).float().cpu(), explanation.blocks)
    return strip(values) if rank == 3 else values


def in_blocks(values: Tensor, side: int) -> Tensor:
    """Return (..., H, W) in which all pixels of a block hold its mean; the sums do not change."""
    if side == 1:
        return values
    height, width = values.shape[-2:]
    rows = values.reshape(1, -1, height, width)
    # A mean over what lies inside, so that blocks cut by the border keep their sums too.
    means = F.avg_pool2d(rows, side, ceil_mode=True, count_include_pad=False)
    spread = means.repeat_interleave(side, 2).repeat_interleave(side, 3)[..., :height, :width]
    return spread.reshape(values.shape)


def frames(count: int) -> list[int]:
    """Return which of some frames or slices are shown: at most 8, evenly spaced, the first and the last among them."""
    shown = min(count, _FRAMES)
    return [round(place * (count - 1) / max(1, shown - 1)) for place in range(shown)]


def strip(values: Tensor) -> Tensor:
    """Put frames (..., T, H, W) beside each other, (..., H, W'), with a gap of zeros between them."""
    # Zeros are white in a signed map, and black beside the frames of an input.
    gap = values.new_zeros(*values.shape[:-3], values.shape[-2], max(1, values.shape[-1] // 32))
    parts = [part for frame in frames(values.shape[-3]) for part in (gap, values[..., frame, :, :])]
    return torch.cat(parts[1:], dim=-1)


def images(
    explanation: Result, *, smooth: int | None = None, percentile: float = 99.5, overlay: bool = False
) -> list[Image.Image]:
    """Return :func:`pictures` as RGBA images; over the photographs if ``overlay``.

    Raises:
        UsageError: the input is not a photograph, and an overlay is wanted; or as for :func:`pictures`.
    """
    drawn = list(map(to_image, pictures(explanation, smooth=smooth, percentile=percentile, opaque=not overlay)))
    if not overlay:
        return drawn
    targets = len(drawn) // max(1, len(explanation))
    return [overlaid(picture, background(explanation, place // targets)) for place, picture in enumerate(drawn)]


def background(explanation: Result, sample: int) -> Image.Image:
    """Return a sample's input as what maps are drawn over.

    Raises:
        UsageError: it is not a photograph.
    """
    image = photograph(explanation, sample)
    if image is None:
        raise UsageError("the input is not a photograph, so nothing can be drawn over it", hint="leave the overlay out")
    return image


def to_image(picture: Tensor) -> Image.Image:
    """Turn (C, H, W) in [0, 1] into an image: gray, RGB or RGBA for 1, 3 or 4 channels."""
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))


def photograph(explanation: Result, sample: int) -> Image.Image | None:
    """Return a sample's input as an image, as far as it is one; see :func:`portrait`."""
    return portrait(explanation, sample)[0]


def portrait(explanation: Result, sample: int) -> tuple[Image.Image | None, str]:
    """Return a sample's input as an image, and the title above it.

    Of other than one or three channels the mean is shown, in gray. Values of an encoded image are cut at 0 and 1;
    those of another input are scaled where they leave that range.
    """
    given = explanation.inputs[sample].detach().float().cpu()
    places = given.unsqueeze(0) if (axis := _channels(explanation)) is None else given.movedim(axis - 1, 0)
    if places.dim() not in (3, 4):
        return None, "input"
    title, encoded = "input", explanation.encoded.shape != explanation.inputs.shape
    # Of an encoded input [x, 1 - x] the first half is the photograph.
    if places.shape[0] in (2, 6) and torch.allclose(sum(places.chunk(2)), torch.ones(()), atol=1e-5):  # type: ignore[arg-type]
        places = places.chunk(2)[0]
    if places.shape[0] not in (1, 3):
        title += f", mean of {places.shape[0]} channels"
        places = places.mean(0, keepdim=True)
    low, high = float(places.min()), float(places.max())
    if not encoded and (low < 0 or high > 1):
        title += f", {low:.3g} to {high:.3g}"
        places = (places - low) / (high - low or 1)
    return to_image(strip(places) if places.dim() == 4 else places), title


def _channels(explanation: Result) -> int | None:
    """Return the dimension of the inputs that holds channels; by convention for an inner layer's explanation."""
    if explanation.inputs.dim() == explanation.encoded.dim():
        return explanation.channel_axis
    return 1 if explanation.inputs.dim() > 3 else None
