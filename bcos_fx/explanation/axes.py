"""Which dimension of an input holds its channels: the one that the first layer sums over.

A tensor's shape does not determine it. (N, C, T) and (N, L, E) have the same number of dimensions, and so have
(N, T, C, H, W) and (N, C, D, H, W). The network's graph does: a convolution sums over dimension 1 of what it is given,
a linear layer over the last (:mod:`bcos_fx.rewriting.core.channels`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from bcos_fx.errors import UsageError
from bcos_fx.explanation.layout import own_form, samples_first
from bcos_fx.rewriting.core.channels import first_mixed

_COLORS = (1, 3, 4)
_SIDES = {1: ("position",), 2: ("row", "column"), 3: ("slice", "row", "column")}


@dataclass(frozen=True)
class Axes:
    """What the dimensions of an explained input mean.

    Attributes:
        channel: the dimension that holds the channels, counted from 0 with the samples' own; None: every number of a
            sample stands for itself, as in a table (N, F), a waveform (N, T) or a plane (N, H, W).
        places: names of the other dimensions, in order, the samples' left out.
        note: what a user should know about this; may be empty.
    """

    channel: int | None
    places: tuple[str, ...]
    note: str = ""


def axes_of(
    graph_module: fx.GraphModule,
    start: str,
    shape: tuple[int, ...],
    channel: int | None = None,
    *,
    samples: int | None = 0,
) -> Axes:
    """Find the axes of an input by the first layer that sums over one.

    Args:
        graph_module: the network; not changed.
        start: name of the node whose value has the axes.
        shape: of that value, (N, ...).
        channel: the dimension that the caller names, negative ones from the end; None: it is looked for.
        samples: the dimension of the node's value that holds its samples, None where it is one sample as a whole.

    Raises:
        UsageError: ``channel`` names no dimension, or that of the samples.
    """
    if channel is not None:
        if isinstance(channel, bool) or not isinstance(channel, int) or not -len(shape) < channel < len(shape):
            raise UsageError(
                f"channel_axis is {channel!r}, the explained input has shape {tuple(shape)}",
                hint=f"give a number from 1 to {len(shape) - 1}; dimension 0 holds the samples",
            )
        if channel % len(shape) == 0:
            raise UsageError("channel_axis is 0, which holds the samples", hint="see batch_axis=")
        return _axes_of_channel(channel % len(shape), shape)
    noted = next((node.meta.get("shape") for node in graph_module.graph.nodes if node.name == start), None)
    # On the meta device, to move dimensions without any numbers.
    if noted is not None:  # the graph was traced with that size, and sizes are part of what moves numbers
        shape = tuple(samples_first(torch.empty(noted, device="meta"), samples).shape)
    if len(shape) < 2 or 0 in shape:
        return Axes(None, ("feature",) * (len(shape) - 1))
    # Each number carries its own position as its value, so that the graph itself moves positions to the first layer.
    labels = torch.arange(torch.Size(shape).numel()).reshape(shape)
    mixed = first_mixed(graph_module, start, own_form(labels, samples), shape)
    if mixed is None:
        return _by_rank(shape, "no layer sums over one dimension alone")
    summed, layer = mixed
    if len(shape) == 2:
        return Axes(None, ("feature" if summed else "position",))
    if len(summed) > 1:
        return _by_rank(shape, f"{layer} sums over {len(summed)} dimensions at once")
    return _axes_of_channel(summed[0] if summed else None, shape)


def _by_rank(shape: tuple[int, ...], reason: str) -> Axes:
    """Return PyTorch's convention, where the graph leaves the axis open."""
    if len(shape) == 2:
        return Axes(None, ("feature",))
    usual = _axes_of_channel(1 if len(shape) > 3 else 2, shape)
    note = f"{reason}, so dimension {usual.channel} was taken for the channels; channel_axis= names another"
    # (N, C, H, W) is so common that it needs no note, unless the last dimension looks like colors.
    unusual = len(shape) != 4 or (shape[-1] in _COLORS and shape[1] not in (*_COLORS, 2, 6))
    return Axes(usual.channel, usual.places, note if unusual else "")


def _axes_of_channel(channel: int | None, shape: tuple[int, ...]) -> Axes:
    count = len(shape) - 1 - (channel is not None)
    names = _SIDES.get(count, tuple(f"dimension {place}" for place in range(1, count + 1)))
    if count == 3 and channel == 2:
        names = ("frame", "row", "column")
    return Axes(channel, names)
