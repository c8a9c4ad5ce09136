"""Pixel deletion and insertion: does the output follow when pixels go, or come, in the order of a map?

Petsiuk et al., "RISE", BMVC 2018, sec. 4.1 (deletion and insertion, most important first); Samek et al., "Evaluating
the Visualization of What a Deep Neural Network Has Learned", 2017, sec. III-B (least important first).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bcos_fx.display import Displayed
from bcos_fx.errors import UsageError, check_choice, check_count
from bcos_fx.evaluation.measured import Measured, bootstrap_interval, maps_of
from bcos_fx.evaluation.plots import curves_with_bands
from bcos_fx.methods.checks import check_images, check_score, check_targets, class_outputs, scores
from bcos_fx.methods.method import Method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DIRECTIONS = ("deletion", "insertion")
ORDERS = ("most", "least", "random")
_BLUR, _SIGMA = 11, 5.0


@dataclass(frozen=True, eq=False, repr=False)
class Curves(Displayed):
    """How a class's score changes with the share of pixels that are deleted or inserted.

    Attributes:
        method: the method's name.
        shares: (S + 1,) of the pixels, from 0 to 1.
        curves: (N, K, S + 1), the score at each share.
        settings: what measure and method were set to.
    """

    method: str
    shares: Tensor
    curves: Tensor
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def curve(self) -> Tensor:
        """The mean over images and classes, (S + 1,)."""
        return self.curves.mean((0, 1))

    @property
    def auc(self) -> Tensor:
        """The area under each curve, (N, K), by the trapezoidal rule: a mean score, as the shares go from 0 to 1."""
        return torch.trapezoid(self.curves, self.shares.to(self.curves), dim=2)

    def brief(self) -> list[str]:
        """Return the mean area under the curves, and its interval."""
        return [f"Curves: {self.measured}"]

    @property
    def measured(self) -> Measured:
        """The areas as a measure like the others."""
        return Measured(f"{self.settings.get('direction', 'deletion')} AUC", self.method, self.auc, self.settings)

    @property
    def mean(self) -> float:
        """The mean area."""
        return self.measured.mean

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % bootstrap interval of the mean area."""
        return self.measured.interval

    def plot(self) -> Figure:
        """Draw the mean curve with its interval; see :func:`plot_curves` for several methods."""
        return plot_curves([self])


