"""Images to train on: a folder per class, an .npz of JPEG bytes, tensors, any Dataset or DataLoader.

The order of images and their augmentation follow from the seed, the epoch and the image alone, whatever the number of
workers and processes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from bcos_fx.errors import MissingExtraError, UsageError, nearest
from bcos_fx.training.seeding import derived, seed_all

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
# What a photograph loses at each edge: 7/8 of it are kept, as in the usual ImageNet evaluation.
_BLEED = 1 / 16
_SHIFT = 1 / 8
Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be read. Raised in a worker, its error would arrive as a traceback in a string."""

    what: str
    where: str


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
        with Image.open(self._files[index]) as opened:
            return opened.convert("RGB")

    def name(self, index: int) -> str:
        return str(self._files[index])


class NpzSource(Source):
    """JPEG files in one .npz: ``jpeg`` (all bytes), ``offsets`` (n + 1), ``labels``, and ``classes`` (names)."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        try:
            with np.load(path, allow_pickle=False) as found:
                self._bytes, self._offsets = found["jpeg"], found["offsets"]
                self.labels = found["labels"].astype(np.int64)[:limit].tolist()
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
        data = self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes()
        return Image.open(io.BytesIO(data)).convert("RGB")

    def name(self, index: int) -> str:
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
        return self._images[index]

    def name(self, index: int) -> str:
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
        return self._dataset[index]

    def name(self, index: int) -> str:
        return f"item {index} of {type(self._dataset).__name__}"


def source_of(data: Any, limit: int | None = None) -> Source:
    """Return images by number.

    Args:
        data: path of a folder per class or of an .npz; (images, labels); a Dataset of (image, label).
        limit: of an .npz, take the first so many.

    Raises:
        UsageError: there are no images, or it is something else.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        if path.is_dir():
            return FolderSource(path)
        if path.is_file():
            return NpzSource(path, limit)
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
        self._augment = augment != "none"
        self._transform: Transform = lambda image: as_tensor(image, shape)
        if self._augment and not isinstance(source, DatasetSource):
            self._transform = _augmentation(augment, shape)

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """Return (image, label) of (epoch, index), or :class:`Unreadable`."""
        epoch, index = place
        seed_all(derived(self._seed, "image", epoch, index))
        try:
            found = self.source.read(index)
            if isinstance(self.source, DatasetSource):
                return found
            return self._transform(found), self.source.labels[index]
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return Unreadable(f"an image cannot be read: {error}", self.source.name(index))


def as_tensor(image: Any, shape: Sequence[int]) -> Tensor:
    """Return a photograph as (C, H, W) in [0, 1]: cropped and resized, unless it has the size."""
    if isinstance(image, Tensor):
        return image.float()
    channels, height, width = shape
    image = image.convert("L" if channels == 1 else "RGB")
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

    With several processes, each takes its part of every batch, so that two processes with batches of n see together what
    one process sees in batches of 2n. Training leaves out an incomplete last batch; testing does not.

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

    Lightning saves ``state_dict()`` with its checkpoints. The images of a source are not read again; those of a
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

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were given out."""
        return {"epoch": self._epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there at the next pass."""
        self._epoch, self._given = state["epoch"], state["given"]

    def __iter__(self) -> Iterator[Any]:
        if self._given >= len(self):
            self._epoch, self._given = self._epoch + 1, 0
        return self._batches(self._given)

    def _batches(self, start: int) -> Iterator[Any]:
        epoch = self._epoch
        seed_all(derived(self._seed, "loader", epoch))
        for generator in {id(g): g for g in _generators(self.loader)}.values():
            generator.manual_seed(derived(self._seed, "loader", epoch))
        if self._order is not None:
            self._order.epoch, self._order.start = epoch, start
        batches = iter(self.loader)
        for number in range(0 if self._order is None else start, len(self)):
            seed_all(derived(self._seed, "batch", epoch, number))
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
        raise UsageError(batch.what, where=batch.where, hint="take it out, or mend it; then go on with resume")
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


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()
