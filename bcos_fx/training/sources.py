"""What training adds to sources of images: labels counted from 0, and the identity of a loader."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

from torch.utils.data import DataLoader

from bcos_fx.data.datasets import DatasetSource, StreamSource, source_of
from bcos_fx.data.sources import ImageSource, Sample
from bcos_fx.errors import UsageError


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
        """Return what tells these images from others, as plain data."""
        return self._source.identity()


def identity_of(data: object) -> dict[str, Any] | None:
    """Return what tells images from others, in any form that training takes; None for no images."""
    if data is None:
        return None
    if not isinstance(data, DataLoader):
        return source_of(data).identity()
    batches = {"batches": len(data), "batch size": data.batch_size}
    if isinstance(data.dataset, Sized) and hasattr(data.dataset, "__getitem__"):
        return DatasetSource(data.dataset).identity() | batches
    return {"kind": type(data.dataset).__name__, **batches}
