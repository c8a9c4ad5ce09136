"""Colours of B-cos explanations.

The weights W(x) of an encoded image [x, 1 - x] are themselves a colour: the one that, at this place, speaks most for
the explained output (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 4; Böhle et al., "B-cos Alignment
for Inherently Interpretable CNNs and Vision Transformers", TPAMI 2024, section 4). Per pixel the vector of weights is
scaled to a largest entry of 1 and cut at 0; a colour channel is the share of its weight on x in that on x and 1 - x.
Opacity is the length of the vector where the pixel contributes to the output, smoothed, and full from a percentile on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bcos_fx.errors import UsageError

if TYPE_CHECKING:
    from bcos_fx.explanation.result import Explanation

_SMOOTH, _SIDE = 15, 224
_AGAINST, _FOR = torch.tensor([0.13, 0.33, 0.68]), torch.tensor([0.76, 0.13, 0.16])


def coloured(weights: Tensor, contributions: Tensor, *, smooth: int | None = None, percentile: float = 99.5) -> Tensor:
    """Turn dynamic weights into colours with opacity.

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
            f"weights {tuple(weights.shape)} and contributions {tuple(contributions.shape)} have no colours",
            hint="give (N, 6, H, W) and (N, H, W)",
        )
    width = _box(weights, smooth)
    length = weights.norm(dim=1, keepdim=True)
    opacity = torch.where(contributions.unsqueeze(1) > 0, length, 0)
    opacity = F.avg_pool2d(opacity, width, stride=1, padding=width // 2, count_include_pad=False)
    full = _full(opacity, percentile).view(-1, 1, 1, 1)
    opacity = (opacity / torch.where(full > 0, full, 1)).clamp(0, 1)
    return torch.cat([_hue(weights), opacity], dim=1)


def _full(values: Tensor, percentile: float) -> Tensor:
    """(N,) the values from which on a picture is full: the percentile, or the largest where that is 0."""
    if not 0 < percentile <= 100:
        raise UsageError(f"percentile is {percentile!r}", hint="give a number above 0, at most 100")
    flat = values.flatten(1).double()
    found = torch.quantile(flat, percentile / 100, dim=1)
    return torch.where(found > 0, found, flat.amax(1)).to(values)


def _box(weights: Tensor, smooth: int | None) -> int:
    height, width = weights.shape[2:]
    if smooth is None:
        return max(1, 2 * round((_SMOOTH * min(height, width) / _SIDE - 1) / 2) + 1)
    if smooth < 1 or smooth % 2 == 0 or smooth > 2 * min(height, width):
        raise UsageError(f"smooth is {smooth!r}", hint="give an odd number of pixels, smaller than the image")
    return smooth


def _hue(weights: Tensor) -> Tensor:
    """(N, 3, H, W): each channel's share of weight on x, negative weights cut; black where there is none."""
    largest = weights.abs().amax(1, keepdim=True)
    scaled = (weights / torch.where(largest > 0, largest, 1)).clamp_min(0)
    straight, inverse = scaled.chunk(2, dim=1)
    total = straight + inverse
    share = straight / torch.where(total > 0, total, 1)
    return share.expand(-1, 3, -1, -1)


def signed(contributions: Tensor, *, percentile: float = 99.5) -> Tensor:
    """Turn contributions into colours: red speaks for the output, blue against it, white is nothing.

    Args:
        contributions: (N, H, W).
        percentile: in (0, 100], of each image's absolute contributions: full colour from there on.

    Returns:
        (N, 4, H, W) in [0, 1], opaque.
    """
    full = _full(contributions.abs(), percentile).view(-1, 1, 1)
    strength = (contributions / torch.where(full > 0, full, 1)).clamp(-1, 1).unsqueeze(1)
    ends = (end.to(contributions).view(1, 3, 1, 1) for end in (_AGAINST, _FOR))
    against, speaking_for = ends
    colour = torch.where(strength < 0, 1 + strength * (1 - against), 1 - strength * (1 - speaking_for))
    return torch.cat([colour, torch.ones_like(strength)], dim=1)


def pictures(explanation: Explanation, *, smooth: int | None = None, percentile: float = 99.5) -> Tensor:
    """Return the picture of each sample and target: coloured where W(x) has colours, signed elsewhere.

    Returns:
        (N * K, 4, H, W) in [0, 1], on the CPU, a sample's targets beside each other.

    Raises:
        UsageError: what is explained by is no image.
    """
    if explanation.encoded.dim() != 4:
        raise UsageError(
            f"an explanation by {tuple(explanation.encoded.shape[1:])} is no picture",
            hint="its numbers are in .contributions; .plot() draws them",
        )
    contributions = explanation.contributions.flatten(0, -3).float().cpu()
    if not explanation.colours:
        return signed(contributions, percentile=percentile)
    weights = explanation.weights.flatten(0, -4).float().cpu()
    return coloured(weights, contributions, smooth=smooth, percentile=percentile)


def images(explanation: Explanation, *, smooth: int | None = None, percentile: float = 99.5) -> list[Image.Image]:
    """Return :func:`pictures` as RGBA images."""
    return [to_image(picture) for picture in pictures(explanation, smooth=smooth, percentile=percentile)]


def to_image(picture: Tensor) -> Image.Image:
    """Turn (C, H, W) in [0, 1] into an image: grey, RGB or RGBA for 1, 3 or 4 channels."""
    pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels))


def photograph(explanation: Explanation, sample: int) -> Image.Image | None:
    """Return a sample's input as an image, as far as it is one; values are cut at 0 and 1."""
    given = explanation.inputs[sample]
    if given.dim() != 3 or given.shape[0] not in (1, 2, 3, 6):
        return None
    return to_image(given.chunk(2)[0] if given.shape[0] in (2, 6) else given)
