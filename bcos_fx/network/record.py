"""What a converted network keeps beside its weights: what its inputs take, how it was made, what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.errors import UsageError
from bcos_fx.network.facts import Origin, TrainingRun
from bcos_fx.report import Report


@dataclass(frozen=True)
class InputSpec:
    """What one input of the network takes.

    Attributes:
        name: of the placeholder.
        shape: of the example.
        encoded: an image in [0, 1] is expected, and encoded inside.
        matrix, offset: the original network expects matrix @ x + offset per pixel; empty where not encoded.
        samples: the dimension that holds the samples; None where the input is one sample as a whole.
        channel_axis: the dimension that is encoded.
        interpolation, crop_pct: how images are brought to size, where the original recorded it; else None.
    """

    name: str
    shape: tuple[int, ...]
    encoded: bool = False
    matrix: tuple[tuple[float, ...], ...] = ()
    offset: tuple[float, ...] = ()
    samples: int | None = 0
    channel_axis: int = 1
    interpolation: str | None = None
    crop_pct: float | None = None

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return a shape without its number of samples."""
        return tuple(size for place, size in enumerate(shape) if place != self.samples)

    def sample(self, shape: Sequence[int]) -> str:
        """Return a shape in words, with N for the number of samples."""
        return f"({', '.join('N' if place == self.samples else str(size) for place, size in enumerate(shape))})"

    def check_samples(self, axis: int | None) -> None:
        """Check that a dimension may hold the samples: of an encoded image only the one that held the example's.

        Raises:
            UsageError: it may not.
        """
        samples = self.samples or 0
        if self.encoded and axis is not None and axis % len(self.shape) != samples:
            raise UsageError(
                f"the input {self.name!r} is an image {self.sample(self.shape)} with the samples in dimension "
                f"{samples}, and batch_axis is {axis}",
                hint="leave batch_axis= out, or give None to take the batch as a whole",
            )

    def preprocessing(self, shape: tuple[int, ...] | None = None) -> Preprocessing:
        """Return how images become this input: as the original recorded it, else as is usual for ImageNet.

        Args:
            shape: (C, H, W) of one image; None: this input's own.

        Raises:
            UsageError: the input is not an image with 1 or 3 channels.
        """
        return Preprocessing.of(
            self.sizes(self.shape) if shape is None else shape,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            in_unit_range=self.encoded,
        )

    def original(self, x: Tensor) -> Tensor:
        """Return what the original network expects in place of ``x`` (N, ...), its channels in ``channel_axis``."""
        if not self.encoded:
            return x
        matrix = torch.tensor(self.matrix, dtype=torch.float64).to(x)
        offset = torch.tensor(self.offset, dtype=torch.float64).to(x)
        shifted = x.movedim(self.channel_axis, -1) @ matrix.mT + offset
        return shifted.movedim(-1, self.channel_axis).contiguous()

    def described(self) -> str:
        """Say in words what the network takes."""
        shape = self.sample(self.shape)
        return f"{shape}, an image in [0, 1], encoded inside" if self.encoded else f"{shape}, as the original takes it"


@dataclass(frozen=True)
class Guard:
    """A value that tracing took from a shape: the graph holds only for inputs that give the same."""

    kind: str
    value: str
    source: str

    def __str__(self) -> str:
        return f"{self.source} ({self.kind} was {self.value})"


@dataclass(frozen=True)
class Record:
    """What a converted network knows about itself; plain data, kept with the weights.

    Attributes:
        report: what was done and measured.
        inputs: one entry per input, in order.
        guards: what tracing took from shapes.
        train_difference: where the original's train graph differs from the eval graph, or None.
        train: ``refuse`` to train such a network, or train the ``eval-graph``.
        classes: names of the outputs, in order; empty where they are not known.
        training: how it was fine-tuned, the latest run last.
        origin: which network was converted, where that is known.
    """

    report: Report
    inputs: tuple[InputSpec, ...]
    guards: tuple[Guard, ...] = ()
    train_difference: str | None = None
    train: str = "refuse"
    classes: tuple[str, ...] = ()
    training: tuple[TrainingRun, ...] = ()
    origin: Origin | None = None
