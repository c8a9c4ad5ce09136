"""Pointing: does a map's evidence lie on the object, as masks or boxes locate it?

- Energy (Wang et al., "Score-CAM", CVPR workshops 2020, sec. 4.3): the share of positive evidence on the object.
- Hit (Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016, sec. 5.1): the largest pixel is on
  it, or at most ``tolerance`` pixels away.
- IoU of the object and what exceeds a share of the largest positive value (Zhou et al., CVPR 2016, sec. 3.2, where the
  share is 0.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from bcos_fx.errors import UsageError, check_count
from bcos_fx.evaluation.measured import Measured, maps_of
from bcos_fx.methods.checks import check_images, check_targets
from bcos_fx.methods.method import Method

_TOLERANCE = 15
_THRESHOLD = 0.2


def boxes_to_masks(boxes: Sequence[Sequence[Sequence[float]]] | Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return masks (N, H, W), true where a pixel's center is inside one of its image's boxes.

    Args:
        boxes: for each image its boxes (left, top, right, bottom) in pixels, from 0 at the image's edge to its size.
        size: (H, W).

    Raises:
        UsageError: an image has no box, or a box no inside.
    """
    height, width = size
    # Pixel k covers [k, k + 1), so its center is at k + 0.5.
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for number, given in enumerate(boxes):
        corners = torch.as_tensor(given, dtype=torch.float64).reshape(-1, 4)
        if not len(corners) or bool((corners[:, :2] >= corners[:, 2:]).any()):
            raise UsageError(
                f"image {number} has the boxes {corners.tolist()}", hint="give (left, top, right, bottom), left < right"
            )
        for left, top, right, bottom in corners.tolist():
            inside_rows, inside_columns = (rows > top) & (rows < bottom), (columns > left) & (columns < right)
            masks[number] |= inside_rows[:, None] & inside_columns
    return masks


def energy(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the share (N, K) in [0, 1] of the positive evidence of maps (N, K, H, W) that masks of that shape hold.

    Where there is no positive evidence the share is 0.
    """
    positive = maps.clamp(min=0)
    total = positive.sum((2, 3))
    return torch.where(total > 0, (positive * masks).sum((2, 3)) / torch.where(total > 0, total, 1), 0)


def hits(maps: Tensor, masks: Tensor, tolerance: int = _TOLERANCE) -> Tensor:
    """Return whether (N, K) the largest pixel of maps (N, K, H, W) is within some pixels of masks of that shape.

    Several largest pixels count by their share of hits: a constant map hits as often as a pixel drawn at random.
    """
    # The published game allows for a margin of pixels around the object.
    near = _grown(masks, tolerance)
    # Several pixels may be largest, as in a constant map, which must not count as a hit.
    largest = maps == maps.amax((2, 3), keepdim=True)
    return (largest & near).sum((2, 3)) / largest.sum((2, 3))


def _grown(masks: Tensor, tolerance: int) -> Tensor:
    """Return the masks with everything within a Euclidean distance in pixels."""
    if not tolerance:
        return masks
    reach = torch.arange(-tolerance, tolerance + 1)
    disc = ((reach[:, None] ** 2 + reach**2) <= tolerance**2).float().to(masks.device)
    flat = masks.flatten(0, 1).unsqueeze(1).float()
    # Convolution counts the pixels of the object in reach; 0.5 lies between none and one, however it is rounded.
    return (F.conv2d(flat, disc[None, None], padding=tolerance) > 0.5).reshape(masks.shape)


def iou(maps: Tensor, masks: Tensor, threshold: float = _THRESHOLD) -> Tensor:
    """Return the intersection over union (N, K) of masks and of what exceeds a share of each map's largest value.

    Where a map (N, K, H, W) has nothing positive it is 0.
    """
    above = (maps > threshold * maps.amax((2, 3), keepdim=True)) & (maps > 0)
    together = (above & masks).sum((2, 3))
    return together / (above | masks).sum((2, 3))


def pointing(
    method: Method,
    images: Tensor,
    targets: Tensor,
    masks: Tensor,
    *,
    tolerance: int = _TOLERANCE,
    threshold: float = _THRESHOLD,
) -> dict[str, Measured]:
    """Measure where a method's maps point.

    Args:
        method: the method.
        images: (N, C, H, W) in [0, 1].
        targets: (N, K) class indices.
        masks: (N, H, W), or (N, K, H, W) where each class has its own: true, or not 0, on the object. For boxes see
            :func:`boxes_to_masks`.
        tolerance: pixels, >= 0, that a hit may be off; 15 as published, for images as large as those.
        threshold: in [0, 1), the share of the largest value that counts as found, for the IoU.

    Returns:
        ``energy``, ``hit`` and ``iou``.

    Raises:
        UsageError: something is not of that form, or a mask is empty.
    """
    images = check_images(images)
    targets = check_targets(images, targets)
    objects = _checked_masks(masks, images, targets)
    check_count("tolerance", tolerance, 0)
    if not 0 <= threshold < 1:
        raise UsageError(f"threshold is {threshold!r}", hint="give a share of the largest value, from 0 to below 1")
    maps = maps_of(method, images, targets)
    measures: dict[str, tuple[str, Tensor, dict[str, object]]] = {
        "energy": ("energy on the object", energy(maps, objects), {}),
        "hit": ("pointing game", hits(maps, objects, tolerance), {"tolerance": tolerance}),
        "iou": ("IoU", iou(maps, objects, threshold), {"threshold": threshold}),
    }
    return {
        key: Measured(name, method.name, values, {**method.settings, **settings})
        for key, (name, values, settings) in measures.items()
    }


def _checked_masks(masks: object, images: Tensor, targets: Tensor) -> Tensor:
    by_class = (*targets.shape, *images.shape[2:])
    by_image = (by_class[0], *by_class[2:])
    if not isinstance(masks, Tensor) or tuple(masks.shape) not in (by_class, by_image):
        given = tuple(masks.shape) if isinstance(masks, Tensor) else type(masks).__name__
        raise UsageError(f"masks are {given}", hint=f"give {by_image}, or {by_class}")
    on = (masks if masks.dim() == 4 else masks.unsqueeze(1)).to(images.device) != 0
    if not bool(on.any((2, 3)).all()):
        empty = int((~on.any((2, 3))).any(1).nonzero()[0])
        raise UsageError(f"the mask of image {empty} is empty", hint="leave images without the object out")
    return on.expand(by_class)
