"""Stability: how far a map may move when the image hardly does.

Max-sensitivity (Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019, sec. 4): the largest
‖map(x + δ) - map(x)‖ / ‖map(x)‖ over ‖δ‖∞ <= r, by random δ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bcos_fx.errors import UsageError, check_count
from bcos_fx.evaluation.measured import Measured, maps_of
from bcos_fx.lazy import check_installed
from bcos_fx.methods.checks import check_images, check_targets
from bcos_fx.methods.method import Method


def stability(
    method: Method, images: Tensor, targets: Tensor, *, radius: float = 0.02, samples: int = 10, seed: int = 0
) -> Measured:
    """Measure the max-sensitivity of a method's maps, >= 0: 0 for maps that do not change; by captum.

    Args:
        method: the method.
        images: (N, C, H, W) in [0, 1]; what they are changed to is kept in [0, 1] too.
        targets: (N, K) class indices.
        radius: the largest change of a value, > 0.
        samples: random changes of each image; the more, the larger the maximum that is found.
        seed: of the changes.

    Raises:
        UsageError: something is not of that form.
        MissingExtraError: captum is not installed.
    """
    check_installed("captum", "evaluate", "measuring stability")
    from captum.metrics import sensitivity_max

    images = check_images(images)
    targets = check_targets(images, targets)
    check_count("samples", samples)
    if not radius > 0:
        raise UsageError(f"radius is {radius!r}", hint="give a positive number, such as 0.02")
    generator = torch.Generator().manual_seed(seed)

    def changed(given: Tensor) -> Tensor:
        # Drawn on the CPU: a seed gives the same changes on every device.
        noise = (2 * torch.rand(given.shape, generator=generator) - 1).to(given)
        return (given + radius * noise).clamp(0, 1)

    def explained(given: Tensor | tuple[Tensor], target: Tensor) -> Tensor | tuple[Tensor]:
        batch = given[0] if isinstance(given, tuple) else given
        maps = maps_of(method, batch, target)
        # Of a tuple captum expects a tuple; it would take the samples of a tensor for its parts.
        return (maps,) if isinstance(given, tuple) else maps

    # One class at a time: captum takes one norm over all that is explained of an image.
    by_class = [
        sensitivity_max(
            explained,
            images,
            perturb_func=changed,
            n_perturb_samples=samples,
            max_examples_per_batch=len(images),
            target=column,
        )
        for column in torch.split(targets, 1, dim=1)
    ]
    settings = {**method.settings, "radius": radius, "changes": samples}
    return Measured("max-sensitivity", method.name, torch.stack(by_class, 1), settings)
