"""Named conditions that a rule may require of a node.

A predicate answers True (it holds), False (the rule simply does not apply: nothing is reported) or a reason
(a near miss: the shape was there, but the rule must not be used). Predicates are pure.
"""

from __future__ import annotations

import math

from torch import fx, nn

from bcos_fx.nn.bcos import BcosLayer
from bcos_fx.rewriting.core.ending import gate_at_the_end
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import predicate
from bcos_fx.tracing.program import attribute

# ---------------------------------------------------------------- value paths and parameters


@predicate("on-value-path")
def on_value_path(reader: GraphReader, call: Call) -> Verdict:
    """The node carries a value that reaches the output."""
    if reader.flow.on_value_path(call.node):
        return True
    return "it feeds gates only (a weight of something else), so it stays an ordinary layer"


@predicate("reads-its-input-alone")
def reads_its_input_alone(reader: GraphReader, call: Call) -> Verdict:
    """The module is called with its input and nothing else, such as the size that its output shall have."""
    if len(call.node.args) + len(call.node.kwargs) <= len(call.op.inputs):
        return True
    return "it is called with more than its input, which a new layer would not be given"


@predicate("parameters-are-its-own")
def parameters_are_its_own(reader: GraphReader, call: Call) -> Verdict:
    """No other module or function of the graph uses the node's parameters, and nothing else calls its module."""
    if call.module is None:
        return "its parameters are no module's"
    if len(reader.callers[id(call.module)]) > 1:
        others = [n.name for n in reader.callers[id(call.module)] if n is not call.node]
        return f"its module is called elsewhere too ({', '.join(others)}), and a new kernel here would untie them"
    for name, parameter in call.module.named_parameters():
        if len(reader.owners[id(parameter)]) > 1:
            return f"its {name} is shared with another layer, and a new one would untie them"
    return True


