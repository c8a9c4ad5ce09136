"""Check what measures and methods are given: images (N, C, H, W) in [0, 1] and classes (N, K), each of them once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bcos_fx.errors import UsageError, check_choice
from bcos_fx.escaping import amount

SCORES = ("softmax", "sigmoid", "logit")
"""What of a class is watched: its probability among all classes, its own probability, or its output as it is."""


def check_images(images: object) -> Tensor:
    """Return the images.

    Raises:
        UsageError: they are not a floating-point tensor (N, C, H, W) with N >= 1, or hold NaN or infinity.
    """
    if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
        given = (
            f"of shape {tuple(images.shape)}, {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise UsageError(f"images are {given}", hint="give a floating-point tensor (N, C, H, W) in [0, 1]")
    if not images.numel():
        raise UsageError(f"there are no images in a tensor of shape {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise UsageError("the images hold NaN or infinity", hint="leave those images out")
    return images.detach()


def check_targets(images: Tensor, targets: object, classes: int | None = None) -> Tensor:
    """Return the targets, (N, K) or (N,) class indices, as indices (N, K) on the images' device.

    Raises:
        UsageError: they are something else, or name no class.
    """
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.dtype == torch.bool:
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise UsageError(f"targets are {kind}", hint="give a tensor of class indices, (N, K) or (N,)")
    indices = targets.unsqueeze(1) if targets.dim() == 1 else targets
    if indices.dim() != 2 or len(indices) != len(images) or not indices.shape[1]:
        raise UsageError(
            f"targets have shape {tuple(targets.shape)} for {amount(len(images), 'image')}",
            hint="give one row of classes per image: (N, K)",
        )
    wrong = indices[(indices < 0) | (indices >= (classes if classes is not None else indices.max() + 1))]
    if wrong.numel():
        known = "" if classes is None else f" of {classes}"
        raise UsageError(f"the target {int(wrong[0])} is not a class{known}", hint="classes are counted from 0")
    return indices.long().to(images.device)


def class_outputs(network: Callable[[Tensor], object], images: Tensor) -> Tensor:
    """Return a network's outputs (N, classes).

    Raises:
        UsageError: the network gives something else.
    """
    outputs = network(images)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(images):
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise UsageError(
            f"the network gives {given} for {amount(len(images), 'image')}, not one row of class outputs each",
            hint="wrap it in a module that returns a tensor (N, classes)",
        )
    return outputs


def check_score(score: str) -> str:
    """Return the name of a score."""
    check_choice("score", score, SCORES)
    return score


def scores(outputs: Tensor, score: str) -> Tensor:
    """Return the scores (N, classes) of a network's outputs (N, classes); see :data:`SCORES`."""
    if check_score(score) == "softmax":
        return outputs.softmax(1)
    return outputs.sigmoid() if score == "sigmoid" else outputs
