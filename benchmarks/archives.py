"""Images of an archive of JPEG files behind one another: arrays ``jpeg``, ``offsets``, ``labels`` and ``classes``."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def jpeg_files(archive: Path, count: int | None = None) -> list[bytes]:
    """Return the first files of an archive."""
    found = np.load(archive)
    data, offsets = found["jpeg"], found["offsets"]
    count = len(offsets) - 1 if count is None else count
    return [data[offsets[i] : offsets[i + 1]].tobytes() for i in range(count)]


def images_of(archive: Path, count: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return images (N, 3, H, W) of one size in [0, 1], labels and class names."""
    files = jpeg_files(archive, count)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    found = np.load(archive)
    return images, torch.from_numpy(found["labels"][:count].astype(np.int64)), [str(c) for c in found["classes"]]
