"""Predicates about the ends of a network: images that come in, channels on the way, scores that go out."""

from __future__ import annotations

import math

from torch import fx, nn

from bcos_fx.rewriting.core.channels import encoded_axis, image_channels
from bcos_fx.rewriting.core.ending import read_ending
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import predicate
from bcos_fx.tracing.program import attribute


@predicate("is-image-input")
def is_image_input(reader: GraphReader, call: Call) -> Verdict:
    """Check for an input (N, C, H, W) with one or three channels, or one with a channel per value of mean and std.

    With mean and std also sequences, clips and volumes, the channels in whatever dimension.
    """
    shape, given = reader.shape(call.node), len(reader.options.mean)
    if shape is None or len(shape) not in ((3, 4, 5) if given else (4,)):
        return False
    if any(reader.op(user) == "input_encoding" for user in call.node.users):
        return False
    if not getattr(call.node.meta.get("dtype"), "is_floating_point", True):
        return "it holds integers; give floating-point images as the example to encode it"
    if isinstance(axis := image_channels(reader, call.node), str):
        return axis
    if shape[1] in (1, 3) or given:
        return True
    return f"it has {shape[1]} channels, so it is taken as it is; give mean and std for each channel to encode it"


@predicate("splits-channels-in-half")
def splits_channels_in_half(reader: GraphReader, call: Call) -> Verdict:
    """Check that the layer reads the decoded input along its channels and can be widened: ungrouped, zero-padded."""
    if getattr(call.module, "groups", 1) != 1:
        return "it is a grouped convolution, whose groups would no longer see the pairs [x, -x]"
    source = call.inputs[0]
    rank, axis = len(reader.shape(source) or reader.shape(call.node) or ()), encoded_axis(reader, source)
    if axis != (rank - 1 if call.op.name == "linear" else 1):
        return "it sums over another dimension than the channels"
    return True


@predicate("pads-with-zero")
def pads_with_zero(reader: GraphReader, call: Call) -> Verdict:
    """Check that other dimensions than the channels are padded, with zero."""
    value = call.arguments.get("value")
    if call.arguments.get("mode") != "constant" or (value is not None and value != 0):
        return "it pads with something else than zero, which is not a linear map"
    pad, source = call.arguments["pad"], call.inputs[0]
    # F.pad counts dimensions from the last one, two numbers for each.
    behind = len(reader.shape(source) or (0,) * 4) - 1 - encoded_axis(reader, source)
    sides = pad[2 * behind :][:2] if isinstance(pad, tuple | list) else (None,)
    return True if all(side == 0 for side in sides) else "it pads the channels too"


@predicate("reads-channels-second")
def reads_channels_second(reader: GraphReader, call: Call) -> Verdict:
    """Check that the channels are dimension 1, which is where layers that act on each channel alone expect them."""
    axis = encoded_axis(reader, call.inputs[0])
    return True if axis == 1 else f"the channels are dimension {axis}, and it takes dimension 1 for them"


@predicate("stays-floating")
def stays_floating(reader: GraphReader, call: Call) -> Verdict:
    """Check that the result holds floating-point numbers."""
    dtype = call.node.meta.get("dtype")
    return True if dtype is not None and dtype.is_floating_point else f"it gives {dtype}, which has no halves"


@predicate("keeps-channels")
def keeps_channels(reader: GraphReader, call: Call) -> Verdict:
    """Check that everything from the channels on is flattened, so that channels stay the slowest dimension."""
    if encoded_axis(reader, call.inputs[0]) != 1:
        return False
    shape, out = reader.shape(call.inputs[0]), reader.shape(call.node)
    return shape is not None and out is not None and len(out) == 2 and out == (shape[0], math.prod(shape[1:]))


@predicate("is-size-free")
def is_size_free(reader: GraphReader, call: Call) -> Verdict:
    """Check for a flatten from dimension 1, or a reshape that reads the batch size and leaves the rest to -1."""
    if call.op.name == "flatten":
        last = len(reader.shape(call.inputs[0]) or (0,) * 4) - 1
        return bool(call.arguments["start_dim"] == 1 and call.arguments["end_dim"] in (-1, last))
    shape = call.arguments["shape"]
    return isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[0], fx.Node) and shape[1] == -1


@predicate("shifts-or-scales-channels")
def shifts_or_scales_channels(reader: GraphReader, call: Call) -> Verdict:
    """Check that one constant per channel (or one for all) is added, subtracted, multiplied or divided by."""
    other = call.arguments.get("other")
    if call.arguments.get("alpha") not in (None, 1) or call.arguments.get("rounding_mode") is not None:
        return False
    channels = reader.shape(call.inputs[0])
    if isinstance(other, bool) or other is None or channels is None:
        return False
    if isinstance(other, int | float):
        return True
    if not isinstance(other, fx.Node) or other.op != "get_attr":
        return False
    tensor = attribute(reader.graph_module, str(other.target))
    if isinstance(tensor, nn.Parameter):
        return "the normalization is a trained parameter, so it is not folded away"
    shape, axis = tuple(getattr(tensor, "shape", ())), encoded_axis(reader, call.inputs[0])
    # Broadcasting counts dimensions from the last one: the channels, and 1 for each that follows them.
    by_channel = (channels[axis], *[1] * (len(channels) - 1 - axis))
    per_channel = math.prod(shape) == 1 or (
        math.prod(shape) == channels[axis] and shape[axis - len(channels) :] == by_channel
    )
    return True if per_channel else f"its constant has shape {shape}, which is not one value per channel"


@predicate("is-classifier-output")
def is_classifier_output(reader: GraphReader, call: Call) -> Verdict:
    """Check that the output is one row of class scores per sample, with no logit layer yet."""
    if not call.inputs:
        return "the output is not a tensor"
    shape = reader.shape(call.inputs[0])
    if reader.op(call.inputs[0]) == "logit_layer":
        return False
    if shape is None or len(shape) != 2 or shape[1] < 2:
        return f"the output has shape {shape}, which is not (samples, at least two classes)"
    scores = reader.flow.before_gates or [
        node.name for node in read_ending(call.inputs[0], reader.call).scores.values()
    ]
    if scores:
        return f"the output is made of {scores[0]} by a gate, as probabilities are; a logit bias belongs before it"
    return True
