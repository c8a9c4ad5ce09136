"""Where images come from: files as evaluation reads them, tensors, a Dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bcos_fx.data.decoding import BROKEN
from bcos_fx.errors import UsageError
from bcos_fx.evaluation.identity import counts, digest_of_data, digest_of_items, digest_of_tensors, few, sampled
from bcos_fx.evaluation.sources import Files, Place
from bcos_fx.evaluation.stores import open_source, unlabelled
from bcos_fx.training.seeding import derived, seed_host


class Source(ABC):
    """Images by number, with labels.

    Attributes:
        labels: (N,) class indices; where nothing tells them, any numbers.
        labelled: whether they are known before the images are read.
        classes: names, or () where nothing names them.
    """

    labels: Sequence[int]
    labelled: bool = True
    classes: tuple[str, ...] = ()

    def target(self, index: int) -> Any:
        """Return what an image's outputs are compared with: its label; None where none is known."""
        return self.labels[index] if self.labelled else None

    @abstractmethod
    def read(self, index: int) -> Any:
        """Return an image: PIL's, or a tensor (C, H, W) in [0, 1].

        Raises:
            Unreadable: it cannot be read.
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """Say which image it is."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what tells these images from others, as plain data."""


class StoredSource(Source):
    """Image files: a folder per class, an .npz of JPEG bytes, or webdataset shards; or a folder of them, unlabelled."""

    def __init__(self, path: Path) -> None:
        files = unlabelled(path)
        self.labelled = not files
        places = [Place(file.name, 0, file, 0, file.stat().st_size) for file in files]
        self._files = Files(places, "folder") if places else open_source(path)
        self.labels = [place.label for place in self._files.places]
        self.classes = self._files.classes or ()

    def read(self, index: int) -> Image.Image:
        """Return a photograph in RGB."""
        return self._files.picture(index)

    def name(self, index: int) -> str:
        """Say which image it is."""
        place = self._files.places[index]
        return str(place.path) if self._files.kind == "folder" else f"{place.name} in {place.path}"

    def identity(self) -> dict[str, Any]:
        """Return kind, classes and numbers, and digests of names, labels, sizes and contents."""
        return self._files.identity()


class TensorSource(Source):
    """Images (N, C, H, W) in [0, 1], or other samples (N, ...), alone or with what belongs to each of them.

    That is a class index each (N,), or numbers to be met: several labels (N, C) in [0, 1], or values (N,) or (N, ...).
    """

    def __init__(self, images: Tensor, labels: Tensor | None = None) -> None:
        if not len(images):
            raise UsageError("there are no images to train on")
        self._images = images
        if labels is not None and (not labels.dim() or len(images) != len(labels)):
            raise UsageError(
                f"images {tuple(images.shape)} and labels {tuple(labels.shape)} of {labels.dtype} do not fit",
                hint="give (N, C, H, W) and (N,) class indices, or (N, ...) numbers for a loss that reads such",
            )
        self.labelled = labels is not None and labels.dim() == 1 and not labels.is_floating_point()
        self._numbers = None if labels is None or self.labelled else labels.detach().float()
        known = labels is not None and self.labelled
        self.labels = [int(label) for label in labels] if known and labels is not None else range(len(images))

    def target(self, index: int) -> Any:
        """Return a class index, or the numbers (...) that an image's outputs are to meet."""
        return super().target(index) if self._numbers is None else self._numbers[index]

    def read(self, index: int) -> Tensor:
        """Return (C, H, W)."""
        return self._images[index]

    def name(self, index: int) -> str:
        """Say which image it is."""
        return f"image {index}"

    def identity(self) -> dict[str, Any]:
        """Return number, classes and shape, and digests of labels and contents."""
        size = self._images[0].numel() * self._images.element_size()
        chosen = sampled([size] * len(self._images), self.labels)
        return {
            "kind": "tensors",
            "images": len(self._images),
            "shape": list(self._images.shape[1:]),
            "classes": counts(self.labels, None) if self.labelled else None,
            "labels": digest_of_data(list(self.labels) if self._numbers is None else self._numbers.tolist()),
            "contents": digest_of_tensors([("images", self._images[torch.tensor(chosen)])]),
        }


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

    def identity(self) -> dict[str, Any]:
        """Return type, number and classes, and digests of labels and of some items as the same draws make them."""
        labels = list(self.labels)
        return {
            "kind": type(self._dataset).__name__,
            "images": len(labels),
            "classes": counts(labels, self.classes) if self.labelled else list(self.classes),
            "labels": digest_of_data(labels),
            "contents": digest_of_items(lambda: map(self._drawn, few(len(labels)))),
        }

    def _drawn(self, index: int) -> Any:
        seed_host(derived(0, "identity", index))
        try:
            return self._dataset[index]
        except BROKEN:  # it is named when it is trained on
            return "unreadable"


class Renumbered(Source):
    """Images whose labels are some of many class indices, counted from 0 instead.

    Args:
        source: the images.
        indices: the class indices, in their new order.

    Raises:
        UsageError: a label is none of them, or labels are part of what the source reads.
    """

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self._source, self.indices = source, tuple(indices)
        places = {index: place for place, index in enumerate(self.indices)}
        other = next((label for label in source.labels if label not in places), None)
        if not source.labelled or isinstance(source, DatasetSource):
            raise UsageError("a head of some classes needs their names", hint="give the dataset a list classes")
        if other is not None:
            raise UsageError(f"a test image has the label {other}, and no training image", hint="the same classes")
        self.labels = [places[label] for label in source.labels]
        self.classes = tuple(map(str, self.indices))

    def read(self, index: int) -> Any:
        """Return an image."""
        return self._source.read(index)

    def name(self, index: int) -> str:
        """Say which image it is."""
        return self._source.name(index)

    def identity(self) -> dict[str, Any]:
        """Return what tells these images from others, as plain data."""
        return self._source.identity()


def identity_of(data: Any) -> dict[str, Any] | None:
    """Return what tells images from others, in any form that training takes; None for no images."""
    if data is None:
        return None
    if not isinstance(data, DataLoader):
        return source_of(data).identity()
    batches = {"batches": len(data), "batch size": data.batch_size}
    if isinstance(data.dataset, Sized) and hasattr(data.dataset, "__getitem__"):
        return DatasetSource(data.dataset).identity() | batches
    return {"kind": type(data.dataset).__name__, **batches}


def source_of(data: Any) -> Source:
    """Return images by number.

    Args:
        data: path of a folder per class, of an .npz, of webdataset shards or of a folder of images; images, or
            (images, labels); a Dataset of (image, label).

    Raises:
        UsageError: there are no images, or it is something else.
    """
    if isinstance(data, str | Path):
        return StoredSource(Path(data))
    if isinstance(data, Tensor):
        return TensorSource(data)
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return TensorSource(*data)
    if isinstance(data, Dataset):
        return DatasetSource(data)
    raise UsageError(
        f"images cannot be taken from a {type(data).__name__}",
        hint="give a folder with a folder per class, an .npz, webdataset shards, images or (images, labels), a Dataset "
        "or a DataLoader",
    )
