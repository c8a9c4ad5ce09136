"""Completeness: how far what a map adds up to is from what it explains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError
from bcos_fx.evaluation.measured import Measured, maps_of
from bcos_fx.explanation.explain import explain
from bcos_fx.methods.checks import check_images, check_targets, class_outputs
from bcos_fx.methods.method import Method


def completeness_residual(
    model: nn.Module, images: Tensor, targets: Tensor, *, batch_size: int | None = None
) -> Measured:
    """Measure |f(x) - Σ contributions - Σ constants| of a dynamic linear network's own explanation.

    The residual is the relative gap of :class:`bcos_fx.explanation.completeness.Sums`: relative to the largest of
    |f(x)|, |Σ contributions| and Σ |constants| (0 where all are 0), so that rounding alone gives about 1e-6 in float32
    and 1e-15 in float64, even where constants cancel.

    Args:
        model: a converted network, or any dynamic linear module on images in [0, 1].
        images: (N, C, H, W) in [0, 1].
        targets: (N, K) class indices.
        batch_size: images that are computed at once; None: as many as fit into memory.

    Raises:
        UsageError: images or targets are not of that form.
        VerificationError: the network is not dynamic linear.
    """
    images = check_images(images)
    targets = check_targets(images, targets)
    gaps = explain(model, images, targets, batch_size=batch_size).sums.relative_gap
    return Measured("completeness residual", "B-cos", gaps, {"relative to": "the largest term"})


def completeness_of(
    method: Method, outputs: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor, reference: Tensor
) -> Measured:
    """Measure |f(x) - f(reference) - Σ map| of any method, relative to |f(x) - f(reference)|.

    For Integrated Gradients and DeepLIFT it is 0 but for their steps and rounding; for others it may be anything.

    Args:
        method: the method.
        outputs: f, from images in [0, 1] to (N, classes).
        images: (N, C, H, W) in [0, 1].
        targets: (N, K) class indices.
        reference: (C, H, W) or (C, 1, 1), what the method compares images with.

    Raises:
        UsageError: something is not of that form.
    """
    images = check_images(images)
    with torch.no_grad():
        there = class_outputs(outputs, images)
        targets = check_targets(images, targets, there.shape[1])
        try:
            # One image stands for all samples: f(reference) is computed once.
            apart = reference.to(images).expand(images.shape[1:]).unsqueeze(0)
        except RuntimeError as error:
            raise UsageError(
                f"the reference has shape {tuple(reference.shape)}, images {tuple(images.shape[1:])}",
                hint="give (C, H, W) or (C, 1, 1)",
            ) from error
        difference = there.gather(1, targets) - class_outputs(outputs, apart)[0][targets]
    maps = maps_of(method, images, targets)
    missed = (difference - maps.sum((2, 3))).abs()
    # Where the outputs are the same nothing was to be added up, and the gap itself is returned.
    values = missed / torch.where(difference != 0, difference.abs(), 1)
    return Measured("completeness residual", method.name, values, method.settings)
