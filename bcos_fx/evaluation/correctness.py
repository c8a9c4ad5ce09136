"""Accuracy, agreement with the original network, and calibration, for any labeled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bcos_fx.display import Displayed
from bcos_fx.errors import check_choice
from bcos_fx.escaping import amount
from bcos_fx.evaluation.measured import bootstrap
from bcos_fx.evaluation.predictions import predict
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import CONFIDENCES, Prediction
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.lazy import check_installed

BINS = 15
"""Bins of the calibration error (Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.1)."""


@dataclass(frozen=True, repr=False)
class Accuracy(Displayed):
    """How often a network is right, and how well its confidence is calibrated.

    Attributes:
        images: how many were read.
        top1: share of images whose label has the largest output, in [0, 1].
        top5: whose label is among the five largest; 1 by definition where there are no more classes.
        interval: 95 % bootstrap interval of ``top1``.
        agreement: share of images on which the original network predicts the same class; None: not compared.
        original_top1: share of images on which the original network is right; None: not compared.
        calibration_error: expected calibration error, in [0, 1].
        confidence: what it was computed of, ``softmax`` or ``sigmoid``.
        unreadable: name -> reason of images that could not be read.
    """

    images: int
    top1: float
    top5: float
    interval: tuple[float, float]
    agreement: float | None
    original_top1: float | None
    calibration_error: float
    confidence: str
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def brief(self) -> list[str]:
        """Return the figures in a line."""
        low, high = self.interval
        line = f"Accuracy: top-1 {self.top1:.4f} (95 % in {low:.4f} to {high:.4f}), top-5 {self.top5:.4f}"
        if self.agreement is not None and self.original_top1 is not None:
            line += f", the original's top-1 {self.original_top1:.4f}, agreement {self.agreement:.4f}"
        left_out = f", {len(self.unreadable)} could not be read" if self.unreadable else ""
        return [f"{line}, calibration error {self.calibration_error:.4f} on {amount(self.images, 'image')}{left_out}"]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {**vars(self), "interval": list(self.interval), "unreadable": dict(self.unreadable)}


def accuracy(
    model: nn.Module,
    dataset: object,
    *,
    original: nn.Module | None = None,
    confidence: str = "softmax",
    batch_size: int = 32,
    shape: tuple[int, int, int] | None = None,
) -> Accuracy:
    """Measure how often a network is right, how often it agrees with the original, and how well it is calibrated.

    Args:
        model: a converted network, or another classifier of images in [0, 1], in eval mode.
        dataset: a path (see :func:`bcos_fx.evaluation.open_source`), Dataset or DataLoader of labeled images.
        original: a network to compare with, as a function of the same images in [0, 1].
        confidence: what the calibration error reads: ``softmax``, or ``sigmoid`` of the largest output for networks
            trained with binary cross-entropy.
        batch_size: images at once.
        shape: (C, H, W) that files are brought to; None: the converted network's own.

    Raises:
        UsageError: data or network do not fit; names the image, or what of the network.
        MissingExtraError: torchmetrics is not installed.
    """
    task = task_of(model, dataset, original=original, shape=shape)
    outcome = predict(task, Runner(), batch_size=batch_size)
    return judged_accuracy(outcome.predictions, confidence=confidence, unreadable=outcome.unreadable)


def judged_accuracy(
    predictions: Sequence[Prediction], *, confidence: str = "softmax", unreadable: Mapping[str, str] | None = None
) -> Accuracy:
    """Return the figures for predictions that are there already; raises as :func:`accuracy`."""
    right = np.array([float(p.predicted == p.label) for p in predictions])
    same, original_right = None, None
    # The original ran on all images or on none.
    if predictions[0].original is not None:
        same = float(np.mean([p.predicted == p.original for p in predictions]))
        original_right = float(np.mean([p.label == p.original for p in predictions]))
    return Accuracy(
        images=len(predictions),
        top1=float(right.mean()),
        top5=float(np.mean([p.among_five for p in predictions])),
        interval=bootstrap(right),
        agreement=same,
        original_top1=original_right,
        calibration_error=_calibration_error(predictions, right, confidence),
        confidence=confidence,
        unreadable=dict(unreadable or {}),
    )


def _calibration_error(predictions: Sequence[Prediction], right: npt.NDArray[np.float64], confidence: str) -> float:
    """Return Σ over bins of confidence: share of images · |accuracy - mean confidence|."""
    check_choice("confidence", confidence, CONFIDENCES)
    check_installed("torchmetrics", "evaluate", "the calibration error")
    from torchmetrics.functional.classification import binary_calibration_error

    confidences = [p.sigmoid if confidence == "sigmoid" else p.probability for p in predictions]
    # Of several classes only the predicted one counts, so this is the error of a binary question: is it right?
    error = binary_calibration_error(torch.tensor(confidences), torch.from_numpy(right).long(), n_bins=BINS, norm="l1")
    return float(error)
