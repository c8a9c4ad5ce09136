"""Which images form a grid, and in which cells: the two protocols of the Grid Pointing Game.

Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 5; Arya et al., "B-cosification", NeurIPS 2024,
section 4. The published procedure has properties that its papers omit but that its figures depend on: a grid
begins one image after the end of the one before, classes are drawn as long as strictly more than n are left, and
numpy's legacy generator draws them. ``published`` keeps all of it; ``fair`` leaves out what has no reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from bcos_fx.errors import UsageError, check_choice, check_count
from bcos_fx.escaping import amount
from bcos_fx.evaluation.scoring import SMOOTH

CONFIDENCES = ("sigmoid", "softmax")


@dataclass(frozen=True)
class Prediction:
    """What a network predicts for one image.

    Attributes:
        index: of the image in its source.
        label: its class.
        predicted: the class with the largest output.
        logit: that output.
        probability: that class's softmax, in [0, 1].
        among_five: whether the label's output is one of the five largest.
        original: what the original network predicted; None where there is none to compare with.
    """

    index: int
    label: int
    predicted: int
    logit: float
    probability: float
    among_five: bool
    original: int | None = None

    @property
    def sigmoid(self) -> float:
        """Sigmoid of the logit in float32, as the published code has it."""
        return float(torch.tensor(self.logit, dtype=torch.float32).sigmoid())


@dataclass(frozen=True)
class Grid:
    """Images beside each other: number k at row k mod √n, column k div √n.

    Attributes:
        images: n indices into the source.
        labels: their classes, all different; the targets that are explained.
    """

    images: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """How the game is played; see :func:`published` and :func:`fair`.

    Attributes:
        name: of the protocol.
        side: √n: 3 for grids of 3×3.
        grids: how many are wanted; fewer are made where images run out.
        seed: of numpy's legacy generator, which draws the classes.
        confidence: ``sigmoid`` or ``softmax`` of the predicted class.
        threshold: images whose confidence is not above it are left out.
        skipped: images that are passed over between one grid and the next.
        smooth: width in pixels of the box that contributions are averaged over.
        rescaled: cells are images at 1/side of their size, so that a grid is as large as one image.
        windows: grids are explained in overlapping windows of one image's size, for networks of a fixed size.
    """

    name: str
    side: int
    grids: int
    seed: int
    confidence: str
    threshold: float
    skipped: int
    smooth: int = SMOOTH
    rescaled: bool = False
    windows: bool = False

    def __post_init__(self) -> None:
        for name, least in {"side": 1, "grids": 1, "seed": 0, "smooth": 1, "skipped": 0}.items():
            check_count(name, getattr(self, name), least)
        if self.smooth % 2 == 0:
            raise UsageError(f"smooth is {self.smooth!r}", hint="give an odd number of pixels")
        # numpy's legacy generator takes no larger one.
        if self.seed >= 2**32:
            raise UsageError(f"seed is {self.seed!r}", hint="give a number below 2**32")
        check_choice("confidence", self.confidence, CONFIDENCES)
        if not 0 <= self.threshold < 1:
            raise UsageError(f"threshold is {self.threshold!r}", hint="give a confidence in [0, 1)")
        if self.rescaled and self.windows:
            raise UsageError("windows over rescaled cells: the grid is no larger than one image", hint="leave one out")

    @property
    def cells(self) -> int:
        """n, the cells of a grid."""
        return self.side * self.side

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data."""
        return dataclasses.asdict(self)


def published(*, side: int = 3, windows: bool = False, grids: int = 500) -> Protocol:
    """Return the protocol of the papers.

    Correctly classified images with sigmoid(logit) > 0.5, per class by falling confidence. While more than n classes
    have images left, n classes are drawn without repetition (numpy's legacy generator, seed 42) and each adds its next
    image to a list. Grids take n images each from that list, in order; a class that the grid already has is passed
    over; and one image is skipped after each grid.

    Args:
        side: 3 for 3×3, as published for convolutional networks, 2 for 2×2, for vision transformers.
        windows: explain a grid in windows of one image's size, stride half of it, as published for vision transformers.
        grids: how many.
    """
    return Protocol("published", side, grids, 42, "sigmoid", 0.5, skipped=1, windows=windows)


