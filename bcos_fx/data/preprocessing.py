"""From an image to the network's input: one resize, one crop, one scale, for every command.

The default is the evaluation that ImageNet classifiers and B-cosified networks are published with: the short side is
resized to 8/7 of the network's (256 for 224), bilinearly and with antialiasing, and the center is cropped. A network
that records how it was evaluated (timm's ``pretrained_cfg``, a torchvision weight's ``transforms()``, open_clip's
``preprocess_cfg``) is given what it records. Sizes and offsets round as torchvision's ``Resize`` and ``CenterCrop`` do,
so that the pixels are theirs; torchvision itself is an extra, and takes no 16-bit or oriented files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bcos_fx.data.decoding import in_mode
from bcos_fx.errors import UsageError, check_choice

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
CLIP: dict[str, Any] = {"interpolation": "bicubic", "crop_pct": 1.0}
"""How CLIP and its benchmark prepare images."""


def is_photograph(shape: tuple[int, ...]) -> bool:
    """Return whether a sample of this shape is an image: (1 or 3, H, W)."""
    return len(shape) == 3 and shape[0] in (1, 3)


@dataclass(frozen=True)
class Preprocessing:
    """How images become a network's input (C, H, W) in [0, 1].

    Attributes:
        channels: 1 or 3.
        height: of the network's images, in pixels.
        width: the same for the width.
        interpolation: a key of :data:`INTERPOLATIONS`.
        crop_pct: share in (0, 1] of the limiting side that the crop keeps.
        shrunk: images come at this fraction of the network's size, as cells of rescaled grids.
        in_unit_range: values of tensors outside [0, 1] are refused; not for networks that take an input as it is.
    """

    channels: int
    height: int
    width: int
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    shrunk: int = 1
    in_unit_range: bool = True

    def __post_init__(self) -> None:
        check_choice("interpolation", self.interpolation, INTERPOLATIONS)
        if not 0 < self.crop_pct <= 1:
            raise UsageError(f"crop_pct is {self.crop_pct!r}", hint="give a share in (0, 1]")

    @classmethod
    def of(cls, shape: tuple[int, ...], **options: Any) -> Preprocessing:
        """Return the preprocessing for the shape of one sample; options that are None take their defaults.

        Raises:
            UsageError: the shape is not that of an image with 1 or 3 channels, or an option makes no sense.
        """
        if not is_photograph(shape):
            hint = "1 or 3 channels, H, W; give tensors for other networks from Python"
            raise UsageError(f"the network takes {tuple(shape)}, which is not a photograph", hint=hint)
        given = {name: value for name, value in options.items() if value is not None}
        channels, height, width = shape
        return cls(channels, height, width, **given)

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
        return (
            f"images of {height}x{width} pixels as they are, others: resized ({self.interpolation}), and "
            f"{height}x{width} cropped from the center, {self.crop_pct:.4g} of the short side"
        )

    def __call__(self, image: object, name: str = "the image") -> Tensor:
        """Return an image (C, h, w) in [0, 1] of :attr:`size`, in float32 or a tensor's own float64; newly allocated.

        Args:
            image: a picture, or bytes (1 or 3, H, W) in a tensor, of any size; or floating-point numbers in [0, 1] of
                the network's own size.
            name: of the image, for errors.

        Raises:
            Unreadable: the picture's values have no known range.
            UsageError: it is something else, of another size, or holds values that are not those of an image.
        """
        image = as_picture(image)
        if isinstance(image, Tensor):
            return self._check_image(image, name)
        if not isinstance(image, Image.Image):
            raise UsageError(f"{name} is a {type(image).__name__}", hint="give a tensor, an array or a PIL picture")
        pixels = np.array(self.sized(image), dtype=np.float32).reshape(*self.size, self.channels) / 255
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def sized(self, image: Image.Image) -> Image.Image:
        """Return a picture in the mode and of the size that come: as it is, where it has the network's size."""
        image = in_mode(image, self.mode)
        height, width = self.size
        if image.size != (self.width, self.height):
            return self._cropped(image, height, width)
        return image if self.shrunk == 1 else image.resize((width, height), Image.Resampling.BICUBIC)

    def _cropped(self, image: Image.Image, height: int, width: int) -> Image.Image:
        # The side that limits the crop is resized first; torchvision rounds the other one down.
        side, limit = (height, image.height) if height * image.width >= width * image.height else (width, image.width)
        resized = int(side / self.crop_pct + 1e-6)
        size = resized * image.width // limit, resized * image.height // limit
        image = image.resize(size, INTERPOLATIONS[self.interpolation])
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _check_image(self, image: Tensor, name: str) -> Tensor:
        expected = (self.channels, self.height, self.width)
        if tuple(image.shape) != expected:
            what = f"{name} has the shape {tuple(image.shape)}, and the network takes {expected}"
            shape = ",".join(map(str, image.shape))
            hint = f"bring all images to one size in the data set's transform, or convert with --input-shape {shape}"
            raise UsageError(what, hint=hint)
        if not image.is_floating_point():
            kind = str(image.dtype).removeprefix("torch.")
            raise UsageError(f"{name} holds {kind} values", hint="give bytes (uint8), or numbers in [0, 1]")
        low, high = float(image.min()), float(image.max())
        # Resizing in float may overshoot by rounding.
        if self.in_unit_range and not (low >= -1e-3 and high <= 1 + 1e-3):
            raise UsageError(
                f"{name} holds values from {low:.3g} to {high:.3g}, and images are taken in [0, 1]",
                hint="leave normalization out of the data set's transform: a converted network normalizes inside",
            )
        if self.shrunk > 1:
            image = F.interpolate(image[None].float(), self.size, mode="bicubic", antialias=True)[0].clamp(0, 1)
        return image.to(torch.promote_types(image.dtype, torch.float32), copy=True)


def as_picture(image: object) -> Any:
    """Return bytes (1 or 3, H, W) in a tensor as a picture; anything else as it is."""
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or not is_photograph(tuple(image.shape)):
        return image
    values = image.detach().cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values))
