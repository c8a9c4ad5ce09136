"""Named conditions that a rule may require of a node.

A predicate answers True (it holds), False (the rule simply does not apply: nothing is reported) or a reason
(a near miss: the shape was there, but the rule must not be used). Predicates are pure.
"""

from __future__ import annotations

from torch import fx

from bcos_fx.nn.bcos import BcosLayer
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import predicate

# ---------------------------------------------------------------- value paths and parameters


@predicate("on-value-path")
def on_value_path(reader: GraphReader, call: Call) -> Verdict:
    """Check that the node carries a value that reaches the output."""
    if reader.flow.on_value_path(call.node):
        return True
    return "it feeds gates only (a weight of something else), so it stays an ordinary layer"


@predicate("reads-its-input-alone")
def reads_its_input_alone(reader: GraphReader, call: Call) -> Verdict:
    """Check that the module is called with its input and nothing else, such as the size of its output."""
    if len(call.node.args) + len(call.node.kwargs) <= len(call.op.inputs):
        return True
    return "it is called with more than its input, which a new layer would not be given"


@predicate("parameters-are-its-own")
def parameters_are_its_own(reader: GraphReader, call: Call) -> Verdict:
    """Check that nothing else in the graph uses the node's parameters or calls its module."""
    if call.module is None:
        return "its parameters are not a module's"
    if len(reader.callers[id(call.module)]) > 1:
        others = [n.name for n in reader.callers[id(call.module)] if n is not call.node]
        return f"its module is called elsewhere too ({', '.join(others)}), and a new kernel here would untie them"
    for name, parameter in call.module.named_parameters():
        if len(reader.owners[id(parameter)]) > 1:
            return f"its {name} is shared with another layer, and a new one would untie them"
    return True


def _is_stored(value: object) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


@predicate("parameters-are-stored")
def parameters_are_stored(reader: GraphReader, call: Call) -> Verdict:
    """Check that weight, bias and statistics of a functional call are stored tensors, not computed ones."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = call.arguments.get(name)
        if isinstance(value, fx.Node) and not _is_stored(value):
            return f"its {name} is computed by {value.name}, so it has no stored parameter of its own"
    return True


@predicate("weight-is-stored")
def weight_is_stored(reader: GraphReader, call: Call) -> Verdict:
    """Check that a functional call is given a stored weight, and all its options as plain numbers."""
    value = call.arguments.get("weight")
    if not _is_stored(value):
        name = value.name if isinstance(value, fx.Node) else repr(value)
        return f"its weight is computed ({name}), so it has no stored parameter of its own"
    return literal_options(reader, call)


@predicate("parameters-follow-from-stored")
def parameters_follow_from_stored(reader: GraphReader, call: Call) -> Verdict:
    """Check that a call's weight and bias follow from stored tensors alone, at least one of them by a computation."""
    given = [node for name in ("weight", "bias") for node in call.nodes(name)]
    if all(map(_is_stored, given)):
        return False
    for node in given:
        if not reader.follows_from_stored(node):
            return f"{node.name} is computed from the input, so no layer can hold it"
    return True


@predicate("literal-options")
def literal_options(reader: GraphReader, call: Call) -> Verdict:
    """Check that options of the call (strides, sizes) are plain numbers, not computed from a tensor's size."""
    data = (*call.op.value, "weight", "bias", "running_mean", "running_var")
    for name in call.arguments:
        if name not in data and call.nodes(name):
            return f"its {name} is computed by {call.nodes(name)[0].name}"
    return True


@predicate("has-a-kernel")
def has_a_kernel(reader: GraphReader, call: Call) -> Verdict:
    """Check that the op multiplies the value by a kernel (``weighted`` in the vocabulary) and is not a peer's layer."""
    return call.op.weighted and not call.op.peers


@predicate("is-a-bcos-layer")
def is_a_bcos_layer(reader: GraphReader, call: Call) -> Verdict:
    """Check that the module is a B-cos layer of bcos_fx or of a subclass, so that it has a B."""
    return isinstance(call.module, BcosLayer)


@predicate("has-bias")
def has_bias(reader: GraphReader, call: Call) -> Verdict:
    """Check that the module adds a constant: a bias or, for a batch norm, a shift."""
    return getattr(call.module, "bias", None) is not None or getattr(call.module, "shift", False) is True


# ---------------------------------------------------------------- norms


@predicate("has-running-statistics")
def has_running_statistics(reader: GraphReader, call: Call) -> Verdict:
    """Check that the norm keeps running statistics."""
    if getattr(call.module, "running_var", None) is not None:
        return True
    return "without running statistics its output depends on the other samples of the batch"


@predicate("no-running-statistics")
def no_running_statistics(reader: GraphReader, call: Call) -> Verdict:
    """Check that the norm computes its statistics from each sample, in eval too."""
    if getattr(call.module, "running_var", None) is None:
        return True
    return "with running statistics it is one function in train and another in eval"


# ---------------------------------------------------------------- activations and dropout


@predicate("is-not-in-place")
def is_not_in_place(reader: GraphReader, call: Call) -> Verdict:
    """Check that a rectifier leaves its input as it is."""
    return not (call.node.op == "call_module" and getattr(call.module, "inplace", False))


@predicate("is-plain-sum")
def is_plain_sum(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call sums two different values, neither of them scaled."""
    return call.arguments.get("alpha") in (None, 1) and call.inputs[0] is not call.inputs[1]


@predicate("reads-a-tensor-of-its-own")
def reads_a_tensor_of_its_own(reader: GraphReader, call: Call) -> Verdict:
    """Check that the input has the result's own shape and type, so that the result fits into its memory."""
    value = call.inputs[0]
    same_type = value.meta.get("dtype") == call.node.meta.get("dtype")
    return same_type and reader.shape(value) is not None and reader.shape(value) == reader.shape(call.node)


@predicate("follows-mode")
def follows_mode(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call's ``training`` argument was seen to follow the module's mode."""
    return "training_argument" in call.node.meta


@predicate("is-frozen")
def is_frozen(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call's ``training`` argument is false in either mode."""
    return call.arguments.get("training") is False and "training_argument" not in call.node.meta


@predicate("never-drops")
def never_drops(reader: GraphReader, call: Call) -> Verdict:
    """Check that a dropout does nothing in either mode."""
    if isinstance(call.arguments.get("p"), int | float) and call.arguments["p"] == 0:
        return True
    return call.module is None and call.arguments["training"] is False and "training_argument" not in call.node.meta


# ---------------------------------------------------------------- alignment


@predicate("b-differs")
def b_differs(reader: GraphReader, call: Call) -> Verdict:
    """Check that the B-cos layer's B differs from the options', and that it was not a B-cos layer in the original."""
    layer = call.module
    if not isinstance(layer, BcosLayer) or layer.b == reader.options.pressure(str(call.node.target), layer):
        return False
    if reader.was_peer(call.node):
        return False
    if reader.has_peer_layers:
        return "the network came with B-cos layers of its own, so its plain layers are meant to be plain"
    return True
