"""Images from anything: paths, tensors, arrays, and any Dataset or DataLoader of torch."""

from __future__ import annotations

import functools
import itertools
import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from bcos_fx.data.arrays import image_of_array
from bcos_fx.data.classes import classes_named
from bcos_fx.data.decoding import BROKEN, Unreadable
from bcos_fx.data.sources import ArraySource, ImageFiles, ImageSource, Sample
from bcos_fx.data.stores import open_source
from bcos_fx.errors import UsageError
from bcos_fx.identity import counts, digest_of_data, digest_of_items, few
from bcos_fx.seeding import derived, preserved, seed_host

_FIRST = 16  # items of a stream that are digested
_ITEMS = "a data set gives images (tensors, arrays or pictures), pairs (image, label), or dicts with image and label"
_FORMS = (
    "give a path, images or (images, labels) in tensors or arrays, or a torch Dataset or DataLoader of (image, label)"
)


def source_of(data: object, *, classes: Sequence[str] | None = None) -> ImageSource:
    """Return a source of images; a source itself comes back as it is.

    Args:
        data: a path or several, as :func:`bcos_fx.data.stores.open_source` takes them; samples (N, ...) in a tensor or
            an array, or a pair of them and labels; a data set with or without a length, or a loader of one, which is
            taken for its data set, in the data set's own order.
        classes: names of the network's classes, for paths.

    Raises:
        UsageError: another kind of object, no images, or a loader that leaves images out.
    """
    if isinstance(data, ImageSource):
        return data
    if _are_paths(data):
        return open_source(cast("Any", data), classes=classes)
    if _is_array(data):
        return ArraySource(data)
    if _is_pair(data):
        return ArraySource(*cast("Any", data))
    if isinstance(data, DataLoader):
        return _of_loader(data)
    if isinstance(data, IterableDataset):
        return StreamSource(data)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, str | bytes | Mapping):
        return DatasetSource(cast("Dataset[Any]", data))
    raise UsageError(f"images cannot be taken from a {type(data).__name__}", hint=_FORMS)


def source_for(data: object, classes: Sequence[str]) -> ImageSource:
    """Return a source of images whose labels are a network's classes, where both name theirs.

    Folders named after the network's classes get those labels. Names in other words (WordNet ids beside English ones)
    cannot be matched, and labels are then what they are without names.

    Args:
        data: as for :func:`source_of`; a source comes back as it is.
        classes: names of the network's classes, in order; empty where they are not known.

    Raises:
        UsageError: as :func:`source_of`, or the data numbers classes of the same names in another order.
    """
    source = source_of(data)
    matches = [classes_named(name, classes) for name in source.classes]
    same = all(place in hits for place, hits in enumerate(matches))
    if source is data or same or not any(matches):
        return source
    if isinstance(source, ImageFiles) and source.kind == "folder":
        return source_of(data, classes=classes)
    place = next(place for place, hits in enumerate(matches) if place not in hits)
    expected = repr(classes[place]) if place < len(classes) else f"none of {len(classes)}"
    raise UsageError(
        f"the data and the network number their classes differently: {place} is {source.classes[place]!r} in the data "
        f"and {expected} in the network",
        hint="number the labels as the network does, or give a folder with a folder per class, found by its name",
    )


def unmatched(source: ImageSource, classes: Sequence[str]) -> str | None:
    """Describe the class names of data and network if they have none in common; None if they do."""
    if not classes or not source.classes or any(classes_named(name, classes) for name in source.classes):
        return None
    return (
        f"no class of the data has a name of the network's (0 is {source.classes[0]!r} in the data and {classes[0]!r} "
        "in the network): labels are taken by their number"
    )


def is_data(data: object) -> bool:
    """Return whether something is images in a form of this package and not batches, which two tensors could be."""
    if _is_pair(data):
        images, labels = cast("Any", data)
        return bool(labels.ndim < images.ndim)
    return isinstance(data, ImageSource | Dataset) or _are_paths(data) or _is_array(data)


