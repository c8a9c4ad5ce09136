"""Batches of images, in an order and with an augmentation that follow from the seed, the epoch and the image alone.

So a run is the same whatever the number of workers, two processes see together what one sees, and a run that goes on
from a checkpoint draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from bcos_fx.data import decoding
from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.training.seeding import derived, seed_host
from bcos_fx.training.sources import DatasetSource, Source

# What a photograph loses at each edge: 7/8 of it are kept, as in the usual ImageNet evaluation.
_BLEED = 1 / 16
_SHIFT = 1 / 8
Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read. Raised in a worker, its error would arrive as a traceback in a string."""

    what: str
    where: str


class Samples(Dataset[Any]):
    """The images of a source as a network takes them: (C, H, W) in [0, 1], with labels.

    Args:
        source: the images.
        shape: (C, H, W).
        augment: name of the augmentation, or ``none``.
        seed: of augmentation.
    """

    def __init__(self, source: Source, shape: tuple[int, ...], augment: str, seed: int) -> None:
        self.source, self._shape, self._seed = source, shape, seed
        # A recipe's augmentation is one of photographs; sequences, tables and volumes are taken as they are.
        self._augment = augment != "none" and len(shape) == 3 and shape[0] in (1, 3)
        self._transform: Transform = lambda image: as_tensor(image, shape)
        if self._augment and not isinstance(source, DatasetSource):
            self._transform = _augmentation(augment, shape)

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """Return (image, label) of (epoch, index), the image alone without labels, or :class:`Unreadable`."""
        epoch, index = place
        seed_host(derived(self._seed, "image", epoch, index))
        try:
            found = self.source.read(index)
            if isinstance(self.source, DatasetSource):
                return found
            image = self._transform(found)
            target = self.source.target(index)
            return image if target is None else (image, target)
        except (decoding.Unreadable, *decoding.BROKEN) as error:
            what = error.what if isinstance(error, decoding.Unreadable) else f"an image cannot be read: {error}"
            return Unreadable(what, self.source.name(index))


