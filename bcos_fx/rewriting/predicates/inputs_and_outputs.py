"""Predicates about the ends of a network: images that come in, channels on the way, scores that go out."""

from __future__ import annotations

import math

import torch
from torch import fx, nn

from bcos_fx.rewriting.core.channels import first_mixed
from bcos_fx.rewriting.core.ending import gate_at_the_end
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import predicate
from bcos_fx.tracing.program import attribute


@predicate("is-image-input")
def is_image_input(reader: GraphReader, call: Call) -> Verdict:
    """Check for an input (N, C, H, W) with one channel per value of mean and std, or one or three without them.

    With mean and std also (N, C, T) and (N, C, D, H, W), where the first layer sums over dimension 1.
    """
    shape, given = reader.shape(call.node), len(reader.options.mean)
    if shape is None or len(shape) not in ((3, 4, 5) if given else (4,)):
        return False
    if any(reader.op(user) == "input_encoding" for user in call.node.users):
        return False
    if not getattr(call.node.meta.get("dtype"), "is_floating_point", True):
        return "it holds integers; give floating-point images as the example to encode it"
    if len(shape) != 4 and (elsewhere := _channels_elsewhere(reader, call.node, shape)) is not None:
        return elsewhere
    if given and given != shape[1]:
        return f"mean and std have {given} values and the input has {shape[1]} channels"
    if shape[1] in (1, 3) or given:
        return True
    return f"it has {shape[1]} channels, so it is taken as it is; give mean and std for each channel to encode it"


def _channels_elsewhere(reader: GraphReader, node: fx.Node, shape: tuple[int, ...]) -> str | None:
    """Why dimension 1 of an input does not hold its channels; None where it does."""
    positions = torch.arange(math.prod(shape)).reshape(shape)
    mixed = first_mixed(reader.graph_module, node.name, positions, shape)
    if mixed is None or len(mixed[0]) != 1:
        return "no layer sums over one of its dimensions alone, so which of them holds the channels is not known"
    (found,), layer = mixed
    if found == 1:
        return None
    return (
        f"its channels are dimension {found}, over which {layer} sums, and mean and std are taken for dimension 1; "
        "permute it before the network, or normalize it yourself"
    )


@predicate("splits-channels-in-half")
def splits_channels_in_half(reader: GraphReader, call: Call) -> Verdict:
    """Check that the layer reads the decoded input along its channels and can be widened: ungrouped, zero-padded."""
    if getattr(call.module, "groups", 1) != 1:
        return "it is a grouped convolution, whose groups would no longer see the pairs [x, -x]"
    shape = reader.shape(call.inputs[0]) or reader.shape(call.node)
    if call.op.name == "linear" and (shape is None or len(shape) != 2):
        return "it is a linear layer along another dimension than the channels"
    return True


@predicate("pads-with-zero")
def pads_with_zero(reader: GraphReader, call: Call) -> Verdict:
    """Check that only the spatial dimensions are padded, with zero."""
    value = call.arguments.get("value")
    if call.arguments.get("mode") != "constant" or (value is not None and value != 0):
        return "it pads with something else than zero, which is no linear map"
    pad = call.arguments["pad"]
    places = len(reader.shape(call.inputs[0]) or (0,) * 4) - 2
    return True if isinstance(pad, tuple | list) and len(pad) <= 2 * places else "it pads the channels too"


@predicate("stays-floating")
def stays_floating(reader: GraphReader, call: Call) -> Verdict:
    """Check that the result holds floating-point numbers."""
    dtype = call.node.meta.get("dtype")
    return True if dtype is not None and dtype.is_floating_point else f"it gives {dtype}, which has no halves"


@predicate("keeps-channels")
def keeps_channels(reader: GraphReader, call: Call) -> Verdict:
    """Check that everything from the channels on is flattened, so that channels stay the slowest dimension."""
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
    shape = tuple(getattr(tensor, "shape", ()))
    by_channel = (channels[1], *[1] * (len(channels) - 2))
    per_channel = math.prod(shape) == 1 or (
        math.prod(shape) == channels[1] and shape[1 - len(channels) :] == by_channel
    )
    return True if per_channel else f"its constant has shape {shape}, which is not one value per channel"


@predicate("is-classifier-output")
def is_classifier_output(reader: GraphReader, call: Call) -> Verdict:
    """Check that the output is one row of class scores per sample, with no logit layer yet."""
    if not call.inputs:
        return "the output is no tensor"
    shape = reader.shape(call.inputs[0])
    if reader.op(call.inputs[0]) == "logit_layer":
        return False
    if shape is None or len(shape) != 2 or shape[1] < 2:
        return f"the output has shape {shape}, which is not (samples, at least two classes)"
    gate = gate_at_the_end(call.inputs[0], reader.call)
    if gate is not None:
        return f"the output comes from {gate.name}, which makes probabilities of scores; a logit bias belongs before it"
    return True
