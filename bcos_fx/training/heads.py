"""Which head a network is trained with: its own, a new one, or its own rows for the classes of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bcos_fx.data.classes import classes_named
from bcos_fx.data.datasets import DatasetSource, StreamSource
from bcos_fx.data.sources import ImageSource, Sample
from bcos_fx.errors import UsageError, check_choice
from bcos_fx.escaping import amount
from bcos_fx.heads.layers import with_classes, with_new_head
from bcos_fx.network import BcosNetwork

HEADS = ("keep", "new", "subset")


class Renumbered(ImageSource):
    """Images whose labels are some of many class indices, counted from 0 instead.

    Raises:
        UsageError: a label is not among them, or the source reads labels together with images.
    """

    def __init__(self, source: ImageSource, indices: Sequence[int]) -> None:
        self._source, self.indices = source, tuple(indices)
        places = {index: place for place, index in enumerate(self.indices)}
        if source.labels is None or isinstance(source, DatasetSource | StreamSource):
            raise UsageError("a head of some classes needs their names", hint="give the dataset a list classes")
        other = next((label for label in source.labels if label not in places), None)
        if other is not None:
            raise UsageError(f"a test image has the label {other}, and no training image", hint="the same classes")
        self.labels: Sequence[int] = [places[label] for label in source.labels]
        self.classes = tuple(map(str, self.indices))

    def __len__(self) -> int:
        return len(self._source)

    def load(self, index: int) -> Sample:
        """Return an image with its new label."""
        return Sample(self._source.load(index).image, self.labels[index])

    def where(self, index: int) -> str:
        """Return where an image is."""
        return self._source.where(index)

    def identity(self) -> dict[str, Any]:
        """Return what identifies these images, as plain data."""
        return self._source.identity()


@dataclass(frozen=True)
class Head:
    """A choice of the head."""

    kind: str = "keep"
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_choice("head", self.kind, HEADS)
        if self.names is not None and self.kind != "subset":
            raise UsageError("class names of the network are for a head of some of its classes", hint="head='subset'")

    def numbered(self, source: ImageSource | None) -> ImageSource | None:
        """Return the images with labels that count from 0, where unnamed labels are indices of classes to keep."""
        if self.kind != "subset" or source is None or source.classes:
            return source
        return Renumbered(source, sorted(set(source.labels or ())))

    def fitted(self, network: BcosNetwork, source: ImageSource | None, seed: int) -> BcosNetwork:
        """Return the network with a head for the classes of the data.

        Raises:
            UsageError: data and head do not fit, or the data has too few classes or images.
        """
        if self.kind == "subset":
            if source is None or not source.classes:
                raise UsageError(
                    "the data does not name its classes, so which rows of the head to keep is not known",
                    hint="name folders by class, WordNet id or index, or put the names into the .npz as classes",
                )
            _count(source)
            return with_classes(network, source.classes, self.names)
        return network if source is None else _with_names(self._of_size(network, source, seed), source)

    def _of_size(self, network: BcosNetwork, source: ImageSource, seed: int) -> BcosNetwork:
        """Where classes have no names, bare labels may leave out some of the network's."""
        outputs, classes = network.class_count(), _count(source)
        if not classes or classes == outputs:
            return network
        if self.kind == "new":
            return with_new_head(network, classes, seed)
        if classes < outputs and not source.classes:
            return network
        raise UsageError(
            f"the data has {amount(classes, 'class')}, and the network {outputs}",
            hint="head='new' gives it a new last layer for them, head='subset' keeps "
            "its rows for classes that it knows; or take the data that it was made for",
        )


def _with_names(network: BcosNetwork, source: ImageSource) -> BcosNetwork:
    """Return the network with the class names of the data, if the data names all classes.

    The network keeps its own names where they mean the same classes in the same order.
    """
    names, outputs = network.record.classes, network.outputs
    if len(source.classes) != outputs:
        return network
    if names and all(place in classes_named(name, names) for place, name in enumerate(source.classes)):
        return network
    return network.with_record(classes=tuple(source.classes))


def _count(source: ImageSource) -> int:
    labels = source.labels
    if labels is None:
        return len(source.classes)  # labels, if there are any, are only known when they are read
    count = len(source.classes) or max(labels) + 1
    if count < 2 or len(set(labels)) < 2:
        raise UsageError(
            "all images are of one class, which teaches a network nothing",
            hint="one folder per class, two or more",
        )
    empty = sorted(set(range(len(source.classes))) - set(labels))
    if empty:
        shown = ", ".join(repr(source.classes[index]) for index in empty[:5]) + (", ..." if len(empty) > 5 else "")
        raise UsageError(
            f"there are {amount(len(labels), 'image')} of {count} classes, and none of {len(empty)} of them: {shown}",
            hint="give every class an image at least, or leave it out",
        )
    return count
