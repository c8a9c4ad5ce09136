"""Labelled images, read one at a time: where they come from, and how they are told apart from others."""

from __future__ import annotations

import abc
import functools
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from bcos_fx.data.decoding import Unreadable, decoded_picture, read_content
from bcos_fx.errors import UsageError
from bcos_fx.evaluation.decoding import Frame, decoded
from bcos_fx.evaluation.identity import counts, digest_of, digest_of_data, sampled


class Sample(NamedTuple):
    """An image (C, H, W) in [0, 1] with its class."""

    image: Tensor
    label: int


class Source(abc.ABC):
    """Labelled images in a fixed order, of which no more than one is read at a time.

    Attributes:
        classes: names of the classes, by index, where they are known.
    """

    classes: tuple[str, ...] | None = None

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many images there are, readable or not."""

    @abc.abstractmethod
    def read(self, index: int, frame: Frame) -> Sample:
        """Read an image.

        Raises:
            Unreadable: this one cannot be read.
            UsageError: it does not fit the network.
        """

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """What tells these images from others, as plain data; the same on another machine."""

    def name(self, index: int) -> str:
        """What an image is called."""
        return f"image {index}"

    def own_shape(self) -> tuple[int, ...] | None:
        """Return the shape of its images, where they are tensors of one; None where they can be brought to any."""
        return None

    def prepare(self, indices: Sequence[int], frame: Frame) -> None:  # noqa: B027 - most need nothing
        """Get ready to read these images in any order."""

    def check_classes(self, outputs: int) -> None:  # noqa: B027 - labels are checked as they are read
        """Refuse labels that cannot be meant for a network with so many outputs."""

    def class_name(self, label: int) -> str:
        """Return a class's name, or its number."""
        known = self.classes
        return known[label] if known is not None and 0 <= label < len(known) else f"class {label}"


@dataclass(frozen=True)
class Place:
    """Where the bytes of one encoded image lie.

    Attributes:
        name: of the image.
        label: its class.
        path: of the file that holds it.
        offset: of its first byte in that file.
        size: in bytes.
    """

    name: str
    label: int
    path: Path
    offset: int
    size: int


class Files(Source):
    """Encoded images in files: each alone, or many in one file that is read in part.

    Args:
        places: where each image is.
        kind: of the source, for its identity.
        classes: names of the classes.
        sorted_classes: the labels are places in the sorted names of this many folders, and mean nothing else.
    """

    def __init__(
        self,
        places: Sequence[Place],
        kind: str,
        *,
        classes: tuple[str, ...] | None = None,
        sorted_classes: int | None = None,
    ) -> None:
        self.places, self.kind, self.classes = tuple(places), kind, classes
        self._sorted_classes = sorted_classes

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        """Return the file's name, below its folder."""
        return self.places[index].name

    def read(self, index: int, frame: Frame) -> Sample:
        """Read the bytes of one image, and decode them."""
        return Sample(decoded(self._content(index), frame), self.places[index].label)

    def picture(self, index: int) -> Image.Image:
        """Read an image in RGB, of the size that it is stored in.

        Raises:
            Unreadable: this one cannot be read.
        """
        return decoded_picture(self._content(index), "RGB")

    def _content(self, index: int) -> io.BytesIO:
        place = self.places[index]
        try:
            return io.BytesIO(read_content(place.path, place.offset, place.size))
        except Unreadable as error:
            raise Unreadable(error.what, where=place.name, hint=error.hint) from error

    def identity(self) -> dict[str, Any]:
        """Return kind, classes and numbers, and digests of names, labels, sizes and contents."""
        return self._identity

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        sizes, labels = [place.size for place in self.places], [place.label for place in self.places]
        return {
            "kind": self.kind,
            "images": len(self),
            "classes": counts(labels, self.classes),
            "names": digest_of_data([place.name for place in self.places]),
            "labels": digest_of_data(labels),
            "sizes": digest_of_data(sizes),
            "contents": digest_of(self._bytes(index) for index in sampled(sizes, labels)),
        }

    def _bytes(self, index: int) -> bytes:
        try:
            return self._content(index).getvalue()
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