def _is_stored(reader: GraphReader, value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


@predicate("parameters-are-stored")
def parameters_are_stored(reader: GraphReader, call: Call) -> Verdict:
    """Weight, bias and statistics of a functional call are stored tensors, not computed ones."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = call.arguments.get(name)
        if isinstance(value, fx.Node) and not _is_stored(reader, value):
            return f"its {name} is computed by {value.name}, so it has no stored parameter of its own"
    return True


@predicate("weight-is-stored")
def weight_is_stored(reader: GraphReader, call: Call) -> Verdict:
    """A functional call is given a stored weight at all, and all its options as plain numbers."""
    if not _is_stored(reader, call.arguments.get("weight")):
        value = call.arguments.get("weight")
        name = value.name if isinstance(value, fx.Node) else repr(value)
        return f"its weight is computed ({name}), so it has no stored parameter of its own"
    return literal_options(reader, call)


@predicate("parameters-follow-from-stored")
def parameters_follow_from_stored(reader: GraphReader, call: Call) -> Verdict:
    """Weight and bias of a functional call follow from stored tensors alone, at least one of them by a computation."""
    given = [node for name in ("weight", "bias") for node in call.nodes(name)]
    if all(_is_stored(reader, node) for node in given):
        return False
    for node in given:
        if not reader.follows_from_stored(node):
            return f"{node.name} is computed from the input, so no layer can hold it"
    return True


@predicate("literal-options")
def literal_options(reader: GraphReader, call: Call) -> Verdict:
    """Options of the call (strides, sizes) are plain numbers, not computed from another tensor's size."""
    data = (*call.op.value, "weight", "bias", "running_mean", "running_var")
    for name in call.arguments:
        if name not in data and call.nodes(name):
            return f"its {name} is computed by {call.nodes(name)[0].name}"
    return True


@predicate("has-bias")
def has_bias(reader: GraphReader, call: Call) -> Verdict:
    """The module adds a constant: a bias or, a batch norm, a shift."""
    return getattr(call.module, "bias", None) is not None or getattr(call.module, "shift", False) is True


# ---------------------------------------------------------------- norms


@predicate("has-running-statistics")
def has_running_statistics(reader: GraphReader, call: Call) -> Verdict:
    """The norm keeps running statistics."""
    if getattr(call.module, "running_var", None) is not None:
        return True
    return "without running statistics its output depends on the other samples of the batch"


@predicate("no-running-statistics")
def no_running_statistics(reader: GraphReader, call: Call) -> Verdict:
    """The norm takes its statistics from each sample, in eval too."""
    if getattr(call.module, "running_var", None) is None:
        return True
    return "with running statistics it is one function in train and another in eval"


# ---------------------------------------------------------------- activations and dropout


@predicate("is-not-in-place")
def is_not_in_place(reader: GraphReader, call: Call) -> Verdict:
    """A rectifier that leaves its input as it is."""
    return not (call.node.op == "call_module" and getattr(call.module, "inplace", False))


@predicate("is-plain-sum")
def is_plain_sum(reader: GraphReader, call: Call) -> Verdict:
    """The sum of two different values, neither of them scaled."""
    return call.arguments.get("alpha") in (None, 1) and call.inputs[0] is not call.inputs[1]


@predicate("reads-a-tensor-of-its-own")
def reads_a_tensor_of_its_own(reader: GraphReader, call: Call) -> Verdict:
    """The input is a tensor of the result's own shape and type, so that the result fits into its memory."""
    value = call.inputs[0]
    same_type = value.meta.get("dtype") == call.node.meta.get("dtype")
    return same_type and reader.shape(value) is not None and reader.shape(value) == reader.shape(call.node)


@predicate("follows-mode")
def follows_mode(reader: GraphReader, call: Call) -> Verdict:
    """The call's ``training`` argument was seen to follow the module's mode."""
    return "training_argument" in call.node.meta


@predicate("is-frozen")
def is_frozen(reader: GraphReader, call: Call) -> Verdict:
    """The call's ``training`` argument is false in either mode."""
    return call.arguments.get("training") is False and "training_argument" not in call.node.meta


@predicate("never-drops")
def never_drops(reader: GraphReader, call: Call) -> Verdict:
    """Dropout that does nothing in either mode."""
    if isinstance(call.arguments.get("p"), int | float) and call.arguments["p"] == 0:
        return True
    return call.module is None and call.arguments["training"] is False and "training_argument" not in call.node.meta


# ---------------------------------------------------------------- pooling


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(2, len(shape)))


@predicate("means-over-space")
def means_over_space(reader: GraphReader, call: Call) -> Verdict:
    """A mean over all spatial dimensions of an image, and no other."""
    shape, dims = reader.shape(call.inputs[0]), call.arguments["dim"]
    if shape is None or len(shape) != 4 or call.arguments.get("dtype") is not None:
        return False
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, tuple | list) or not all(isinstance(d, int) for d in dims):
        return False
    return sorted(d % len(shape) for d in dims) == [*_spatial(shape)]


@predicate("keeps-dimensions")
def keeps_dimensions(reader: GraphReader, call: Call) -> Verdict:
    """A reduction that keeps the reduced dimensions."""
    return call.arguments["keepdim"] is True


@predicate("drops-dimensions")
def drops_dimensions(reader: GraphReader, call: Call) -> Verdict:
    """A reduction that removes the reduced dimensions."""
    return call.arguments["keepdim"] is False


@predicate("covers-whole-map")
def covers_whole_map(reader: GraphReader, call: Call) -> Verdict:
    """An average pool whose window is the map's own height and width, so that it covers a map of any size."""
    window, image = call.arguments["kernel_size"], call.inputs[0]
    if not isinstance(window, tuple | list) or not _averages_all(call):
        return False
    return all(_is_size_of(k, image, dim) for dim, k in zip((2, 3), window, strict=True))


