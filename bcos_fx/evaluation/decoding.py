"""From stored images to the network's input: (C, H, W) in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bcos_fx.data.decoding import decoded_picture, in_mode
from bcos_fx.errors import UsageError

# The share of the short side that the usual ImageNet evaluation keeps, and B-cosification's: resize to 256, keep 224.
_KEPT = 224 / 256


@dataclass(frozen=True)
class Frame:
    """The size that images are brought to.

    Attributes:
        channels: 1 or 3.
        height: of the network's images, in pixels.
        width: likewise.
        shrunk: images come at this fraction of the network's size, as cells of rescaled grids.
        whole: the crop keeps the whole short side, resized by cubic interpolation, as CLIP and its benchmark prepare
            images; otherwise 7/8 of it, by linear interpolation, as classifiers of ImageNet and B-cosification do.
    """

    channels: int
    height: int
    width: int
    shrunk: int = 1
    whole: bool = False

    @classmethod
    def of(cls, shape: tuple[int, ...], shrunk: int = 1, *, whole: bool = False) -> Frame:
        """Return the frame for the shape of one sample.

        Raises:
            UsageError: the shape is none of an image with 1 or 3 channels.
        """
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UsageError(f"the network takes {tuple(shape)}, which is no photograph", hint="1 or 3 channels, H, W")
        return cls(*shape, shrunk, whole)

    @property
    def mode(self) -> str:
        """Pillow's mode of the images that come."""
        return "L" if self.channels == 1 else "RGB"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that come."""
        return self.height // self.shrunk, self.width // self.shrunk

    def __str__(self) -> str:
        height, width = self.size
        how = "(bicubic) to" if self.whole else "(bilinear) to 8/7 of"
        cut = f"the short side resized {how} {height}x{width} pixels, the centre cropped"
        return f"images of {self.height}x{self.width} pixels as they are, others: {cut}"


def decoded(stream: BinaryIO, frame: Frame) -> Tensor:
    """Decode one image file.

    Returns:
        (C, h, w) float32 in [0, 1] of the frame's size: an image of the network's own size as it is (shrunk where the
        frame says so); any other resized so that the crop keeps 7/8 of the short side, or all, then cropped.

    Raises:
        Unreadable: the stream holds no image.
    """
    return from_picture(decoded_picture(stream, frame.mode), frame)


def from_picture(image: Image.Image, frame: Frame) -> Tensor:
    """Turn a picture into a tensor, as :func:`decoded` says.

    Raises:
        Unreadable: its values have no known range.
    """
    image = in_mode(image, frame.mode)
    height, width = frame.size
    if image.size != (frame.width, frame.height):
        image = cropped(image, height, width, whole=frame.whole)
    elif frame.shrunk > 1:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, frame.channels) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def cropped(image: Image.Image, height: int, width: int, *, whole: bool = False) -> Image.Image:
    """Resize so that a crop of ``height`` × ``width`` keeps 7/8 of the short side, or all; crop the centre.

    Linear interpolation, as published for classifiers; cubic for ``whole``, as CLIP prepares its images.
    """
    factor = max(height / image.height, width / image.width) / (1 if whole else _KEPT)
    size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    resized = image.resize(size, Image.Resampling.BICUBIC if whole else Image.Resampling.BILINEAR)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return resized.crop((left, top, left + width, top + height))


def from_tensor(image: Tensor, frame: Frame, name: str) -> Tensor:
    """Take a data set's tensor: bytes, or numbers in [0, 1], of the network's own size.

    Raises:
        UsageError: another size, or values that are no image's: what is normalised already would be so twice.
    """
    expected = (frame.channels, frame.height, frame.width)
    if tuple(image.shape) != expected:
        raise UsageError(
            f"{name} has the shape {tuple(image.shape)}, and the network takes {expected}",
            hint="bring all images to one size in the data set's transform",
        )
    if image.dtype == torch.uint8:
        image = image.float() / 255
    elif not image.is_floating_point():
        raise UsageError(f"{name} holds {image.dtype}", hint="give bytes, or floating-point values in [0, 1]")
    low, high = float(image.min()), float(image.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise UsageError(
            f"{name} holds values from {low:.3g} to {high:.3g}, and images are taken in [0, 1]",
            hint="leave normalisation out of the data set's transform: a converted network normalises inside",
        )
    if frame.shrunk > 1:
        image = F.interpolate(image[None].float(), frame.size, mode="bicubic", antialias=True)[0].clamp(0, 1)
    return image.float()


def to_tensor(image: Any, frame: Frame, name: str) -> Tensor:
    """Take an item's image, a tensor or a PIL picture.

    Raises:
        UsageError: it is something else, or does not fit.
    """
    if isinstance(image, Tensor):
        return from_tensor(image, frame, name)
    if isinstance(image, Image.Image):
        return from_picture(image, frame)
    raise UsageError(f"{name} is a {type(image).__name__}", hint="a data set gives pairs of (tensor or picture, label)")