def _are_paths(data: object) -> bool:
    several = data if isinstance(data, list | tuple) else [data]
    return len(several) > 0 and all(isinstance(path, str | os.PathLike) for path in several)


def _is_pair(data: object) -> bool:
    return isinstance(data, tuple) and len(data) == 2 and all(map(_is_array, data))


def _is_array(data: object) -> bool:
    return isinstance(data, Tensor | np.ndarray) and data.ndim > 0


def _of_loader(loader: DataLoader[Any]) -> ImageSource:
    if isinstance(loader.dataset, IterableDataset):
        # Batches may hold less than the data set: what the loader gives is what counts.
        return StreamSource(loader, batched=loader.batch_size is not None)
    if not isinstance(loader.sampler, SequentialSampler | RandomSampler) or loader.batch_size is None:
        raise UsageError(
            f"the loader takes images by a {type(loader.sampler).__name__} of its own, which leaves open which",
            hint="give the data set, or torch.utils.data.Subset(dataset, indices)",
        )
    # What a loader's collation does to an item (a dict taken apart, say) belongs to the data.
    collate: Callable[[list[Any]], Any] = loader.collate_fn
    return DatasetSource(loader.dataset, one=lambda item: next(_unbatched(collate([item]))))


def _unbatched(batch: Any) -> Iterator[Any]:
    """Yield the items of a batch."""
    if isinstance(batch, Mapping):
        yield from (dict(zip(batch, parts, strict=True)) for parts in zip(*batch.values(), strict=True))
    elif isinstance(batch, Tensor):
        yield from batch
    else:
        yield from (list(parts) for parts in zip(*batch, strict=True))


def _sample(item: Any, name: str) -> Sample:
    """Take an item apart: an image, alone or with a label."""
    label = None
    if isinstance(item, Mapping):
        if "image" not in item:
            raise UsageError(f"{name} has the keys {', '.join(map(str, item))}", hint=_ITEMS)
        item, label = item["image"], item.get("label")
    elif isinstance(item, list | tuple) and len(item):
        item, label = item[0], item[1] if len(item) > 1 else None
    if isinstance(item, np.ndarray):
        item = image_of_array(item, sample=True)
    if not isinstance(item, Tensor | Image.Image):
        raise UsageError(f"{name} is a {type(item).__name__}", hint=_ITEMS)
    return Sample(item, _label(label, name))


def _label(label: object, name: str) -> Any:
    """Convert a label to a class index, a tensor of numbers, or None."""
    if label is None or isinstance(label, int):
        return None if label is None else int(label)
    try:
        values = torch.as_tensor(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"{name} has the label {label!r}", hint="give one class index per image") from error
    return int(values) if values.numel() == 1 and not values.is_floating_point() and values.dim() == 0 else values