def _averages_all(call: Call) -> bool:
    """Say whether a pool neither pads nor divides by another number than it sums."""
    return call.arguments["padding"] in (0, (0, 0), [0, 0]) and call.arguments.get("divisor_override") is None


def _is_size_of(value: object, image: fx.Node, dim: int) -> bool:
    if not isinstance(value, fx.Node) or value.target != "size":
        return False
    return tuple(value.args) in ((image, dim), (image, dim - 4))


@predicate("averages-to-one-pixel")
def averages_to_one_pixel(reader: GraphReader, call: Call) -> Verdict:
    """An average pool without padding that gave a single pixel in the example run."""
    out = reader.shape(call.node)
    return out is not None and out[2:] == (1, 1) and _averages_all(call)


@predicate("flattens-one-pixel")
def flattens_one_pixel(reader: GraphReader, call: Call) -> Verdict:
    """Turns (N, C, 1, 1) into (N, C)."""
    if not call.inputs:  # a stored tensor, such as a weight that is given its spatial dimensions
        return False
    shape, out = reader.shape(call.inputs[0]), reader.shape(call.node)
    return shape is not None and out is not None and len(shape) == 4 and out == shape[:2] and shape[2:] == (1, 1)


@predicate("has-one-pixel")
def has_one_pixel(reader: GraphReader, call: Call) -> Verdict:
    """Reads a map (N, C, 1, 1)."""
    shape = reader.shape(call.inputs[0]) if call.inputs else None
    return shape is not None and len(shape) == 4 and shape[2:] == (1, 1)


@predicate("has-two-dimensions")
def has_two_dimensions(reader: GraphReader, call: Call) -> Verdict:
    """Gives (N, C)."""
    shape = reader.shape(call.node)
    return shape is not None and len(shape) == 2


@predicate("is-not-flatten-module")
def is_not_flatten_module(reader: GraphReader, call: Call) -> Verdict:
    """Anything but ``nn.Flatten(1)``, the canonical form."""
    return not (isinstance(call.module, nn.Flatten) and call.module.start_dim == 1 and call.module.end_dim == -1)


@predicate("no-indices")
def no_indices(reader: GraphReader, call: Call) -> Verdict:
    """Max pooling whose indices nobody asked for."""
    return "its indices are used, which an average does not have" if call.arguments["return_indices"] else True


@predicate("not-dilated")
def not_dilated(reader: GraphReader, call: Call) -> Verdict:
    """Max pooling without dilation."""
    dilation = call.arguments["dilation"]
    plain = all(d == 1 for d in (dilation if isinstance(dilation, tuple | list) else (dilation,)))
    return True if plain else f"average pooling knows no dilation ({dilation!r})"


@predicate("padded-with-numbers")
def padded_with_numbers(reader: GraphReader, call: Call) -> Verdict:
    """Pooling of what was not padded with infinities."""
    producer = reader.call(call.inputs[0])
    infinite = producer is not None and producer.op.name == "pad" and producer.arguments.get("value") == -math.inf
    return "its input is padded with -inf, which would be averaged" if infinite else True


# ---------------------------------------------------------------- inputs and outputs


@predicate("is-image-input")
def is_image_input(reader: GraphReader, call: Call) -> Verdict:
    """An input (N, C, H, W) with as many channels as mean and std have, or one or three where they are not given."""
    shape = reader.shape(call.node)
    if shape is None or len(shape) != 4 or any(reader.op(user) == "input_encoding" for user in call.node.users):
        return False
    if not getattr(call.node.meta.get("dtype"), "is_floating_point", True):
        return "it holds integers; give floating-point images as the example to encode it"
    given = len(reader.options.mean)
    if given and given != shape[1]:
        return f"mean and std have {given} values and the input has {shape[1]} channels"
    if shape[1] in (1, 3) or given:
        return True
    return f"it has {shape[1]} channels, so it is taken as it is; give mean and std for each channel to encode it"