def pixel_deletion(
    method: Method,
    outputs: Callable[[Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    *,
    direction: str = "deletion",
    order: str = "most",
    imputation: str = "zero",
    steps: int = 50,
    score: str = "softmax",
    batch_size: int = 16,
    seed: int = 0,
) -> Curves:
    """Delete pixels from images, or insert them, in the order of a method's maps, and watch the score.

    A good map has a small area for deletion with the most important first, a large one with the least important first,
    and a large one for insertion with the most important first.

    Args:
        method: the method.
        outputs: from images (N, C, H, W) in [0, 1] to class outputs (N, classes): a converted network, or the original
            behind its normalization.
        images: (N, C, H, W) in [0, 1].
        targets: (N, K) class indices.
        direction: ``deletion`` or ``insertion``.
        order: which come first: ``most`` or ``least`` important, or ``random`` to compare with (no map is asked for).
        imputation: what stands where a pixel is not: ``zero`` (black), ``mean`` (the image's own mean color) or
            ``blur`` (the image blurred by a Gaussian of 11 pixels and sigma 5, as published for insertion).
        steps: S, in how many equal steps.
        score: ``softmax``, ``sigmoid`` or ``logit`` of the class.
        batch_size: changed images that are run at once.
        seed: of the order among pixels that the map holds equal, so that no order of rows decides there.

    Raises:
        UsageError: something is not of that form.
    """
    images = check_images(images)
    check_score(score)
    check_choice("direction", direction, DIRECTIONS)
    check_choice("order", order, ORDERS)
    check_count("steps", steps)
    check_count("batch_size", batch_size)
    background = imputed(images, imputation)
    with torch.no_grad():
        # One image shows how many classes there are; further ones would cost time.
        targets = check_targets(images, targets, class_outputs(outputs, images[:1]).shape[1])
    if order == "random":
        # Equal pixels are in a random order, so an empty map gives one.
        maps = images.new_zeros(*targets.shape, *images.shape[2:])
    else:
        maps = maps_of(method, images, targets)
    ranks = pixel_ranks(-maps if order == "least" else maps, seed)
    starts, ends = (images, background) if direction == "deletion" else (background, images)
    # Steps are whole pixels; in float64, because float32 rounds the counts of large images.
    counts = torch.round(torch.linspace(0, 1, steps + 1, dtype=torch.float64) * ranks[0, 0].numel()).long()
    curves = []
    with torch.no_grad():
        for n, k in itertools.product(range(len(images)), range(targets.shape[1])):
            batches = _changed(starts[n], ends[n], ranks[n, k], counts, batch_size)
            of_class = [scores(class_outputs(outputs, batch), score)[:, int(targets[n, k])] for batch in batches]
            curves.append(torch.cat(of_class))
    settings = {
        **method.settings,
        "direction": direction,
        "first": order,
        "imputation": imputation,
        "steps": steps,
        "score": score,
    }
    return Curves(
        "random order" if order == "random" else method.name,
        counts.double() / ranks[0, 0].numel(),
        torch.stack(curves).reshape(*targets.shape, steps + 1),
        settings,
    )


def _changed(start: Tensor, end: Tensor, ranks: Tensor, counts: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield batches of the image (C, H, W) in which the first pixels by rank (H, W) are those of its end."""
    for part in torch.split(counts.to(ranks.device), batch_size):
        yield torch.where((ranks < part[:, None, None]).unsqueeze(1), end, start)


def pixel_ranks(maps: Tensor, seed: int) -> Tensor:
    """Return each pixel's place (..., H, W) in the order of maps (..., H, W), the largest first, counted from 0.

    Equal pixels are in a random order, the same for the same seed.
    """
    flat = maps.flatten(-2)
    # A stable sort of shuffled pixels: rows would decide among equal ones otherwise, and blank maps look sensible.
    shuffled = torch.randperm(flat.shape[-1], generator=torch.Generator().manual_seed(seed)).to(maps.device)
    order = shuffled[flat[..., shuffled].argsort(dim=-1, descending=True, stable=True)]
    places = torch.arange(flat.shape[-1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places).reshape(maps.shape)


def imputed(images: Tensor, imputation: str) -> Tensor:
    """Return what stands in the place of pixels (N, C, H, W) that are not there."""
    check_choice("imputation", imputation, _IMPUTATIONS)
    return _IMPUTATIONS[imputation](images)


def _blurred(images: Tensor) -> Tensor:
    places = torch.arange(_BLUR, dtype=images.dtype, device=images.device) - _BLUR // 2
    kernel = torch.exp(-(places**2) / (2 * _SIGMA**2))
    weight = (kernel / kernel.sum()).expand(images.shape[1], 1, 1, -1)
    padded = F.pad(images, (_BLUR // 2,) * 4, mode="replicate")
    # A Gaussian is separable: two passes of 11 numbers each in place of 121.
    across = F.conv2d(padded, weight, groups=images.shape[1])
    return F.conv2d(across, weight.transpose(2, 3), groups=images.shape[1])


_IMPUTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "mean": lambda images: images.mean((2, 3), keepdim=True).expand_as(images),
    "blur": _blurred,
}


def plot_curves(results: Sequence[Curves]) -> Figure:
    """Draw the mean curves of one or several methods, with bootstrap intervals of 95 %.

    Raises:
        UsageError: there are no results, or of several directions, orders or scores.
        MissingExtraError: matplotlib is not installed.
    """
    kinds = {tuple(result.settings.get(name) for name in ("direction", "score")) for result in results}
    if len(kinds) != 1:
        raise UsageError(f"{len(kinds)} kinds of curves were given", hint="draw curves of one direction and score")
    direction, score = kinds.pop()
    drawn = []
    for result in results:
        shares = result.shares.cpu().numpy()
        first = result.settings.get("first", "most")
        label = f"{result.method}{'' if first == 'random' else f', {first} first'} ({result.mean:.3g})"
        bands = [bootstrap_interval(result.curves[..., step]) for step in range(len(shares))]
        low, high = zip(*bands, strict=True)
        drawn.append((label, shares, result.curve.cpu().numpy(), low, high))
    changed = f"share of pixels {'deleted' if direction == 'deletion' else 'inserted'}"
    return curves_with_bands(drawn, xlabel=changed, ylabel=f"{score} of the class")
