"""gridpg(): the Grid Pointing Game of a network on labeled images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcos_fx.display import Displayed
from bcos_fx.errors import UsageError, check_choice
from bcos_fx.escaping import amount
from bcos_fx.evaluation.measured import bootstrap
from bcos_fx.evaluation.plots import new_axes
from bcos_fx.evaluation.predictions import EvaluationTask, predict
from bcos_fx.evaluation.runner import Runner, Track, untracked
from bcos_fx.evaluation.scoring import gridpg_score
from bcos_fx.evaluation.selection import Grid, Protocol, fair, published, select
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.methods.method import Method, dynamic_linear
from bcos_fx.network import BcosNetwork

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROTOCOLS = {"published": published, "fair": fair}
_PERCENTILES = (25, 50, 75)
_BOX, _MIDDLE, _CHANCE = "#c9d7ee", "#2154ad", "#8a8a8a"


@dataclass(frozen=True, eq=False, repr=False)
class Localisation(Displayed):
    """How well a way of explaining localizes, by the Grid Pointing Game.

    Attributes:
        method: its name.
        settings: what it was set to.
        protocol: how the game was played.
        grids: the images and labels of each grid.
        per_grid: (grids, n) scores in [0, 1]: of each target, the share of positive evidence in its own cell.
        unreadable: name -> reason of images that could not be read.
        notes: what is odd about this result.
    """

    method: str
    settings: Mapping[str, object]
    protocol: Protocol
    grids: tuple[Grid, ...]
    per_grid: npt.NDArray[np.float64]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """The mean score over all targets of all grids; chance is 1/n."""
        return float(self.per_grid.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % bootstrap interval of the mean: grids are drawn again, with all their targets."""
        return bootstrap(self.per_grid)

    @property
    def percentiles(self) -> tuple[float, float, float]:
        """The 25th, 50th and 75th percentile of the targets' scores, as the published code prints them."""
        low, middle, high = np.percentile(self.per_grid, _PERCENTILES)
        return float(low), float(middle), float(high)

    def plot(self) -> Figure:
        """Return a matplotlib figure: a box of the targets' scores, their mean, and chance.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        return boxes([self])

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data, without the single grids."""
        low, middle, high = self.percentiles
        return {
            "method": self.method,
            "method_settings": {name: str(value) for name, value in self.settings.items()},
            "protocol": self.protocol.to_dict(),
            "grids": len(self.grids),
            "mean": self.mean,
            "interval": list(self.interval),
            "percentiles": {"25": low, "50": middle, "75": high},
            "chance": 1 / self.protocol.cells,
            "notes": list(self.notes),
        }

    def brief(self) -> list[str]:
        """Return the mean score, its interval and chance, and what is odd about the result."""
        side, (low, high) = self.protocol.side, self.interval
        lines = [
            f"GridPG {side}x{side}, {self.protocol.name}: {self.method} {self.mean:.3f} (95 % in {low:.3f} to "
            f"{high:.3f}; chance {1 / self.protocol.cells:.3f}; {amount(len(self.grids), 'grid')})"
        ]
        return [*lines, *(f"  note: {note}" for note in self.notes)]