@predicate("splits-channels-in-half")
def splits_channels_in_half(reader: GraphReader, call: Call) -> Verdict:
    """The layer reads the decoded input along its channels and can be widened: ungrouped, zero-padded."""
    if getattr(call.module, "groups", 1) != 1:
        return "it is a grouped convolution, whose groups would no longer see the pairs [x, -x]"
    shape = reader.shape(call.inputs[0]) or reader.shape(call.node)
    if call.op.name == "linear" and (shape is None or len(shape) != 2):
        return "it is a linear layer along another dimension than the channels"
    return True


@predicate("pads-with-zero")
def pads_with_zero(reader: GraphReader, call: Call) -> Verdict:
    """Padding of the spatial dimensions with zero."""
    value = call.arguments.get("value")
    if call.arguments.get("mode") != "constant" or (value is not None and value != 0):
        return "it pads with something else than zero, which is no linear map"
    pad = call.arguments["pad"]
    return True if isinstance(pad, tuple | list) and len(pad) <= 4 else "it pads the channels too"


@predicate("stays-floating")
def stays_floating(reader: GraphReader, call: Call) -> Verdict:
    """Gives floating-point numbers."""
    dtype = call.node.meta.get("dtype")
    return True if dtype is not None and dtype.is_floating_point else f"it gives {dtype}, which has no halves"


@predicate("keeps-channels")
def keeps_channels(reader: GraphReader, call: Call) -> Verdict:
    """Flattens everything from the channels on, so that channels stay the slowest dimension."""
    shape, out = reader.shape(call.inputs[0]), reader.shape(call.node)
    return shape is not None and out is not None and len(out) == 2 and out == (shape[0], math.prod(shape[1:]))


@predicate("is-size-free")
def is_size_free(reader: GraphReader, call: Call) -> Verdict:
    """A flatten from dimension 1, or a reshape that reads the batch size and leaves the rest to -1."""
    if call.op.name == "flatten":
        return bool(call.arguments["start_dim"] == 1 and call.arguments["end_dim"] in (-1, 3))
    shape = call.arguments["shape"]
    return isinstance(shape, tuple) and len(shape) == 2 and isinstance(shape[0], fx.Node) and shape[1] == -1


@predicate("shifts-or-scales-channels")
def shifts_or_scales_channels(reader: GraphReader, call: Call) -> Verdict:
    """Adds, subtracts, multiplies or divides by one constant per channel (or one for all)."""
    other = call.arguments.get("other")
    if call.arguments.get("alpha") not in (None, 1) or call.arguments.get("rounding_mode") is not None:
        return False
    channels = reader.shape(call.inputs[0])
    if isinstance(other, bool) or other is None or channels is None:
        return False
    if isinstance(other, int | float):
        return True
    if not _is_stored(reader, other):
        return False
    tensor = attribute(reader.graph_module, str(other.target))
    if isinstance(tensor, nn.Parameter):
        return "the normalisation is a trained parameter, so it is not folded away"
    shape = tuple(getattr(tensor, "shape", ()))
    per_channel = math.prod(shape) == 1 or (math.prod(shape) == channels[1] and shape[-3:] == (channels[1], 1, 1))
    return True if per_channel else f"its constant has shape {shape}, which is not one value per channel"


@predicate("is-classifier-output")
def is_classifier_output(reader: GraphReader, call: Call) -> Verdict:
    """The output is one row of class scores per sample, with no logit layer yet."""
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


# ---------------------------------------------------------------- alignment


@predicate("b-differs")
def b_differs(reader: GraphReader, call: Call) -> Verdict:
    """The B-cos layer has another B than the options ask for, and did not come as a B-cos layer with a B of its own."""
    layer = call.module
    if not isinstance(layer, BcosLayer) or layer.b == reader.options.pressure(str(call.node.target), layer):
        return False
    if reader.was_peer(call.node):
        return False
    if reader.has_peer_layers:
        return "the network came with B-cos layers of its own, so its plain layers are meant to be plain"
    return True
