"""Where images come from: a folder per class, an .npz of JPEG bytes, tensors, a Dataset."""

from __future__ import annotations

import io
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from bcos_fx.errors import UsageError, nearest

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")


class Source:
    """Images by number, with labels.

    Attributes:
        labels: (N,) class indices.
        classes: names, or () where nothing names them.
    """

    labels: Sequence[int]
    classes: tuple[str, ...] = ()

    def read(self, index: int) -> Any:
        """Return an image: PIL's, or a tensor (C, H, W) in [0, 1].

        Raises:
            OSError, ValueError: it cannot be read.
        """
        raise NotImplementedError

    def name(self, index: int) -> str:
        """Say which image it is."""
        raise NotImplementedError


class FolderSource(Source):
    """A folder with one folder of images per class; classes in the order of their names."""

    def __init__(self, folder: Path) -> None:
        found = [item for item in sorted(folder.iterdir()) if item.is_dir() and not item.name.startswith(".")]
        files = [(path, i) for i, each in enumerate(found) for path in sorted(each.rglob("*")) if _is_image(path)]
        if not files:
            raise UsageError(
                f"there are no images in the folders of {folder}",
                hint=f"one folder per class, with images in it that end in {', '.join(SUFFIXES)}",
            )
        self.classes = tuple(item.name for item in found)
        self.labels = [label for _, label in files]
        self._files = [path for path, _ in files]

    def read(self, index: int) -> Image.Image:
        """Return a photograph in RGB."""
        with Image.open(self._files[index]) as opened:
            return opened.convert("RGB")

    def name(self, index: int) -> str:
        """Say which image it is."""
        return str(self._files[index])


class NpzSource(Source):
    """JPEG files in one .npz: ``jpeg`` (all bytes), ``offsets`` (n + 1), ``labels``, and ``classes`` (names)."""

    def __init__(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as found:
                self._bytes, self._offsets = found["jpeg"], found["offsets"]
                self.labels = found["labels"].astype(np.int64).tolist()
                self.classes = tuple(str(name) for name in found["classes"]) if "classes" in found else ()
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"this is no archive of images: {error}",
                where=str(path),
                hint="it needs the arrays jpeg (bytes of all files), offsets (n + 1) and labels (n)",
            ) from error
        self._path = path
        if len(self._offsets) <= len(self.labels):
            raise UsageError(f"{len(self.labels)} labels and {len(self._offsets)} offsets do not fit", where=str(path))

    def read(self, index: int) -> Image.Image:
        """Return a photograph in RGB."""
        data = self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes()
        return Image.open(io.BytesIO(data)).convert("RGB")

    def name(self, index: int) -> str:
        """Say which image it is."""
        return f"image {index} of {self._path}"


class TensorSource(Source):
    """Images (N, C, H, W) in [0, 1] and labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if len(images) != len(labels) or labels.dim() != 1 or labels.is_floating_point():
            raise UsageError(
                f"images {tuple(images.shape)} and labels {tuple(labels.shape)} of {labels.dtype} do not fit",
                hint="give (N, C, H, W) and (N,) class indices",
            )
        self._images = images
        self.labels = [int(label) for label in labels]

    def read(self, index: int) -> Tensor:
        """Return (C, H, W)."""
        return self._images[index]

    def name(self, index: int) -> str:
        """Say which image it is."""
        return f"image {index}"


class DatasetSource(Source):
    """A torch Dataset of (image, label), which does what it does to its images itself."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset = dataset
        if not isinstance(dataset, Sized) or not len(dataset):
            raise UsageError(
                "the dataset is empty, or does not know its length", hint="give it a __len__, or a DataLoader"
            )
        targets = getattr(dataset, "targets", None)
        self.labels = [int(t) for t in targets] if targets is not None else range(len(dataset))
        self.labelled = targets is not None
        self.classes = tuple(str(name) for name in getattr(dataset, "classes", ()))

    def read(self, index: int) -> Any:
        """Return what the dataset has there."""
        return self._dataset[index]

    def name(self, index: int) -> str:
        """Say which image it is."""
        return f"item {index} of {type(self._dataset).__name__}"


def source_of(data: Any) -> Source:
    """Return images by number.

    Args:
        data: path of a folder per class or of an .npz; (images, labels); a Dataset of (image, label).

    Raises:
        UsageError: there are no images, or it is something else.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_dir():
            return FolderSource(path)
        if path.is_file():
            return NpzSource(path)
        near = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"there is no folder or file {path}", hint=nearest(path.name, near[:200]) if near else None)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        if not len(data[0]):
            raise UsageError("there are no images to train on")
        return TensorSource(*data)
    if isinstance(data, Dataset):
        return DatasetSource(data)
    raise UsageError(
        f"images cannot be taken from a {type(data).__name__}",
        hint="give a folder with a folder per class, an .npz, (images, labels), a Dataset or a DataLoader",
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()
