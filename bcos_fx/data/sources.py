"""Images in a fixed order, read one at a time: what every command takes as data."""

from __future__ import annotations

import abc
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bcos_fx.data.arrays import ARRAY_MAGIC, image_of_array, read_array
from bcos_fx.data.decoding import Unreadable, decoded_picture, frames_of, read_content
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.identity import counts, digest_of, digest_of_data, digest_of_tensors, sampled


class Sample(NamedTuple):
    """An image with what is known of it.

    Attributes:
        image: (C, H, W) in [0, 1] once it is preprocessed; before, a picture or a tensor.
        label: a class index, a tensor of numbers that outputs are to meet, or None.
    """

    image: Any
    label: Any


class ImageSource(abc.ABC):
    """Images in a fixed order, with or without labels, read one at a time.

    Attributes:
        classes: names of the classes, by index; empty where they are not known.
        labels: class index of every image, where they are known before the images are read; else None.
        unlabeled: there are no labels.
    """

    classes: tuple[str, ...] = ()
    labels: Sequence[int] | None = None
    unlabeled: bool = False
    _checked: int | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return how many images there are, readable or not."""

    @abc.abstractmethod
    def load(self, index: int) -> Sample:
        """Read an image as it is stored: a picture of any size, or a tensor.

        Raises:
            Unreadable: this one cannot be read.
        """

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what distinguishes these images from others, as plain data that is the same on every machine."""

    def read(self, index: int, preprocessing: Preprocessing | None) -> Sample:
        """Read an image as a network takes it; without preprocessing, a tensor as it is.

        Raises:
            Unreadable: this one cannot be read.
            UsageError: it does not fit the network.
        """
        image, label = self.load(index)
        if preprocessing is not None:
            return Sample(preprocessing(image, self.where(index)), label)
        if not isinstance(image, Tensor):
            hint = "the network takes no photographs: give tensors of the shape that it takes"
            raise UsageError(f"{self.where(index)} is a {type(image).__name__}", hint=hint)
        return Sample(image, label)

    def name(self, index: int) -> str:
        """Return a short name of an image, the same on another machine."""
        return f"image {index}"

    def where(self, index: int) -> str:
        """Return where an image is, for errors."""
        return self.name(index)

    def own_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the first image if it is a tensor of numbers; None for pictures of any size."""
        image = self.load(0).image if len(self) else None
        return tuple(image.shape) if isinstance(image, Tensor) else None

    def prepare(self, indices: Sequence[int]) -> None:  # noqa: B027 - most need nothing
        """Get ready to read these images in any order."""

    def check_classes(self, outputs: int) -> None:
        """Refuse labels that do not suit a network with this many outputs; others are checked as they are read."""
        if self._checked != outputs:
            for index, label in enumerate(self.labels or ()):
                self.class_index(label, index, outputs)
            self._checked = outputs

    def check_labeled(self) -> None:
        """Refuse images that have no labels."""
        if self.unlabeled:
            raise _no_labels(f"the images have no labels: {self.where(0)}, for example")

    def class_index(self, label: Any, index: int, outputs: int | None = None) -> int:
        """Check that the label of an image is a class index, and within the network's classes if their number is given.

        Raises:
            UsageError: it is something else.
        """
        if label is None:
            raise _no_labels(f"{self.where(index)} has no label")
        if isinstance(label, Tensor):
            raise UsageError(
                f"{self.where(index)} has a label of shape {tuple(label.shape)} and type {label.dtype}",
                hint="give one class index per image",
            )
        if outputs is not None and not 0 <= label < outputs:
            raise UsageError(
                f"the label {label} is not one of the network's {amount(outputs, 'class')}",
                where=self.where(index),
                hint=f"labels are counted from 0 to {outputs - 1}, in the order of the network's outputs",
            )
        return int(label)

    def class_name(self, label: int) -> str:
        """Return a class's name, or its number."""
        return self.classes[label] if 0 <= label < len(self.classes) else f"class {label}"


def _no_labels(what: str) -> UsageError:
    hint = "put the images of each class in a folder of its own, or give an .npz with labels, or pairs (image, label)"
    return UsageError(what, hint=hint)


@dataclass(frozen=True)
class ImageRecord:
    """Where the bytes of one encoded image are.

    Attributes:
        name: of the image.
        label: its class; None where nothing gives it.
        path: of the file that holds it.
        offset: of its first byte in that file.
        size: in bytes; None: up to the end of the file.
        frame: which of the images in those bytes, as of a TIFF stack.
    """

    name: str
    label: int | None
    path: Path
    offset: int = 0
    size: int | None = None
    frame: int = 0

    @classmethod
    def all_in(cls, path: Path, name: str, label: int | None) -> list[ImageRecord]:
        """Return the images of a file, each with its number in its name where there are several."""
        frames = frames_of(path)
        return [cls(f"{name}[{n}]" if len(frames) > 1 else name, label, path, frame=n) for n in frames]


