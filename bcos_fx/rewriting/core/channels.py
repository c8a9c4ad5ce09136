"""Which dimension of an input the first layer sums over: the one that holds its channels.

Every number of the input is followed to that layer by running the operations in between, which only move numbers or
work on each alone, on the numbers' positions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from bcos_fx.rewriting.core.ops import Call, vocabulary
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.tracing.program import run_node

_CONVOLUTION = re.compile(r"(bcos_|peer_bcos_)?(raw_)?conv(_transpose)?[123]d")
_LINEAR = re.compile(r"(bcos_|peer_bcos_)?(raw_)?linear|multi_head_attention")
_PER_CHANNEL = re.compile(r"(adaptive_)?(avg|max)_pool([123]d)?|interpolate|(\w+_)?pad")
_MOVING = frozenset(
    "clone drop_path dropout expand expand_as feature_dropout flatten flip getattr getitem identity "
    "matrix_transpose movedim narrow permute pixel_shuffle pixel_unshuffle reshape reshape_as roll select slice "
    "squeeze transpose unbind unflatten unsqueeze chunk split tensor_split repeat tile unfold windows "
    "channel_shuffle".split()
)


def first_mixed(
    graph_module: fx.GraphModule, start: str, positions: Tensor, shape: tuple[int, ...]
) -> tuple[list[int], str] | None:
    """Return the dimensions of an input that the first layer sums over, and its name; None where no layer is reached.

    Args:
        graph_module: the network; not changed.
        start: name of the node whose value is followed.
        positions: positions of that value's numbers in ``shape``, in the form that the network takes.
        shape: (N, ...).
    """
    values: dict[fx.Node, Any] = {}
    for node in graph_module.graph.nodes:
        if node.name == start:
            values[node] = positions
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


def image_channels(reader: GraphReader, node: fx.Node) -> int | str:
    """Return the dimension of an input that holds the channels of mean and std, or why it is not known.

    It is the one with a place for each of their values. Of several such dimensions it is the one that the first layer
    sums over, or else the second of four, as usual for images, which it also is without mean and std.
    """
    shape, values = reader.shape(node) or (), len(reader.options.mean)
    if not values:
        return 1
    # Never dimension 0, which holds the samples, whatever its size in the example is.
    fitting = [axis for axis, size in enumerate(shape) if axis and size == values]
    if not fitting:
        of = f"{shape[1]} channels" if len(shape) == 4 else f"the shape {shape}"
        return f"mean and std have {values} values and the input has {of}"
    if len(fitting) == 1:
        return fitting[0]
    mixed = first_mixed(reader.graph_module, node.name, torch.arange(math.prod(shape)).reshape(shape), shape)
    summed = mixed[0] if mixed is not None else []
    if len(summed) == 1 and summed[0] in fitting:
        return summed[0]
    if len(shape) == 4 and 1 in fitting:
        return 1
    return (
        f"the dimensions {fitting} have {values} places each, and no layer sums over one of them alone, so which "
        "of them holds the channels is not known; permute it before the network, or normalize it yourself"
    )


def encoded_axis(reader: GraphReader, node: fx.Node) -> int:
    """Return the dimension that an encoding, a normalization map or a decoding works along."""
    call = reader.call(node)
    if call is None or call.module is None:
        raise TypeError(f"{node.name} is not a layer of an encoding")
    return int(call.module.dim)  # type: ignore[arg-type]


def _labels_of(node: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor | None:
    """Return the positions that a call's first labeled tensor holds."""
    known = (values.get(source) for source in node.all_input_nodes)
    return next((value for value in known if isinstance(value, Tensor)), None)


def _summed(call: Call, labels: Tensor) -> int | None:
    """Return the dimension of its input that a layer sums over; None for an operation that sums over none."""
    name = call.op.name
    if _CONVOLUTION.fullmatch(name):
        spatial = int(name[-2])
        return labels.dim() - spatial - 1  # without a dimension of samples the channels come first
    if name in ("input_encoding", "input_normalisation"):
        return int(call.module.dim)  # type: ignore[arg-type, union-attr]
    if _LINEAR.fullmatch(name) or name in ("lstm", "gru", "rnn"):
        return labels.dim() - 1
    if name != "matmul":
        return None
    # A factor that is computed mixes positions: an adjacency, or attention.
    by_weight = bool(call.nodes("input")) and [node.op for node in call.nodes("other")] == ["get_attr"]
    return labels.dim() - 1 if by_weight and labels.dim() else None


def _varying(labels: Tensor, dimension: int, shape: tuple[int, ...]) -> list[int]:
    """Return the input's dimensions that vary along one dimension of the labels, over their whole length."""
    # One line along that dimension stands for all: the first layer sums over each of them alike.
    line = labels.movedim(dimension, 0).flatten(1)[:, 0]
    places = torch.stack(torch.unravel_index(line, shape))
    distinct = [len(row.unique()) for row in places]
    axes = [axis for axis, size in enumerate(shape) if axis and size > 1 and distinct[axis] == size]
    if not axes and len(line) == 1:  # one channel: in the input, or put there by the network
        axes = [axis for axis, size in enumerate(shape) if axis and size == 1][:1]
    return axes


def _resampled(labels: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Return the positions that stand for those that a pooling, padding or resampling of each channel alone reads."""
    if labels.dim() not in (3, 4, 5) or shape[:2] != tuple(labels.shape[:2]):
        return None
    # In float64, which holds every position exactly and which interpolation takes.
    resized = torch.nn.functional.interpolate(labels.double(), size=list(shape[2:]), mode="nearest")
    return resized.to(labels.dtype)


def _followed(node: fx.Node, call: Call | None, graph_module: fx.GraphModule, values: Mapping[fx.Node, Any]) -> Any:
    """Compute the positions behind an operation's result; None if they cannot be followed."""
    labels = _labels_of(node, values)
    moving = call is None or call.op.name in _MOVING or node.meta.get("type") in ("size", "tuple")
    if node.op != "output" and moving and all(source in values for source in node.all_input_nodes):
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        try:
            return run_node(node, graph_module, args, kwargs)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None  # an operation that takes no integers moves nothing
    shape = tuple(node.meta.get("shape") or ())
    if labels is not None and call is not None and _PER_CHANNEL.fullmatch(call.op.name):
        return _resampled(labels, shape)
    if labels is None or shape != tuple(labels.shape):
        return None
    return labels  # each number alone: a rectifier, an affine map, a sum with a constant