class _ItemSource(ImageSource):
    """What data sets with and without a length have in common."""

    dataset: Any

    def _read_class_names(self) -> None:
        known = getattr(self.dataset, "classes", None)
        if isinstance(known, list | tuple) and all(isinstance(name, str) for name in known):
            self.classes = tuple(known)

    def where(self, index: int) -> str:
        """Return the number of the item."""
        return f"item {index} of {type(self.dataset).__name__}"

    def identity(self) -> dict[str, Any]:
        """Return type, number and classes, and digests of labels and of some items as the same draws make them."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        with preserved():
            contents = digest_of_items(self._first_items)
        return {
            "kind": type(self.dataset).__name__,
            "images": len(self),
            "classes": list(self.classes) if self.labels is None else counts(self.labels, self.classes),
            "labels": None if self.labels is None else digest_of_data(list(self.labels)),
            "contents": contents,
        }

    def _first_items(self) -> Iterable[Any]:
        raise NotImplementedError


class DatasetSource(_ItemSource):
    """A data set with a length and an index; what it does to its images itself stays as it is.

    Args:
        dataset: gives an item for an index.
        one: what is done to an item, as a loader's collation.
    """

    def __init__(self, dataset: Dataset[Any], *, one: Callable[[Any], Any] = lambda item: item) -> None:
        self.dataset, self._one = dataset, one
        self._read_class_names()
        targets = getattr(dataset, "targets", None)
        if targets is not None:
            self.labels = [int(target) for target in targets]

    def __len__(self) -> int:
        return len(cast("Sized", self.dataset))

    def load(self, index: int) -> Sample:
        """Return an item of the data set."""
        try:
            item = self._one(self.dataset[index])
        except BROKEN as error:
            what = f"the data set raised {type(error).__name__}: {error}"
            raise Unreadable(what, where=self.where(index)) from error
        return _sample(item, self.where(index))

    def _first_items(self) -> Iterable[Any]:
        for index in few(len(self)):
            seed_host(derived(0, "identity", index))
            try:
                yield self._one(self.dataset[index])
            except BROKEN:  # it is named when it is read
                yield "unreadable"


class _Stored(NamedTuple):
    """Where in a file the values of an image are: of a picture with its mode and size, of a tensor type and shape."""

    place: int
    size: int
    kind: Any
    shape: tuple[int, ...]
    label: Any


class StreamSource(_ItemSource):
    """An iterable data set, or a loader of one: read from the beginning, once for each use.

    Images that are wanted in any order are put aside in a temporary file.

    Args:
        data: gives the same items in the same order each time that it is iterated over.
        batched: it gives batches of images and labels.
    """

    def __init__(self, data: Any, *, batched: bool = False) -> None:
        self.dataset, self._data, self._batched = getattr(data, "dataset", data), data, batched
        self._read_class_names()
        self._length: int | None = None
        self._next = 0
        self._walk: Iterator[Any] = iter(())
        self._aside: dict[int, _Stored] = {}
        self._file = tempfile.TemporaryFile()
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        if self._length is None:
            self._length = sum(1 for _ in self._items())
        return self._length

    def _items(self) -> Iterator[Any]:
        return (item for batch in self._data for item in _unbatched(batch)) if self._batched else iter(self._data)

    def load(self, index: int) -> Sample:
        """Return an image that was put aside, or walk on to it."""
        if index in self._aside:
            return self._put_aside(self._aside[index])
        if index < self._next:
            self._next = 0
        if self._next == 0:
            self._walk = self._items()
        for item in self._walk:
            self._next += 1
            if self._next == index + 1:
                return _sample(item, self.where(index))
        raise UsageError(
            f"the data set ended after {self._next} images, and had {len(self)} before",
            hint="it has to give the same images each time that it is iterated over",
        )

    def _put_aside(self, stored: _Stored) -> Sample:
        # Not by seeking: processes that read images share the place in the file.
        content = bytearray(os.pread(self._file.fileno(), stored.size, stored.place))
        if isinstance(stored.kind, str):
            return Sample(
                Image.frombytes(stored.kind, (stored.shape[0], stored.shape[1]), bytes(content)), stored.label
            )
        return Sample(torch.frombuffer(content, dtype=stored.kind).reshape(stored.shape), stored.label)

    def prepare(self, indices: Sequence[int]) -> None:
        """Read through the data once, and keep these images."""
        for index in sorted(set(indices) - set(self._aside)):
            image, label = self.load(index)
            if isinstance(image, Tensor):
                kind, shape = image.dtype, tuple(image.shape)
                content = image.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            else:
                kind, shape, content = image.mode, image.size, image.tobytes()
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(content)
            self._file.flush()
            self._aside[index] = _Stored(place, len(content), kind, shape, label)

    def _first_items(self) -> Iterable[Any]:
        seed_host(derived(0, "identity", 0))
        return itertools.islice(self._items(), _FIRST)
