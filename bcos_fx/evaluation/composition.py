"""Grids as images, and methods that explain a grid in windows of one image's size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bcos_fx.errors import UsageError
from bcos_fx.methods.method import Method


def composed(images: Tensor, side: int) -> Tensor:
    """Put images (side², C, h, w) into one (C, side · h, side · w): number k at row k mod side, column k div side."""
    count, channels, height, width = images.shape
    if count != side * side:
        raise UsageError(f"{count} images do not fill a grid of {side}x{side}")
    columns = images.reshape(side, side, channels, height, width)  # column, row, C, h, w
    return columns.permute(2, 1, 3, 0, 4).reshape(channels, side * height, side * width)


def windowed(method: Method, height: int, width: int) -> Method:
    """Explain large images in windows of the network's own size, for networks that take no other.

    As published for vision transformers (Böhle et al., "B-cos Alignment", TPAMI 2024, section 5): the image is padded
    with zeros by half a window on each side, windows follow each other at half their size (25 of them for 2×2 cells),
    each is explained for all targets, and where windows overlap their contributions are added up.
    """
    if height % 2 or width % 2:
        raise UsageError(f"windows of {height}x{width} pixels have no half", hint="take a network of an even size")

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        parts = [_one(method, image, wanted, (height, width)) for image, wanted in zip(images, targets, strict=True)]
        return torch.stack(parts)

    return Method(method.name, {**method.settings, "windows": f"{height}x{width}, stride half"}, maps)


def _one(method: Method, image: Tensor, targets: Tensor, size: tuple[int, int]) -> Tensor:
    padding = (size[0] // 2, size[1] // 2)
    stride = padding
    parts = F.unfold(image.unsqueeze(0), size, padding=padding, stride=stride)  # 1, C · h · w, windows
    windows = parts[0].T.reshape(-1, len(image), *size)
    found = method.maps(windows, targets.expand(len(windows), -1))  # windows, K, h, w
    columns = found.flatten(2).permute(1, 2, 0)  # K, h · w, windows
    return F.fold(columns, image.shape[-2:], size, padding=padding, stride=stride).squeeze(1)
