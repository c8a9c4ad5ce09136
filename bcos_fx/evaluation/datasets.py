"""Any Dataset or DataLoader of torch as a source of labelled images."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from bcos_fx.data.decoding import BROKEN, Unreadable
from bcos_fx.errors import UsageError
from bcos_fx.evaluation.decoding import Frame, to_tensor
from bcos_fx.evaluation.identity import digest_of_items, few
from bcos_fx.evaluation.sources import Sample, Source
from bcos_fx.evaluation.stores import open_source

_FIRST = 16  # items of a stream that are digested
_PAIRS = "a data set gives pairs of (tensor or picture, label), or dicts with image and label"


def source_of(data: object) -> Source:
    """Return a source for a path, a map-style or iterable data set, or a loader of one; a source comes back itself.

    A loader is taken for its data set, in the data set's own order.

    Raises:
        UsageError: it is none of these, or a loader that leaves images out.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str | os.PathLike):
        return open_source(data)
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, IterableDataset):
        return Streamed(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):
        return Items(cast("Dataset[Any]", data))
    raise UsageError(
        f"this holds no labelled images: {type(data).__name__}",
        hint="give a path, a torch Dataset or DataLoader, or what bcos_fx.evaluation.open_source returns",
    )


def _of_loader(loader: DataLoader[Any]) -> Source:
    if isinstance(loader.dataset, IterableDataset):
        # Batches may hold less than the data set: what the loader gives is what counts.
        return Streamed(loader, batched=loader.batch_size is not None)
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler) or loader.batch_size is None:
        raise UsageError(
            f"the loader takes images by a {type(loader.sampler).__name__} of its own, which leaves open which",
            hint="give the data set, or torch.utils.data.Subset(dataset, indices)",
        )
    collate: Callable[[list[Any]], Any] = loader.collate_fn
    return Items(loader.dataset, one=lambda item: _first(collate([item])))


def _first(batch: Any) -> Any:
    """The only item of a batch of one."""
    if isinstance(batch, Mapping):
        return {name: values[0] for name, values in batch.items()}
    return [values[0] for values in batch]


def _pair(item: Any, name: str) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        if not {"image", "label"} <= item.keys():
            raise UsageError(f"{name} has the keys {', '.join(map(str, item))}", hint=_PAIRS)
        return item["image"], item["label"]
    if isinstance(item, Sequence) and len(item) >= 2:
        return item[0], item[1]
    raise UsageError(f"{name} is a {type(item).__name__}", hint=_PAIRS)


def _shape(items: Iterator[Any]) -> tuple[int, ...] | None:
    """The shape of the first image, if it is a tensor."""
    for item in items:
        image, _ = _pair(item, "the first item")
        return tuple(image.shape) if isinstance(image, Tensor) else None
    return None


def _sample(item: Any, frame: Frame, name: str) -> Sample:
    image, label = _pair(item, name)
    if isinstance(label, Tensor) and label.numel() > 1:
        raise UsageError(f"{name} has a label of shape {tuple(label.shape)}", hint="give one class index per image")
    try:
        number = int(label)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} has the label {label!r}", hint="give one class index per image") from error
    return Sample(to_tensor(image, frame, name), number)


def _description(data: Any, images: int, classes: tuple[str, ...] | None, contents: str | None) -> dict[str, Any]:
    named = None if classes is None else list(classes)
    return {"kind": type(data).__name__, "images": images, "classes": named, "contents": contents}


class Items(Source):
    """A map-style data set.

    Args:
        dataset: with ``len`` and an index.
        one: what is done to an item, as a loader's collation.
    """

    def __init__(self, dataset: Dataset[Any], *, one: Callable[[Any], Any] = lambda item: item) -> None:
        self.dataset, self._one = dataset, one
        known = getattr(dataset, "classes", None)
        if isinstance(known, list | tuple) and all(isinstance(name, str) for name in known):
            self.classes = tuple(known)

    def __len__(self) -> int:
        return len(cast("Sized", self.dataset))

    def read(self, index: int, frame: Frame) -> Sample:
        """Ask the data set for an item."""
        try:
            item = self._one(self.dataset[index])
        except BROKEN as error:
            raise Unreadable(f"the data set raised {type(error).__name__}: {error}") from error
        return _sample(item, frame, self.name(index))

    def own_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the first image, if it is a tensor."""
        return _shape(self._one(self.dataset[index]) for index in range(min(1, len(self))))

    def identity(self) -> dict[str, Any]:
        """Return the data set's type, length and classes, and a digest of some items."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return _description(self.dataset, len(self), self.classes, self._contents())

    def _contents(self) -> str | None:
        return digest_of_items(lambda: map(self._item, few(len(self))))

    def _item(self, index: int) -> Any:
        try:
            return self._one(self.dataset[index])
        except BROKEN:  # it is listed when all are read
            return "unreadable"


class Streamed(Source):
    """An iterable data set, or a loader of one: walked through from the beginning, once for each use.

    Images that are wanted in any order are put aside in a temporary file.

    Args:
        data: iterable anew, in the same order each time.
        batched: it gives batches of images and labels.
    """

    def __init__(self, data: Any, *, batched: bool = False) -> None:
        self.data, self._batched = data, batched
        self._length: int | None = None
        self._next = 0
        self._walk: Iterator[Any] = iter(())
        self._aside: dict[int, tuple[int, int]] = {}  # index -> place in the file, label
        self._frame: Frame | None = None
        self._file = tempfile.TemporaryFile()
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self._items())
        return self._length

    def _items(self) -> Iterator[Any]:
        if not self._batched:
            yield from self.data
            return
        for batch in self.data:
            values = list(batch.values()) if isinstance(batch, Mapping) else batch
            for place in range(len(values[0])):
                if isinstance(batch, Mapping):
                    yield {name: part[place] for name, part in batch.items()}
                else:
                    yield [part[place] for part in batch]

    def read(self, index: int, frame: Frame) -> Sample:
        """Return an image that was put aside, or walk on to it."""
        if index in self._aside and frame == self._frame:
            return self._put_aside(index, frame)
        if index < self._next:
            self._next, self._walk = 0, iter(())
        if self._next == 0:
            self._walk = self._items()
        for item in self._walk:
            self._next += 1
            if self._next == index + 1:
                return _sample(item, frame, self.name(index))
        raise UsageError(
            f"the data set ended after {self._next} images, and had {len(self)} before",
            hint="it has to give the same images each time that it is walked through",
        )

    def _put_aside(self, index: int, frame: Frame) -> Sample:
        place, label = self._aside[index]
        shape = (frame.channels, *frame.size)
        self._file.seek(place)
        content = bytearray(self._file.read(4 * torch.Size(shape).numel()))
        return Sample(torch.frombuffer(content, dtype=torch.float32).reshape(shape), label)

    def prepare(self, indices: Sequence[int], frame: Frame) -> None:
        """Walk through once, and put these images aside."""
        self._aside, self._frame = {}, None
        wanted = sorted(set(indices))
        self._file.seek(0)
        self._file.truncate()
        for index in wanted:
            image, label = self.read(index, frame)
            self._aside[index] = self._file.tell(), label
            self._file.write(image.contiguous().numpy().tobytes())
        self._frame = frame

    def own_shape(self) -> tuple[int, ...] | None:
        """Return the shape of the first image, if it is a tensor."""
        return _shape(self._items())

    def identity(self) -> dict[str, Any]:
        """Return the data set's type and length, and a digest of the first items: others cost a walk to them."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        contents = digest_of_items(lambda: itertools.islice(self._items(), _FIRST))
        return _description(getattr(self.data, "dataset", self.data), len(self), self.classes, contents)