def fair(
    *,
    side: int = 3,
    grids: int = 500,
    seed: int = 42,
    confidence: str = "softmax",
    threshold: float = 0.5,
    smooth: int = SMOOTH,
    rescaled: bool = False,
    windows: bool = False,
) -> Protocol:
    """Return the published protocol without the skipped image, for networks trained with cross-entropy, with choices.

    Args:
        side: √n, any.
        grids: how many at most.
        seed: of the drawing of classes.
        confidence: ``softmax``; ``sigmoid`` for networks trained with binary cross-entropy.
        threshold: in [0, 1): images that are less confident are left out.
        smooth: width in pixels of the averaging box, odd: 15 is published, for cells of 224 pixels.
        rescaled: shrink the images, so that a grid is as large as one image.
        windows: explain a grid in windows of one image's size.
    """
    return Protocol("fair", side, grids, seed, confidence, threshold, 0, smooth, rescaled, windows)


def select(predictions: Sequence[Prediction], protocol: Protocol) -> tuple[Grid, ...]:
    """Make grids of correctly classified images: as many as are wanted or the images suffice for, at least one.

    Raises:
        UsageError: the images do not suffice for one grid; lists what there is.
    """
    ordered = _by_class(predictions, protocol)
    listed = _draw_images(ordered, protocol)
    # A grid may not hold a class twice, so labels are needed where the list is cut.
    labels = {p.index: p.label for p in predictions}
    grids = _cut_into_grids(listed, labels, protocol)
    if not grids:
        raise _too_few(predictions, ordered, protocol)
    return tuple(grids)


def _by_class(predictions: Sequence[Prediction], protocol: Protocol) -> dict[int, list[int]]:
    """Return class -> indices of its correct and confident images, the most confident first."""
    by_label: dict[int, list[Prediction]] = {}
    by_sigmoid = protocol.confidence == "sigmoid"
    for p in predictions:
        if p.predicted == p.label and (p.sigmoid if by_sigmoid else p.probability) > protocol.threshold:
            by_label.setdefault(p.label, []).append(p)
    # Published code sorts by the logit; the sigmoid rounds it, and may change the order.
    key = attrgetter("logit" if by_sigmoid else "probability")
    return {label: [p.index for p in sorted(by_label[label], key=key, reverse=True)] for label in sorted(by_label)}


def _draw_images(ordered: dict[int, list[int]], protocol: Protocol) -> list[int]:
    """Draw the list of images that grids are cut from."""
    waiting = {label: iter(images) for label, images in ordered.items()}
    left = {label: len(images) for label, images in ordered.items()}
    # numpy's legacy generator, as published: the newer one draws other classes from the same seed.
    draw = np.random.RandomState(protocol.seed)
    listed: list[int] = []
    # Strictly more than n, as published, although n classes would suffice.
    while len(left) > protocol.cells:
        for label in draw.choice(sorted(left), size=protocol.cells, replace=False).tolist():
            listed.append(next(waiting[label]))
            left[label] -= 1
            if not left[label]:
                del left[label]
    return listed


def _cut_into_grids(listed: Sequence[int], labels: dict[int, int], protocol: Protocol) -> list[Grid]:
    """Cut the list into grids. Where images are skipped a grid straddles two draws, which may share a class."""
    grids: list[Grid] = []
    place = 0
    while len(grids) < protocol.grids:
        cells: dict[int, int] = {}  # class -> image
        while len(cells) < protocol.cells and place < len(listed):
            cells.setdefault(labels[listed[place]], listed[place])
            place += 1
        if len(cells) < protocol.cells:
            break
        grids.append(Grid(tuple(cells.values()), tuple(cells)))
        # Published: the image after a grid is in no grid.
        place += protocol.skipped
    return grids


def _too_few(predictions: Sequence[Prediction], ordered: dict[int, list[int]], protocol: Protocol) -> UsageError:
    correct = sum(p.predicted == p.label for p in predictions)
    confident = sum(map(len, ordered.values()))
    return UsageError(
        f"the images do not suffice for one grid of {protocol.side}x{protocol.side}: it needs more than "
        f"{protocol.cells} classes with a correctly and confidently classified image, and there are {len(ordered)}",
        where=f"{amount(len(predictions), 'image')}, {correct} classified correctly, {confident} of them with "
        f"{protocol.confidence} > {protocol.threshold:g}",
        hint="give more images, smaller grids, or the protocol fair with a lower threshold"
        if correct
        else "no image is classified correctly: are the labels those of this network, and its images in [0, 1]?",
    )