def boxes(results: Sequence[Localisation]) -> Figure:
    """Draw the scores of methods beside each other, as the papers' figures of localization do.

    A box spans the quartiles of all targets' scores, whiskers reach 1.5 times as far, the diamond is the mean, and the
    dashed line is what a uniform map scores.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = new_axes(width=2.2 + 0.9 * len(results))
    scores = [result.per_grid.ravel() for result in results]
    most = max(len(result.grids) for result in results)
    counts = ["" if len(r.grids) == most else f" ({amount(len(r.grids), 'grid')})" for r in results]
    # A title holds for all methods; one with fewer grids has their number in its label.
    labels = [f"{result.method}{count}" for result, count in zip(results, counts, strict=True)]
    parts = axes.boxplot(
        scores,
        tick_labels=labels,
        patch_artist=True,
        showmeans=True,
        widths=0.6,
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": "#b0b0b0"},
        medianprops={"color": _MIDDLE, "linewidth": 1.6},
        meanprops={"marker": "D", "markersize": 4, "markerfacecolor": _MIDDLE, "markeredgecolor": "white"},
    )
    for box in parts["boxes"]:
        box.set(facecolor=_BOX, edgecolor=_MIDDLE, linewidth=0.8)
    protocol = results[0].protocol
    axes.axhline(1 / protocol.cells, color=_CHANCE, linestyle="--", linewidth=1)
    axes.text(1.005, 1 / protocol.cells, "uniform", color=_CHANCE, fontsize=7, va="center",
            transform=axes.get_yaxis_transform())  # fmt: skip
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("localization score")
    axes.set_title(f"GridPG {protocol.side}x{protocol.side}, {protocol.name}, {most} grids", fontsize=9)
    if len(results) > 3:
        axes.tick_params(axis="x", labelrotation=30)
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    return figure


def gridpg(
    model: nn.Module,
    dataset: object,
    *,
    method: Method | None = None,
    protocol: str | Protocol = "fair",
    side: int = 3,
    grids: int = 500,
    batch_size: int = 32,
    shape: tuple[int, int, int] | None = None,
    folder: Path | None = None,
    track: Track = untracked,
) -> Localisation:
    """Play the Grid Pointing Game: does the explanation of a class point to the one image that shows it?

    Images of n classes are put into a grid, and each class is explained on it. The score is the share of positive
    contributions within the cell of the class (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 5).
    The n explanations of a grid are computed by one forward pass.

    Args:
        model: a converted network, or another dynamic linear classifier of images in [0, 1], in eval mode. Grids
            are made of images that it classifies correctly and confidently.
        dataset: a path (see :func:`bcos_fx.evaluation.open_source`), Dataset or DataLoader of labeled images.
        method: another way of explaining the same targets; None: the network's own dynamic linear map.
        protocol: ``fair`` or ``published``, with the two arguments after it; or a :class:`Protocol` with all settings.
        side: √n, 3 for 3×3.
        grids: how many at most.
        batch_size: images at once when the network looks for those that it is sure of.
        shape: (C, H, W) that files are brought to; None: the converted network's own.
        folder: where results are written as they come, so that an interrupted run resumes; None: nowhere.
        track: shows how far the work has come.

    Raises:
        UsageError: data and network do not fit, the images do not suffice for one grid, or the folder holds results of
            something else.
        VerificationError: the network is not dynamic linear.
    """
    if not isinstance(protocol, Protocol):
        check_choice("protocol", protocol, PROTOCOLS)
        protocol = PROTOCOLS[protocol](side=side, grids=grids)
    task = task_of(model, dataset, shape=shape)
    runner = Runner(folder=folder, track=track)
    with runner.alone():
        outcome = predict(task, runner, batch_size=batch_size)
        chosen = select(outcome.predictions, protocol)
        result = play(task, method or dynamic_linear(model), chosen, protocol, runner)
    return dataclasses.replace(result, unreadable=outcome.unreadable)


def play(
    task: EvaluationTask, method: Method, grids: Sequence[Grid], protocol: Protocol, runner: Runner
) -> Localisation:
    """Score a method on grids that were chosen already, the same for every method.

    Raises:
        UsageError: the network takes no image as large as a grid, or the method gave something that is not a map.
    """
    height, width = task.preprocessing.height, task.preprocessing.width
    explained = windowed(method, height, width) if protocol.windows else method
    settings = {name: str(value) for name, value in explained.settings.items()}
    header = task.header("gridpg", protocol.to_dict() | {"method": method.name, "method_settings": settings})
    # A stream is read through once; its images are not in reach afterwards.
    task.source.prepare([index for grid in grids for index in grid.images])
    name = f"gridpg-{protocol.side}x{protocol.side}-{slug(method.name)}"
    label = f"{method.name} {protocol.side}x{protocol.side}"
    rows = runner.run(
        name, header, [1] * len(grids), lambda number: _scores(task, explained, grids[number], protocol), label
    )
    notes = [f"{len(grids)} of {protocol.grids} grids: the images gave no more"] if len(grids) < protocol.grids else []
    return Localisation(
        method.name, explained.settings, protocol, tuple(grids), np.array(rows, dtype=np.float64), notes=tuple(notes)
    )


def slug(name: str) -> str:
    """Return a name as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower()).strip("-")