def as_tensor(image: Any, shape: Sequence[int]) -> Tensor:
    """Return a photograph as (C, H, W) in [0, 1]: cropped and resized, unless it has the size."""
    if isinstance(image, Tensor):
        return image.float()
    channels, height, width = shape
    image = decoding.in_mode(image, "L" if channels == 1 else "RGB")
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, _BLEED)
    pixels = np.array(image, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _augmentation(name: str, shape: Sequence[int]) -> Transform:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision", f"the augmentation {name!r}") from error
    channels, height, width = shape
    flip = [v2.RandomHorizontalFlip()]
    margin = max(1, round(height * _SHIFT))
    chosen: dict[str, list[Any]] = {
        "flip": [_Sized(shape), *flip],
        "flip-and-shift": [_Sized(shape), *flip, v2.RandomCrop((height, width), padding=margin)],
        "crop-and-flip": [v2.RandomResizedCrop((height, width), antialias=True), *flip],
        "rand": [v2.RandomResizedCrop((height, width), antialias=True), *flip, v2.RandAugment(2, 10)],
        "trivial": [_Sized(shape), v2.TrivialAugmentWide(), *flip],
    }
    steps = v2.Compose([*chosen[name], *([v2.Grayscale()] if channels == 1 else [])])
    return lambda image: as_tensor(steps(image), shape)


class _Sized:
    """Brings a photograph to size before it is augmented."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._size = shape[2], shape[1]

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Tensor) or image.size == self._size:
            return image
        return ImageOps.fit(image, self._size, Image.Resampling.BICUBIC, _BLEED)


def collate(items: list[Any]) -> Any:
    """Make a batch; an unreadable image stands for all of it."""
    broken = [item for item in items if isinstance(item, Unreadable)]
    return broken[0] if broken else default_collate(items)


class Order:
    """Which images make which batch: a batch sampler for torch's DataLoader, yielding lists of (epoch, index).

    With several processes, each takes its part of every batch, so that two processes with batches of n see together
    what one process sees in batches of 2n. Training leaves out an incomplete last batch; testing does not.

    Attributes:
        epoch, start: where the next pass begins: the epoch, and how many of its batches to leave out.
    """

    def __init__(self, count: int, batch_size: int, seed: int, *, shuffled: bool) -> None:
        self._count, self._batch, self._seed, self._shuffled = count, batch_size, seed, shuffled
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        whole = self._batch * _rank_and_world()[1]
        return max(1, self._count // whole) if self._shuffled else -(-self._count // whole)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world = _rank_and_world()
        indices: list[int] = list(range(self._count))
        if self._shuffled:
            generator = torch.Generator().manual_seed(derived(self._seed, "order", self.epoch))
            indices = torch.randperm(self._count, generator=generator).tolist()
        size = min(self._batch, max(1, self._count // world)) if self._shuffled else self._batch
        for batch in range(self.start, len(self)):
            whole = indices[batch * self._batch * world :][: size * world]
            mine = whole[rank * size : (rank + 1) * size]
            if mine:
                yield [(self.epoch, index) for index in mine]


def _rank_and_world() -> tuple[int, int]:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class Replayable:
    """A loader of training batches that can go on where it stopped, with the same random numbers.

    The images of a source are not read again; those of a
    DataLoader of the user's own are, as far as they were used.

    Args:
        loader: batches of (images, labels).
        seed: of whatever it draws.
        order: the loader's batch sampler if it is one of ours.
    """

    def __init__(self, loader: DataLoader[Any], seed: int, order: Order | None = None) -> None:
        self.loader, self._seed, self._order = loader, seed, order
        self._epoch, self._given = 0, 0

    def __len__(self) -> int:
        return len(self.loader)

    def place(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were given out."""
        return {"epoch": self._epoch, "given": self._given}

    def go_to(self, place: dict[str, int]) -> None:
        """Begin the next pass at a :meth:`place`."""
        self._epoch, self._given = place["epoch"], place["given"]

    def __iter__(self) -> Iterator[Any]:
        if self._given >= len(self):
            self._epoch, self._given = self._epoch + 1, 0
        return self._batches(self._given)

    def _batches(self, start: int) -> Iterator[Any]:
        epoch = self._epoch
        seed_host(derived(self._seed, "loader", epoch))
        for generator in {id(g): g for g in _generators(self.loader)}.values():
            generator.manual_seed(derived(self._seed, "loader", epoch))
        if self._order is not None:
            self._order.epoch, self._order.start = epoch, start
        batches = iter(self.loader)
        for number in range(0 if self._order is None else start, len(self)):
            seed_host(derived(self._seed, "batch", epoch, number))
            try:
                batch = next(batches)
            except StopIteration:
                return
            if number >= start:
                self._given = number + 1
                yield _readable(batch)


class Readable:
    """A loader of test batches that raises UsageError where an image could not be read."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return map(_readable, self._loader)


def _readable(batch: Any) -> Any:
    if isinstance(batch, Unreadable):
        raise UsageError(batch.what, where=batch.where, hint="mend it and go on with resume, or begin anew without it")
    return batch


def _generators(loader: DataLoader[Any]) -> Iterator[torch.Generator]:
    for holder in (loader, loader.sampler, loader.batch_sampler):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            yield generator


def training_loader(samples: Samples, batch_size: int, seed: int, workers: int) -> Replayable:
    """Return shuffled batches of a source's images."""
    order = Order(len(samples), batch_size, seed, shuffled=True)
    return Replayable(_loader(samples, order, workers), seed, order)


def testing_loader(samples: Samples, batch_size: int, workers: int) -> Readable:
    """Return all images of a source in their order."""
    return Readable(_loader(samples, Order(len(samples), batch_size, 0, shuffled=False), workers))


def _loader(samples: Samples, order: Order, workers: int) -> DataLoader[Any]:
    batches: Any = order
    return DataLoader(samples, batch_sampler=batches, num_workers=workers, collate_fn=collate)