class ImageFiles(ImageSource):
    """Encoded images in files: each alone, or many in one file that is read in part.

    Args:
        records: where each image is.
        kind: of the source, for its identity.
        classes: names of the classes.
        sorted_classes: the labels are indices into the sorted names of this many folders, and mean nothing else.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        kind: str,
        *,
        classes: Sequence[str] | None = None,
        sorted_classes: int | None = None,
    ) -> None:
        self.records, self.kind, self.classes = tuple(records), kind, tuple(classes or ())
        self._sorted_classes = sorted_classes
        known = [record.label for record in self.records if record.label is not None]
        self.labels = known if len(known) == len(self.records) else None
        self.unlabeled = not known

    def __len__(self) -> int:
        return len(self.records)

    def name(self, index: int) -> str:
        """Return the file's name, below its folder."""
        return self.records[index].name

    def where(self, index: int) -> str:
        """Return the path of the file; of an image within a file both names."""
        record = self.records[index]
        whole = not record.offset and record.size is None and not record.frame
        return str(record.path) if whole else f"{record.name} in {record.path}"

    def load(self, index: int) -> Sample:
        """Read the bytes of one image, and decode them."""
        try:
            content = self._content(index)
            if content.startswith(ARRAY_MAGIC):
                image: Any = image_of_array(read_array(io.BytesIO(content), self.name(index), Unreadable))
            else:
                image = decoded_picture(io.BytesIO(content), "RGB", self.records[index].frame)
        except Unreadable as error:
            raise Unreadable(error.what, where=self.where(index), hint=error.hint) from error
        return Sample(image, self.records[index].label)

    def _content(self, index: int) -> bytes:
        record = self.records[index]
        return read_content(record.path, record.offset, record.size)

    def identity(self) -> dict[str, Any]:
        """Return kind, classes and numbers, and digests of names, labels, sizes and contents."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        sizes = [record.path.stat().st_size if record.size is None else record.size for record in self.records]
        labels = [-1 if record.label is None else record.label for record in self.records]
        return {
            "kind": self.kind,
            "images": len(self),
            "classes": None if self.unlabeled else counts(labels, self.classes),
            "names": digest_of_data([record.name for record in self.records]),
            "labels": digest_of_data(labels),
            "sizes": digest_of_data(sizes),
            "contents": digest_of(self._bytes(index) for index in sampled(sizes, labels)),
        }

    def _bytes(self, index: int) -> bytes:
        try:
            return self._content(index)
        except Unreadable:  # it is listed when all are read
            return b"unreadable"

    def check_classes(self, outputs: int) -> None:
        """Refuse folders that are fewer or more than the network's classes: counting them would give wrong labels."""
        if self._sorted_classes is not None and self._sorted_classes != outputs:
            raise UsageError(
                f"there are {self._sorted_classes} folders of classes, and the network has {outputs} classes: which "
                "is which cannot be told from the order of their names",
                hint="name the folders by class index (0, 1, ...), or give class names with --classes",
            )
        super().check_classes(outputs)


class ArraySource(ImageSource):
    """Samples (N, ...) in one tensor or array, alone or with a label each.

    Args:
        samples: images (N, C, H, W), in an array also (N, H, W, C): bytes, or numbers in [0, 1]; or other samples.
        labels: (N,) class indices; or numbers that outputs are to meet, (N,) or (N, ...).
        name: of the samples, for errors.
        classes: names of the classes.

    Raises:
        UsageError: there are no samples, labels do not fit, or an array does not hold numbers.
    """

    def __init__(
        self, samples: Any, labels: Any = None, *, name: str = "the tensor", classes: Sequence[str] | None = None
    ) -> None:
        self._name, self.classes = name, tuple(classes or ())
        self._samples = samples
        if not len(samples):
            raise UsageError(f"there are no images in {name}, of shape {tuple(samples.shape)}")
        targets = None if labels is None else torch.as_tensor(labels)
        if targets is not None and (not targets.dim() or len(samples) != len(targets)):
            raise UsageError(
                f"images {tuple(samples.shape)} and labels {tuple(targets.shape)} of {targets.dtype} do not fit",
                hint="give (N, C, H, W) and (N,) class indices, or (N, ...) numbers for a loss that reads such",
            )
        classed = targets is not None and targets.dim() == 1 and not targets.is_floating_point()
        self.labels = targets.tolist() if targets is not None and classed else None
        self.unlabeled = targets is None
        self._numbers = None if targets is None or classed else targets.detach().float()
        self.own_shape()  # an array that holds no numbers is found out here

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> Sample:
        """Return one sample."""
        image = self._samples[index]
        if not isinstance(image, Tensor):
            try:
                image = image_of_array(np.asarray(image), sample=True)
            except Unreadable as error:  # so are all of them
                raise UsageError(error.what, where=self.where(index), hint=error.hint) from error
        label = self._numbers[index] if self._numbers is not None else None
        return Sample(image, self.labels[index] if self.labels is not None else label)

    def where(self, index: int) -> str:
        """Return the place in the array."""
        return f"image {index} of {self._name}"

    def identity(self) -> dict[str, Any]:
        """Return number, classes and shape, and digests of labels and contents."""
        size = int(np.prod(self._samples.shape[1:])) * self._samples.dtype.itemsize
        known = range(len(self)) if self.labels is None else self.labels
        chosen = sampled([size] * len(self), known)
        numbers = list(known) if self._numbers is None else self._numbers.tolist()
        return {
            "kind": "tensors",
            "images": len(self),
            "shape": list(self._samples.shape[1:]),
            "classes": None if self.labels is None else counts(self.labels, self.classes),
            "labels": digest_of_data(numbers),
            "contents": digest_of_tensors([("images", torch.stack([self.load(i).image for i in chosen]))]),
        }
