"""Which dimension of an input holds its channels: the one that the first layer sums over.

Nothing in a tensor's shape says that. (N, C, T) and (N, L, E) have the same number of dimensions, and so have
(N, T, C, H, W) and (N, C, D, H, W). The network's graph does: a convolution sums over dimension 1 of what it is given,
a linear layer over the last. Every number of the input is followed to that layer by running the operations in between,
which only move numbers or work on each alone, on the numbers' positions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from bcos_fx.errors import UsageError
from bcos_fx.explanation.layout import own_form, samples_first
from bcos_fx.rewriting.core.ops import Call, vocabulary
from bcos_fx.tracing.program import run_node

_CONVOLUTION = re.compile(r"(bcos_|peer_bcos_)?(raw_)?conv(_transpose)?[123]d")
_LINEAR = re.compile(r"(bcos_|peer_bcos_)?(raw_)?linear|multi_head_attention")
_MOVING = frozenset(
    "clone dropout expand expand_as feature_dropout flatten flip float getattr getitem identity matrix_transpose "
    "movedim narrow permute pixel_shuffle pixel_unshuffle reshape reshape_as roll select slice squeeze to transpose "
    "type_as unbind unflatten unsqueeze chunk split tensor_split repeat tile unfold windows channel_shuffle".split()
)
_COLOURS = (1, 3, 4)
_SIDES = {1: ("position",), 2: ("row", "column"), 3: ("slice", "row", "column")}


@dataclass(frozen=True)
class Axes:
    """What the dimensions of an explained input mean.

    Attributes:
        channel: the dimension that holds the channels, counted from 0 with the samples' own; None: every number of a
            sample stands for itself, as in a table (N, F), a waveform (N, T) or a plane (N, H, W).
        places: names of the other dimensions, in order, the samples' left out.
        note: what is to be known about this, or nothing.
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
        return _named(channel % len(shape), shape, None)
    noted = next((node.meta.get("shape") for node in graph_module.graph.nodes if node.name == start), None)
    if noted is not None:  # the graph was traced with that size, and sizes are part of what moves numbers
        shape = tuple(samples_first(torch.empty(noted, device="meta"), samples).shape)
    if len(shape) < 2 or 0 in shape:
        return Axes(None, ("feature",) * (len(shape) - 1))
    labels = torch.arange(torch.Size(shape).numel()).reshape(shape)
    mixed = _first_mixed(graph_module, start, own_form(labels, samples), shape)
    if mixed is None:
        return _by_rank(shape, "no layer sums over one dimension alone")
    found, layer = mixed
    if len(shape) == 2:
        return Axes(None, ("feature" if found else "position",))
    if len(found) > 1:
        return _by_rank(shape, f"{layer} sums over {len(found)} dimensions at once")
    return _named(found[0] if found else None, shape, layer)


def _by_rank(shape: tuple[int, ...], reason: str) -> Axes:
    """PyTorch's convention, where the graph leaves the axis open."""
    if len(shape) == 2:
        return Axes(None, ("feature",))
    usual = _named(1 if len(shape) > 3 else 2, shape, None)
    note = f"{reason}, so dimension {usual.channel} was taken for the channels; channel_axis= names another"
    unusual = len(shape) != 4 or (shape[-1] in _COLOURS and shape[1] not in (*_COLOURS, 2, 6))
    return Axes(usual.channel, usual.places, note if unusual else "")


def _named(channel: int | None, shape: tuple[int, ...], layer: str | None) -> Axes:
    count = len(shape) - 1 - (channel is not None)
    names = _SIDES.get(count, tuple(f"dimension {place}" for place in range(1, count + 1)))
    if count == 3 and channel == 2:
        names = ("frame", "row", "column")
    return Axes(channel, names)


def _first_mixed(
    graph_module: fx.GraphModule, start: str, own: Tensor, shape: tuple[int, ...]
) -> tuple[list[int], str] | None:
    """The dimensions of the input that the first layer sums over, and its name; None where no layer is reached.

    ``own`` holds the positions of the input's numbers in ``shape`` (N, ...), in the form that the network takes.
    """
    values: dict[fx.Node, Any] = {}
    for node in graph_module.graph.nodes:
        if node.name == start:
            values[node] = own
        elif any(source in values for source in node.all_input_nodes):
            call = vocabulary().call(node, graph_module)
            labels = _labels_of(node, values)
            if call is not None and labels is not None:
                dimension = _summed(call, labels)
                if dimension is not None:
                    return _varying(labels, dimension, shape), node.name
            known = _followed(node, call, graph_module, values)
            if known is not None:
                values[node] = known
    return None


def _labels_of(node: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor | None:
    """The positions that a call's first labelled tensor holds."""
    found = [values[source] for source in node.all_input_nodes if isinstance(values.get(source), Tensor)]
    return found[0] if found else None


def _summed(call: Call, labels: Tensor) -> int | None:
    """The dimension of its input that a layer sums over, or None of an operation that sums over none."""
    name = call.op.name
    if _CONVOLUTION.fullmatch(name):
        spatial = int(name[-2])
        return labels.dim() - spatial - 1  # without a dimension of samples the channels come first
    if name in ("input_encoding", "input_normalisation"):
        return 1
    if _LINEAR.fullmatch(name) or name in ("lstm", "gru", "rnn"):
        return labels.dim() - 1
    if name != "matmul":
        return None
    left = call.nodes("input")
    other = call.nodes("other")
    weight = other[0] if other else None
    if left and weight is not None and weight.op == "get_attr" and labels.dim():
        return labels.dim() - 1
    return None  # the other factor mixes positions: an adjacency, or attention


def _varying(labels: Tensor, dimension: int, shape: tuple[int, ...]) -> list[int]:
    """The input's dimensions that vary along one dimension of the labels, over their whole length."""
    line = labels.movedim(dimension, 0).flatten(1)[:, 0]
    places = torch.stack(torch.unravel_index(line, shape))
    distinct = [len(row.unique()) for row in places]
    found = [axis for axis, size in enumerate(shape) if axis and size > 1 and distinct[axis] == size]
    if not found and len(line) == 1:  # one channel: in the input, or put there by the network
        found = [axis for axis, size in enumerate(shape) if axis and size == 1][:1]
    return found


def _followed(node: fx.Node, call: Call | None, graph_module: fx.GraphModule, values: Mapping[fx.Node, Any]) -> Any:
    """The positions behind what an operation gives; None where they are lost."""
    labels = _labels_of(node, values)
    moving = call is None or call.op.name in _MOVING or node.meta.get("type") in ("size", "tuple")
    if node.op != "output" and moving and all(source in values for source in node.all_input_nodes):
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        try:
            return run_node(node, graph_module, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # an operation that takes no integers moves nothing
    if labels is None or tuple(node.meta.get("shape") or ()) != tuple(labels.shape):
        return None
    return labels  # each number alone: a rectifier, an affine map, a sum with a constant
