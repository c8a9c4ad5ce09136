"""Sparsity: how much of a map stands in how few pixels, as the Gini index of its absolute values.

Chalasani et al., "Concise Explanations of Neural Networks using Adversarial Training", ICML 2020, sec. 4; Hurley and
Rickard, "Comparing Measures of Sparsity", 2009, sec. II.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bcos_fx.evaluation.measured import Measured, maps_of
from bcos_fx.methods.checks import check_images, check_targets
from bcos_fx.methods.method import Method


def gini(maps: Tensor) -> Tensor:
    """Return the Gini index (...) of maps (..., H, W): 0 where all pixels weigh the same, 1 - 1/d where one of d does.

    G = 1 - 2 Σ_k |v|_(k) / ‖v‖₁ · (d - k + 1/2) / d, for the absolute values in ascending order, k = 1 ... d. A map of
    zeros has none: NaN.
    """
    ordered = maps.detach().double().abs().flatten(-2).sort(-1).values
    pixels = ordered.shape[-1]
    ranks = torch.arange(1, pixels + 1, dtype=ordered.dtype, device=ordered.device)
    shares = ordered / ordered.sum(-1, keepdim=True)
    return 1 - 2 * (shares * (pixels - ranks + 0.5) / pixels).sum(-1)


def sparsity(method: Method, images: Tensor, targets: Tensor) -> Measured:
    """Measure the sparsity of a method's maps, in [0, 1).

    Args:
        method: the method.
        images: (N, C, H, W) in [0, 1].
        targets: (N, K) class indices.

    Raises:
        UsageError: images, targets or the method's maps are not of that form.
    """
    images = check_images(images)
    targets = check_targets(images, targets)
    maps = maps_of(method, images, targets)
    return Measured("Gini index", method.name, gini(maps), method.settings)
