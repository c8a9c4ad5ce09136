"""Batches of images, in an order and with an augmentation that follow from the seed, the epoch and the image alone.

So a run is the same whatever the number of workers, two processes see together what one sees, and a run that resumes
from a checkpoint draws what it would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from bcos_fx.data.datasets import DatasetSource, StreamSource
from bcos_fx.data.decoding import Unreadable
from bcos_fx.data.preprocessing import Preprocessing, as_picture
from bcos_fx.data.sources import ImageSource
from bcos_fx.errors import UsageError
from bcos_fx.lazy import library
from bcos_fx.seeding import derived, seed_host

_SHIFT = 1 / 8
Transform = Callable[[Any], Any]


@dataclass(frozen=True)
class Broken:
    """An image that cannot be read. Raised in a worker, its error would arrive as a traceback in a string."""

    what: str
    where: str


class Samples(Dataset[Any]):
    """The images of a source as a network takes them, with labels.

    Args:
        source: the images.
        preprocessing: how they become the network's input; None for a network of something else, which is not
            augmented: a recipe's augmentation is one of photographs.
        augment: name of the augmentation, or ``none``. A data set does what it does to its images itself.
        seed: of augmentation.
    """

    def __init__(self, source: ImageSource, preprocessing: Preprocessing | None, augment: str, seed: int) -> None:
        self.source, self._preprocessing, self._seed = source, preprocessing, seed
        self._augment: Transform | None = None
        self._own = isinstance(source, DatasetSource | StreamSource)
        if augment != "none" and preprocessing is not None and not self._own:
            self._augment = _augmentation(augment, preprocessing)
        source.prepare(range(len(source)) if isinstance(source, StreamSource) else ())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """Return (image, label) of (epoch, index), the image alone without a label, or :class:`Broken`."""
        epoch, index = place
        seed_host(derived(self._seed, "image", epoch, index))
        try:
            if self._augment is None or self._preprocessing is None:
                image, target = self.source.read(index, self._preprocessing)
            else:
                image, target = self.source.load(index)
                image = self._preprocessing(self._augment(as_picture(image)), self.source.where(index))
        except Unreadable as error:
            return Broken(error.what, error.where or self.source.where(index))
        # Preprocessing gives float32 or float64, which do not mix in a batch; a data set's own type is its choice.
        image = image if self._own or not image.is_floating_point() else image.float()
        return image if target is None else (image, target)


def _augmentation(name: str, preprocessing: Preprocessing) -> Transform:
    v2 = library("torchvision.transforms.v2", "vision", f"the augmentation {name!r}")

    def sized(image: Any) -> Any:
        return image if isinstance(image, torch.Tensor) else preprocessing.sized(image)

    size = preprocessing.size
    flip = [v2.RandomHorizontalFlip()]
    margin = max(1, round(size[0] * _SHIFT))
    chosen: dict[str, list[Any]] = {
        "flip": [sized, *flip],
        "flip-and-shift": [sized, *flip, v2.RandomCrop(size, padding=margin)],
        "crop-and-flip": [v2.RandomResizedCrop(size, antialias=True), *flip],
        "rand": [v2.RandomResizedCrop(size, antialias=True), *flip, v2.RandAugment(2, 10)],
        "trivial": [sized, v2.TrivialAugmentWide(), *flip],
    }
    gray = [v2.Grayscale()] if preprocessing.channels == 1 else []
    steps: Transform = v2.Compose([*chosen[name], *gray])
    return steps


def collate(items: list[Any]) -> Any:
    """Make a batch; an unreadable image stands for all of it."""
    broken = [item for item in items if isinstance(item, Broken)]
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
        # Fewer images than a batch holds still make one, with the same number in each process.
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
        # A loader, its sampler and its batch sampler may share one generator, which is seeded once.
        for generator in {id(g): g for g in _generators(self.loader)}.values():
            generator.manual_seed(derived(self._seed, "loader", epoch))
        if self._order is not None:
            self._order.epoch, self._order.start = epoch, start
        batches = iter(self.loader)
        # Our own order begins at a place; another's has to be gone through from the beginning.
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


def _readable(batch: object) -> Any:
    if isinstance(batch, Broken):
        raise UsageError(batch.what, where=batch.where, hint="replace it and go on with resume, or begin again")
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


def images_of(samples: Samples, indices: Sequence[int]) -> torch.Tensor:
    """Return some images (N, C, H, W), as the first epoch reads them."""
    batch = _readable(collate([samples[0, index] for index in indices]))
    return batch if isinstance(batch, torch.Tensor) else batch[0]


def testing_loader(samples: Samples, batch_size: int, workers: int) -> Readable:
    """Return all images of a source in their order."""
    return Readable(_loader(samples, Order(len(samples), batch_size, 0, shuffled=False), workers))


def _loader(samples: Samples, order: Order, workers: int) -> DataLoader[Any]:
    batches: Any = order
    return DataLoader(samples, batch_sampler=batches, num_workers=workers, collate_fn=collate)
