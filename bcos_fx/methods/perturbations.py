"""Post-hoc methods by perturbation: Occlusion and LIME through captum, and RISE.

They watch a class's probability, as published, unless ``score`` says otherwise. What is hidden takes the reference's
color. Every image is explained alone and with the same seed, so a map does not depend on the batch it was in. The
perturbed images are run once for all K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from bcos_fx.errors import UsageError, check_count
from bcos_fx.methods.checks import check_score, scores
from bcos_fx.methods.explained_network import ExplainedNetwork
from bcos_fx.methods.method import Method

OneImage = Callable[[Tensor, Tensor], Tensor]
"""From one image's differences (1, C, H, W) and its classes (K,) to maps (K, H, W)."""

_WINDOWS = 14


def occlusion(
    explained: ExplainedNetwork,
    *,
    window: int | None = None,
    stride: int | None = None,
    score: str = "softmax",
) -> Method:
    """Return Occlusion (Zeiler and Fergus 2014, sec. 4.2): the mean loss of score over the windows that hide a pixel.

    Args:
        explained: the network.
        window: side of the hidden square in pixels; None: a fourteenth of the image's shorter side.
        stride: from one window to the next, at most ``window``; None: half the window.
        score: what is watched: ``softmax``, ``sigmoid`` or ``logit``.
    """
    from captum.attr import Occlusion

    for name, value in (("window", window), ("stride", stride)):
        if value is not None:
            check_count(name, value)

    def map_of_image(difference: Tensor, classes: Tensor) -> Tensor:
        # All channels of a window are hidden together, so captum moves it over the plane alone.
        channels, *size = difference.shape[1:]
        side = window or max(1, min(size) // _WINDOWS)
        step = stride or max(1, side // 2)
        if side > min(size) or step > side:
            raise UsageError(
                f"windows of {side} pixels, {step} apart, do not cover images of {size[0]} x {size[1]}",
                hint="the window must fit into the image, and the stride into the window",
            )
        watched = _Watched(explained, classes, score)
        method = Occlusion(watched)
        maps = [
            method.attribute(
                difference,
                sliding_window_shapes=(channels, side, side),
                strides=(channels, step, step),
                perturbations_per_eval=explained.at_once(difference),
            ).mean((0, 1))
            for _ in watched.each_class()
        ]
        return torch.stack(maps).to(difference)

    settings = {
        "of": check_score(score),
        "window": f"{window} px" if window else f"1/{_WINDOWS} of the shorter side",
        "stride": f"{stride} px" if stride else "half the window",
    }
    return Method("Occlusion", settings, _by_images(explained, map_of_image))


def lime(
    explained: ExplainedNetwork,
    *,
    seed: int,
    samples: int = 1000,
    patches: int = 8,
    kernel_width: float = 0.25,
    ridge: float = 1.0,
    score: str = "softmax",
) -> Method:
    """Return LIME (Ribeiro et al. 2016, sec. 3): the coefficients of a linear model of the score near the image.

    Segments are square patches. Samples switch each off with probability 1/2, and are weighted by
    exp(-d² / (2 width²)), where d is the cosine distance of their switches to all on; a ridge regression is fitted.
    Kernel, width and ridge are those of the authors' package.

    Args:
        explained: the network.
        seed: of the samples.
        samples: perturbed images.
        patches: segments along each side of the image.
        kernel_width: as above, > 0.
        ridge: weight of the squared coefficients, > 0.
        score: what is watched: ``softmax``, ``sigmoid`` or ``logit``.
    """
    from captum.attr import Lime

    check_count("samples", samples, 2)
    check_count("patches", patches)
    for name, value in (("kernel_width", kernel_width), ("ridge", ridge)):
        if not value > 0:
            raise UsageError(f"{name} is {value!r}", hint="give a positive number")

    def near(original: Tensor, perturbed: Tensor, switches: Tensor, **_: object) -> Tensor:
        distance = 1 - (switches.double().mean()).sqrt()
        return torch.exp(-(distance**2) / (2 * kernel_width**2))

    def map_of_image(difference: Tensor, classes: Tensor) -> Tensor:
        segments = patch_grid(difference.shape[2], difference.shape[3], patches).to(difference.device)
        # Drawn once for all classes, so that the perturbed images are the same and run once.
        drawn = torch.rand(samples, int(segments.max()) + 1, generator=torch.Generator().manual_seed(seed)) < 0.5
        rows: Iterator[Tensor] = iter(())

        def draw(*_: object, **__: object) -> Tensor:
            return next(rows).unsqueeze(0).long().to(difference.device)

        watched = _Watched(explained, classes, score)
        method = Lime(watched, interpretable_model=WeightedRidge(ridge), similarity_func=near, perturb_func=draw)
        maps = []
        for _ in watched.each_class():
            rows = iter(drawn)
            coefficients = method.attribute(
                difference,
                feature_mask=segments.expand(1, difference.shape[1], -1, -1),
                n_samples=samples,
                perturbations_per_eval=explained.at_once(difference),
                return_input_shape=False,
            )
            maps.append(coefficients.flatten().to(difference)[segments])
        return torch.stack(maps)

    settings = {
        "of": check_score(score),
        "samples": samples,
        "segments": f"{patches} x {patches} patches",
        "kernel": f"exp(-d²/(2·{kernel_width}²)), d cosine",
        "model": f"ridge {ridge}",
        "seed": seed,
    }
    return Method("LIME", settings, _by_images(explained, map_of_image))


def rise(
    explained: ExplainedNetwork,
    *,
    seed: int,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    score: str = "softmax",
) -> Method:
    """Return RISE (Petsiuk et al. 2018, sec. 3): S = 1 / (keep · masks) Σ f(x ⊙ m) m, over random smooth masks m.

    Args:
        explained: the network.
        seed: of the masks, which are the same for every image.
        masks: how many; 4000 and 8000 were published.
        cells: of a mask along each side, before it is upsampled.
        keep: probability that a cell is seen, in (0, 1).
        score: f: ``softmax``, ``sigmoid`` or ``logit``.
    """
    check_count("masks", masks)
    check_count("cells", cells)
    if not 0 < keep < 1:
        raise UsageError(f"keep is {keep!r}", hint="give a probability between 0 and 1")

    def map_of_image(difference: Tensor, classes: Tensor) -> Tensor:
        total = difference.new_zeros(len(classes), *difference.shape[2:])
        chunk = explained.at_once(difference)
        for chosen in random_masks(difference.shape[2:], masks, cells, keep, seed, chunk):
            mask = chosen.to(difference)
            with torch.no_grad():
                scored = scores(explained(difference * mask.unsqueeze(1)), score)[:, classes]
            total += torch.einsum("mk,mhw->khw", scored, mask)
        return total / (keep * masks)

    settings = {
        "of": check_score(score),
        "masks": masks,
        "cells": f"{cells} x {cells}",
        "keep": keep,
        "upsampling": "bilinear, shifted at random",
        "seed": seed,
    }
    return Method("RISE", settings, _by_images(explained, map_of_image))


def random_masks(size: tuple[int, ...], count: int, cells: int, keep: float, seed: int, chunk: int) -> Iterator[Tensor]:
    """Yield RISE's masks (m, H, W) in [0, 1], at most ``chunk`` at a time (Petsiuk et al. 2018, sec. 3.2).

    A grid of cells x cells switches is upsampled to (cells + 1) times a cell's size, and cropped at a random shift.
    Masks do not depend on ``chunk``.
    """
    generator = torch.Generator().manual_seed(seed)
    cell = [math.ceil(length / cells) for length in size]
    whole = [(cells + 1) * length for length in cell]
    waiting: list[Tensor] = []
    for number in range(count):
        grid = (torch.rand(1, 1, cells, cells, generator=generator) < keep).float()
        # One shift in [0, cell) each way: the grid of cells leaves no fixed pattern in the sum.
        top, left = (int(torch.randint(length, (1,), generator=generator)) for length in cell)
        smooth = F.interpolate(grid, size=whole, mode="bilinear", align_corners=False)[0, 0]
        waiting.append(smooth[top : top + size[0], left : left + size[1]])
        if len(waiting) == chunk or number + 1 == count:
            yield torch.stack(waiting)
            waiting = []


def patch_grid(height: int, width: int, patches: int) -> Tensor:
    """Return the number of each pixel's patch, (height, width), of a grid of patches x patches, fewer if pixels are."""
    rows, columns = (torch.arange(size) * min(patches, size) // size for size in (height, width))
    return rows[:, None] * min(patches, width) + columns


class WeightedRidge:
    """The linear model of LIME as captum takes it: min Σ w (y - b - zᵀβ)² + ridge ‖β‖², solved in closed form."""

    def __init__(self, ridge: float) -> None:
        self.ridge = ridge
        self._coefficients = torch.empty(0)

    def fit(self, train_data: Iterable[tuple[Tensor, Tensor, Tensor]], **_: object) -> None:
        """Fit all batches of switches (n, F), scores (n,) and weights (n,)."""
        z, y, w = (torch.cat(column).double() for column in zip(*train_data, strict=True))
        # Centering takes the intercept out of the fit, so that the penalty leaves it alone.
        centred = z - (w @ z) / w.sum()
        gram = centred.T @ (w[:, None] * centred) + self.ridge * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        self._coefficients = torch.linalg.solve(gram, centred.T @ (w * (y - (w @ y) / w.sum())))

    def representation(self) -> Tensor:
        """Return the coefficients (F,)."""
        return self._coefficients


class _Watched:
    """The score of one class at a time, for captum, which asks for the same perturbed images again for each class.

    The first class's run keeps the scores of all; the others are answered from those, call by call.
    """

    def __init__(self, explained: ExplainedNetwork, classes: Tensor, score: str) -> None:
        self.explained, self.classes, self.score = explained, classes, score
        self._scores: list[Tensor] = []
        self._column, self._call = 0, 0

    def each_class(self) -> Iterator[int]:
        for column in range(len(self.classes)):
            self._column, self._call = column, 0
            yield column

    def __call__(self, differences: Tensor) -> Tensor:
        # captum runs the same images in the same order for every class, which the count of calls relies on.
        if self._column == 0:
            with torch.no_grad():
                self._scores.append(scores(self.explained(differences), self.score)[:, self.classes])
        answer = self._scores[self._call][:, self._column]
        self._call += 1
        return answer


def _by_images(explained: ExplainedNetwork, map_of_image: OneImage) -> Callable[[Tensor, Tensor], Tensor]:
    def maps(images: Tensor, targets: Tensor) -> Tensor:
        with torch.inference_mode(False):
            differences, indices = explained.prepared(images, targets)
            maps_of_images = [map_of_image(differences[n : n + 1], indices[n]) for n in range(len(images))]
            return torch.stack(maps_of_images).detach()

    return maps
