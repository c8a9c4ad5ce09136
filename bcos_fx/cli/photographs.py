"""Photographs as the network's input: (N, C, H, W) in [0, 1]. Imports torch: load it inside commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bcos_fx.data.decoding import SUFFIXES, Unreadable, read_picture
from bcos_fx.errors import UsageError, nearest
from bcos_fx.evaluation.decoding import Frame, cropped
from bcos_fx.evaluation.sources import Sample, Source

__all__ = ["SUFFIXES", "read_photograph", "read_photographs"]

_MOST = 32


def image_files(given: Sequence[Path]) -> list[Path]:
    """Return the image files among files and folders; a folder's in the order of their names.

    Raises:
        UsageError: one of them is not there, or a folder holds no image.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(item for item in path.iterdir() if item.suffix.lower() in SUFFIXES and item.is_file())
            if not inside:
                raise UsageError(f"there are no images in {path}", hint=f"images end in {', '.join(SUFFIXES)}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UsageError(f"there is no file {path}", hint=nearest(path.name, near[:200]) if near else None)
    return found


def folder_files(folder: Path) -> list[Path]:
    """Return the image files of a folder, in the order of their names.

    Raises:
        UsageError: no such folder, or no images in it.
    """
    if not folder.is_dir():
        near = [item.name for item in folder.parent.iterdir() if item.is_dir()] if folder.parent.is_dir() else []
        raise UsageError(f"there is no folder {folder}", hint=nearest(folder.name, near[:50]) if near else None)
    return image_files([folder])


def read_photographs(folder: Path, shape: Sequence[int]) -> Tensor:
    """Read the first photographs of a folder, in the order of their names, at most 32.

    Args:
        folder: with images in it.
        shape: (C, H, W) of one sample, with C 1 or 3.

    Raises:
        UsageError: no such folder, no images in it, one that cannot be read, or a shape that is no image's.
    """
    return torch.stack([read_photograph(path, shape) for path in folder_files(folder)[:_MOST]])


class Photographs:
    """Any number of photographs, read in batches as they are asked for; those that cannot be read are left out.

    Args:
        files: image files.
        shape: (C, H, W) of one sample, with C 1 or 3.
        batch_size: how many are read at a time.

    Attributes:
        skipped: file -> why it could not be read, for those that were reached so far.
    """

    def __init__(self, files: Sequence[Path], shape: Sequence[int], batch_size: int) -> None:
        check_shape(shape)
        self._shape = tuple(shape)
        self.parts = [files[first : first + batch_size] for first in range(0, len(files), batch_size)]
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Tensor]:
        """Yield batches (N, C, H, W)."""
        for part in self.parts:
            _, images = self.read(part)
            if images is not None:
                yield images

    def read(self, files: Sequence[Path]) -> tuple[list[Path], Tensor | None]:
        """Read some files: those that can be read, and their pixels (N, C, H, W), None where there are none."""
        readable, tensors = [], []
        for path in files:
            try:
                tensors.append(read_photograph(path, self._shape))
                readable.append(path)
            except UsageError as error:
                self.skipped[str(path)] = error.what
        return readable, torch.stack(tensors) if tensors else None


class LabelledPhotographs:
    """Images of a labelled source, read in batches with their labels; those that cannot be read are left out.

    Args:
        source: as ``bcos_fx.evaluation.open_source`` finds it.
        shape: (C, H, W) of one sample, with C 1 or 3.
        batch_size: how many are read at a time.
        count: so many of them, evenly spread, because sources are often in the order of their classes; None for all.

    Attributes:
        skipped: image -> why it could not be read, for those that were reached so far.
    """

    def __init__(self, source: Source, shape: Sequence[int], batch_size: int, count: int | None = None) -> None:
        self._source, self._frame = source, Frame.of(tuple(shape))
        chosen = min(len(source), count or len(source))
        places = [number * len(source) // chosen for number in range(chosen)]
        self.parts = [places[first : first + batch_size] for first in range(0, chosen, batch_size)]
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches: images (N, C, H, W) and labels (N,)."""
        for part in self.parts:
            samples = [sample for place in part if (sample := self._read(place)) is not None]
            if samples:
                yield torch.stack([s.image for s in samples]), torch.tensor([s.label for s in samples])

    def _read(self, place: int) -> Sample | None:
        try:
            return self._source.read(place, self._frame)
        except Unreadable as error:
            self.skipped[self._source.name(place)] = error.what
            return None


def check_shape(shape: Sequence[int]) -> None:
    """Check that photographs can be made into samples of a shape.

    Raises:
        UsageError: it is not (1 or 3, H, W).
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"photographs cannot be made into {tuple(shape)}", hint="the shape is 1 or 3 channels, H, W")


def read_photograph(path: Path, shape: Sequence[int]) -> Tensor:
    """Read one photograph: resized (bilinear) so that the crop keeps 7/8 of the short side, then cropped.

    Args:
        path: of the image.
        shape: (C, H, W) of the result, with C 1 or 3.

    Raises:
        UsageError: the file is no image, or the shape is no image's.
    """
    check_shape(shape)
    channels, height, width = shape
    try:
        image = read_picture(path, "L" if channels == 1 else "RGB")
    except Unreadable as error:
        raise UsageError(error.what, where=str(path), hint=error.hint or "take it out") from error
    pixels = np.asarray(cropped(image, height, width), dtype=np.float32).reshape(height, width, channels) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
