"""Photographs as the network's input: (N, C, H, W) in [0, 1]. Imports torch: load it inside commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bcos_fx.errors import UsageError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
_MOST = 32
# The share of the short side that the usual ImageNet evaluation keeps: resize to 256, keep 224.
_KEPT = 224 / 256


def read_photographs(folder: Path, shape: Sequence[int]) -> Tensor:
    """Read the photographs of a folder, in the order of their names, at most 32.

    Args:
        folder: with images in it.
        shape: (C, H, W) of one sample, with C 1 or 3.

    Raises:
        UsageError: no such folder, no images in it, one that cannot be read, or a shape that is no image's.
    """
    if not folder.is_dir():
        near = [item.name for item in folder.parent.iterdir() if item.is_dir()] if folder.parent.is_dir() else []
        raise UsageError(f"there is no folder {folder}", hint=nearest(folder.name, near[:50]) if near else None)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UsageError(f"there are no images in {folder}", hint=f"images end in {', '.join(SUFFIXES)}")
    return torch.stack([read_photograph(path, shape) for path in files[:_MOST]])


def read_photograph(path: Path, shape: Sequence[int]) -> Tensor:
    """Read one photograph: resized (bicubic) so that the crop keeps 7/8 of the short side, then cropped.

    Args:
        path: of the image.
        shape: (C, H, W) of the result, with C 1 or 3.

    Raises:
        UsageError: the file is no image, or the shape is no image's.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"photographs cannot be made into {tuple(shape)}", hint="the shape is 1 or 3 channels, H, W")
    channels, height, width = shape
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"the image cannot be read: {error}", where=str(path), hint="take it out") from error
    cropped = _cropped(image, height, width)
    pixels = np.asarray(cropped, dtype=np.float32).reshape(height, width, channels) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _cropped(image: Image.Image, height: int, width: int) -> Image.Image:
    factor = max(height / image.height, width / image.width) / _KEPT
    size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return resized.crop((left, top, left + width, top + height))
