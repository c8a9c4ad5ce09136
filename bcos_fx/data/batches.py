"""Batches of images as a network takes them; what cannot be read is left out and listed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bcos_fx.data.arrays import image_of_array
from bcos_fx.data.datasets import source_of
from bcos_fx.data.decoding import Unreadable, note
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.data.sources import ImageSource, Sample
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount


class ReadBatch(NamedTuple):
    """The images of a batch that could be read.

    Attributes:
        indices: of the images in their source.
        samples: with their labels.
        images: (N, C, H, W) in [0, 1].
    """

    indices: list[int]
    samples: list[Sample]
    images: Tensor


class Batches:
    """Images of a source, read in batches as they are asked for.

    Args:
        source: of the images.
        preprocessing: how they become the network's input; None: they are tensors, and are taken as they are.
        batch_size: how many are read at a time.
        count: how many to take, evenly spread, because sources are often in the order of their classes; None: all.

    Attributes:
        parts: the indices of each batch.
        skipped: image -> why it could not be read, for those that were reached so far.
    """

    def __init__(
        self, source: ImageSource, preprocessing: Preprocessing | None, batch_size: int, count: int | None = None
    ) -> None:
        self.source, self._preprocessing = source, preprocessing
        chosen = min(len(source), count or len(source))
        indices = [number * len(source) // chosen for number in range(chosen)]
        self.parts = [indices[first : first + batch_size] for first in range(0, chosen, batch_size)]
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        """Yield images (N, C, H, W), of labeled sources with their labels (N,).

        Raises:
            UsageError: none of the images can be read.
        """
        read = 0
        for batch in filter(None, map(self.read, self.parts)):
            read += len(batch.indices)
            labels = [sample.label for sample in batch.samples]
            indexed = all(isinstance(label, int) for label in labels)
            yield (batch.images, torch.tensor(labels)) if indexed else batch.images
        if not read:
            self.check_readable()

    def check_readable(self) -> None:
        """Refuse a source without a readable image."""
        total = sum(map(len, self.parts))
        if len(self.skipped) == total and self.skipped:
            where, why = next(iter(self.skipped.items()))
            raise UsageError(f"of {amount(total, 'image')} none can be read: {why}", where=where)

    def read(self, indices: Iterable[int]) -> ReadBatch | None:
        """Read some images; None where none of them can be read.

        Raises:
            UsageError: one does not fit the network, or has another size than the others.
        """
        read, samples = [], []
        for index in indices:
            try:
                samples.append(self.source.read(index, self._preprocessing))
                read.append(index)
            except Unreadable as error:
                self.skipped[self.source.name(index)] = error.what
        return ReadBatch(read, samples, stacked([s.image for s in samples], self.source, read)) if read else None


def prepared(images: object, preprocessing: Preprocessing) -> Tensor:
    """Return images (N, C, H, W) in [0, 1] as a network takes them.

    Args:
        images: a path, a picture, an array or tensor of one image or several (N, ...), or a list of these.
        preprocessing: how they become the network's input.

    Raises:
        Unreadable: a file is not an image, or its values have no known range.
        UsageError: something is not an image, or does not fit the network.
    """
    tensors: list[Tensor] = []
    for place, image in enumerate(images if isinstance(images, list | tuple) else [images]):
        if isinstance(image, str | os.PathLike) or getattr(image, "ndim", 0) == 4:
            source = source_of(image)
            tensors += [source.read(index, preprocessing).image for index in range(len(source))]
        else:
            single = image_of_array(image) if isinstance(image, np.ndarray) else image
            tensors.append(preprocessing(single, f"image {place}"))
    if not tensors:
        raise UsageError("there are no images", hint="give a path, a picture, an array, or a list of these")
    return torch.stack(tensors)


def stacked(images: Sequence[Tensor], source: ImageSource, indices: Sequence[int]) -> Tensor:
    """Return images (N, ...) of images (...) of one size.

    Raises:
        UsageError: one has another size than the first.
    """
    for index, image in zip(indices, images, strict=True):
        if image.shape != images[0].shape:
            raise UsageError(
                f"{source.where(index)} has the shape {tuple(image.shape)}, and the first {tuple(images[0].shape)}",
                hint="bring all images to one size",
            )
    return torch.stack(list(images))


def enlarged(source: ImageSource, preprocessing: Preprocessing) -> str | None:
    """Describe images of half the network's size or less, which it may have been trained at; None for larger ones."""
    try:
        first = source.load(0).image if len(source) else None
    except Unreadable:  # it is listed when all are read
        return None
    if not isinstance(first, Image.Image):
        return None
    # Below half the size resizing invents more pixels than it takes, so that the network sees blur.
    width, height = first.size
    if preprocessing.height < 2 * height or preprocessing.width < 2 * width:
        return None
    return (
        f"images are enlarged: the first has {width}x{height} pixels, and the network was converted for "
        f"{preprocessing.width}x{preprocessing.height}; if it was trained on the smaller ones, convert it with "
        f"--input-shape {preprocessing.channels},{height},{width}"
    )


def note_enlarged(source: ImageSource, preprocessing: Preprocessing) -> None:
    """Log :func:`enlarged` as a note, once."""
    text = enlarged(source, preprocessing)
    if text is not None:
        note(text)