def grid_image(task: EvaluationTask, grid: Grid, protocol: Protocol) -> Tensor:
    """Return a grid as an image (1, C, H, W), on the model's device."""
    # Rescaled cells are read smaller, from the file: resizing twice would blur them.
    preprocessing = dataclasses.replace(task.preprocessing, shrunk=protocol.side if protocol.rescaled else 1)
    cells = dataclasses.replace(task, preprocessing=preprocessing).read(grid.images)
    return composed(cells, protocol.side).unsqueeze(0)


def _scores(task: EvaluationTask, method: Method, grid: Grid, protocol: Protocol) -> list[float]:
    image = grid_image(task, grid, protocol)
    # Windows are of the network's own size, whatever the grid's.
    if isinstance(task.model, BcosNetwork) and not protocol.windows:
        _check_size(task.model, image)
    targets = torch.tensor([grid.labels], device=image.device)
    maps = method.maps(image, targets)
    if tuple(maps.shape) != (1, protocol.cells, *image.shape[2:]):
        raise UsageError(
            f"the method {method.name} gave maps of {tuple(maps.shape)} for {protocol.cells} targets of one image of "
            f"{image.shape[2]}x{image.shape[3]} pixels",
            hint="a method gives (N, K, H, W); see bcos_fx.methods.method.Method",
        )
    if not bool(torch.isfinite(maps).all()):
        named = ", ".join(task.source.name(index) for index in grid.images)
        raise UsageError(f"the method {method.name} gave NaN or infinity", where=f"the grid of {named}")
    scores: list[float] = gridpg_score(maps.detach(), protocol.cells, smooth=protocol.smooth)[0].tolist()
    return scores


def _check_size(network: BcosNetwork, image: Tensor) -> None:
    try:
        network.check_inputs((image,), partly=True)
    except UsageError as error:
        raise UsageError(
            f"the network takes no image as large as a grid: {error.what}",
            where=error.where,
            hint="play with windows (windows=True), as published for vision transformers, or with rescaled "
            "cells (rescaled=True)",
        ) from error


def composed(images: Tensor, side: int) -> Tensor:
    """Put images (side², C, h, w) into one (C, side · h, side · w): number k at row k mod side, column k div side."""
    count, channels, height, width = images.shape
    if count != side * side:
        raise UsageError(f"{amount(count, 'image')} do not fill a grid of {side}x{side}")
    # The published code fills columns first; targets are scored in the same order.
    columns = images.reshape(side, side, channels, height, width)  # column, row, C, h, w
    return columns.permute(2, 1, 3, 0, 4).reshape(channels, side * height, side * width)


def windowed(method: Method, height: int, width: int) -> Method:
    """Explain large images in windows of the network's own size, for networks that take no other.

    As published for vision transformers (Böhle et al., "B-cos Alignment", TPAMI 2024, section 5): the image is padded
    with zeros by half a window on each side, windows follow each other at half their size (25 of them for 2×2 cells),
    each is explained for all targets, and where windows overlap their contributions are added up.
    """
    if height % 2 or width % 2:
        raise UsageError(f"windows of {height}x{width} pixels have no half", hint="take a network of an even size")

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        pairs = zip(images, targets, strict=True)
        return torch.stack([_map_by_windows(method, image, classes, (height, width)) for image, classes in pairs])

    return Method(method.name, {**method.settings, "windows": f"{height}x{width}, stride half"}, maps)


def _map_by_windows(method: Method, image: Tensor, targets: Tensor, size: tuple[int, int]) -> Tensor:
    padding = stride = (size[0] // 2, size[1] // 2)
    parts = F.unfold(image.unsqueeze(0), size, padding=padding, stride=stride)  # 1, C · h · w, windows
    # unfold() lists the values of a window channel by channel, row by row, which is the layout of an image.
    windows = parts[0].T.reshape(-1, len(image), *size)
    window_maps = method.maps(windows, targets.expand(len(windows), -1))  # windows, K, h, w
    columns = window_maps.flatten(2).permute(1, 2, 0)  # K, h · w, windows
    # fold() adds up what overlaps, as unfold() cut it, and drops the padding.
    return F.fold(columns, image.shape[-2:], size, padding=padding, stride=stride).squeeze(1)
