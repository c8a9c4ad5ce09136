"""Builders and predicates for explanation views: what is held fixed, and which constants are counted."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from bcos_fx import nn as bnn
from bcos_fx.nn.construction import rebuilt
from bcos_fx.rewriting.core.build import Build, Refused
from bcos_fx.rewriting.core.class_check import find_contradiction
from bcos_fx.rewriting.core.flow import EXPLAINED, GATE, UNKNOWN, VALUE
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.refinement import as_elementwise, is_shifted_ratio, is_square
from bcos_fx.rewriting.core.registry import builder, predicate
from bcos_fx.rewriting.core.slots import SLOTS, Slot

# ---------------------------------------------------------------- what is asked of a node


@predicate("carries-a-value")
def carries_a_value(reader: GraphReader, call: Call) -> Verdict:
    """Check that the node's result is a value that reaches the output; what only feeds gates needs no explanation.

    The node that outputs are explained by needs none either: what it was computed from is not explained.
    """
    if call.node.meta.get(EXPLAINED):
        return False
    return reader.flow.on_value_path(call.node) and reader.flow.kinds[call.node.name] in (VALUE, UNKNOWN)


@predicate("has-a-frozen-form")
def has_a_frozen_form(reader: GraphReader, call: Call) -> Verdict:
    """Check that the module has a method ``frozen``, as every DynamicLayer has: its value with the factor detached."""
    return callable(getattr(type(call.module), "frozen", None))


@predicate("says-its-constant")
def says_its_constant(reader: GraphReader, call: Call) -> Verdict:
    """Check that the module has a method ``constant_like`` of its own, which returns the constant that it adds."""
    method = getattr(type(call.module), "constant_like", None)
    return callable(method) and method is not bnn.DynamicLayer.constant_like


@predicate("does-not-say-its-constant")
def does_not_say_its_constant(reader: GraphReader, call: Call) -> Verdict:
    """Check that the constant that the call adds can only be found by applying it to 0."""
    return says_its_constant(reader, call) is False


@predicate("multiplies-with-itself")
def multiplies_with_itself(reader: GraphReader, call: Call) -> Verdict:
    """Check that both factors are the same value."""
    return is_square(call)


@predicate("is-in-place")
def is_in_place(reader: GraphReader, call: Call) -> Verdict:
    """Check that the activation overwrites its input."""
    return bool(getattr(call.module, "inplace", False))


@predicate("reads-a-live-gate")
def reads_a_live_gate(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call reads a tensor that is only a weight, and through which a gradient could still flow."""
    return SLOTS["gate"](reader, call) is not None


@predicate("has-a-constant-operand")
def has_a_constant_operand(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call adds, joins or selects a tensor that does not depend on the input, beside a value."""
    return SLOTS["constant"](reader, call) is not None


@predicate("has-a-literal-operand")
def has_a_literal_operand(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call adds or selects a number other than 0 beside a value."""
    return SLOTS["literal"](reader, call) is not None


@predicate("adds-an-uncounted-constant")
def adds_an_uncounted_constant(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call adds a constant of its own that is not counted yet."""
    counted = any(reader.op(user) == "counted_value" and user.args[0] is call.node for user in call.node.users)
    return not counted and adds_a_constant(call)


def adds_a_constant(call: Call) -> bool:
    """Return whether a call adds a constant of its own: a bias, a shift, padding with another number than 0."""
    if call.op.name == "pad" and call.arguments.get("mode", "constant") != "constant":
        return False
    return any(_is_something(call.arguments.get(name)) for name in call.op.constants)


def _is_something(value: object) -> bool:
    # Only numbers are compared with 0: a bias is a tensor, which has no one truth value.
    if isinstance(value, int | float):
        return value != 0
    return value is not None


# ---------------------------------------------------------------- what a constant is called


def name_shift(call: Call) -> str:
    """Name the constant that a call adds: the stored tensor, or the layer and what is added in it."""
    if call.op.linearity == "gate":
        return f"{call.name} of 0 at {call.node.name}"
    if isinstance(call.module, bnn.FrozenShiftedRatio):
        return call.module.source
    if call.module is None:
        stored = [str(n.target) for name in call.op.constants for n in call.nodes(name) if n.op == "get_attr"]
        return stored[0] if stored else f"{call.op.name} at {call.node.name}"
    path = str(call.node.target)
    if call.op.batch_statistics:
        return f"{path}.shift"
    return f"{path}.{call.op.constants[0]}" if call.op.constants[0] == "bias" else f"{path} ({call.op.name})"


def name_operand(reader: GraphReader, slot: Slot, call: Call) -> str:
    """Name a constant operand: the stored tensor or the inputs that it is made of, or the number and where it stands.

    A gate that is added to a value has a name of its own: it is computed from what is explained.
    """
    if not isinstance(slot.content, fx.Node):
        return f"{slot.content:g} at {call.node.name}"
    if reader.flow.kinds[slot.content.name] == GATE:
        return f"the gate {slot.content.name}"
    origins = reader.origins(slot.content)
    inputs = [str(node.target) for node in origins if node.op == "placeholder"]
    if inputs:
        return f"the input{'s' if inputs[1:] else ''} {' and '.join(inputs)}"
    return str(origins[0].target) if len(origins) == 1 else slot.content.name


# ---------------------------------------------------------------- builders


@builder("out-of-place-sum")
def out_of_place_sum(build: Build) -> nn.Module:
    """Build a sum that does not overwrite its operands."""
    return bnn.Sum()


@builder("out-of-place-activation")
def out_of_place_activation(build: Build) -> nn.Module:
    """Build the same activation, not in place."""
    return rebuilt(build.layer, inplace=False)


@builder("counted-shift")
def counted_shift(build: Build) -> nn.Module:
    """Build the layer that counts the constant that a bcos_fx layer adds."""
    return bnn.CountedShift(build.layer, name_shift(build.call))


@builder("counted-at-zero")
def counted_at_zero(build: Build) -> nn.Module:
    """Build the layer that counts the constant that an affine call adds, which is its value at 0."""
    call = build.call
    read = call.node.all_input_nodes
    value = call.nodes(call.op.value[0])
    if not value or read[0] is not value[0]:
        raise Refused("the value does not stand first among what it reads")
    return bnn.CountedAtZero(call.as_function({node: place for place, node in enumerate(read)}), name_shift(call))


@builder("counted-constant")
def counted_constant(build: Build) -> nn.Module:
    """Build the layer that counts a constant operand."""
    slot = _slot(build, "constant")
    return bnn.CountedConstant(name_operand(build.reader, slot, build.call), broadcast=_broadcasts(build))


@builder("counted-literal")
def counted_literal(build: Build) -> nn.Module:
    """Build the layer that counts a number that is an operand."""
    slot = _slot(build, "literal")
    source = name_operand(build.reader, slot, build.call)
    return bnn.CountedLiteral(float(slot.content), source, broadcast=_broadcasts(build))


def _slot(build: Build, name: str) -> Slot:
    slot = SLOTS[name](build.reader, build.call)
    if slot is None:
        raise Refused(f"it has no {name} left")
    return slot


def _broadcasts(build: Build) -> bool:
    """Return whether a call broadcasts its operands to each other, and does not join or insert them."""
    return not build.call.op.joined


@builder("frozen-layer")
def frozen_layer(build: Build) -> nn.Module:
    """Build a dynamic layer whose factor is detached."""
    if len(build.call.node.all_input_nodes) != 1:
        raise Refused("it is called with more than its input")
    return bnn.FrozenLayer(build.layer)


@builder("frozen-ratio")
def frozen_ratio(build: Build) -> nn.Module:
    """Build an activation as its input times a ratio that is detached."""
    if build.call.nodes(build.call.op.value[0]) != build.call.node.all_input_nodes[:1]:
        raise Refused("the value does not stand first among what it reads")
    if find_contradiction(build.call) is not None:
        raise Refused("it is not of the linearity class that it is declared with")
    module = build.call.module
    # With parameters, or declared by others, the function may differ from element to element.
    uniform = build.call.op.declared is None and (module is None or not module.state_dict(keep_vars=True))
    return bnn.FrozenRatio(as_elementwise(build.call), uniform=uniform)


@builder("frozen-shifted-ratio")
def frozen_shifted_ratio(build: Build) -> nn.Module:
    """Build an activation that is not 0 at 0 as that constant and its input times a ratio that is detached."""
    if not is_shifted_ratio(build.call):
        raise Refused("nothing is known of it at 0")
    return bnn.FrozenShiftedRatio(as_elementwise(build.call), name_shift(build.call))


@builder("frozen-scale")
def frozen_scale(build: Build) -> nn.Module:
    """Build a variance or a distance as its root or its norm, times what is left of it, which is detached."""
    call, given = build.call, build.call.arguments
    if call.op.name == "pairwise_distance":
        # torch adds eps to the difference; the norm that carries the value is taken without it.
        p, eps, keep = float(given["p"]), float(given["eps"]), bool(given["keepdim"])

        def distance(x: Tensor, y: Tensor) -> Tensor:
            norm: Tensor = torch.linalg.vector_norm(x - y, p, -1, keepdim=keep)
            return norm

        return bnn.FrozenScale(lambda x, y: distance(x + eps, y), distance)
    variance = as_elementwise(call)
    return bnn.FrozenScale(variance, lambda x: variance(x).sqrt())


@builder("frozen-normalisation")
def frozen_normalization(build: Build) -> nn.Module:
    """Build a division by a norm that is detached."""
    given = build.call.arguments
    if build.call.op.name == "l2_normalise":
        dim = given["dim"]
        return bnn.FrozenL2Normalisation(float(given["p"]), dim if isinstance(dim, int) else tuple(dim), given["eps"])
    return bnn.FrozenResponseNorm(given["size"], given["alpha"], given["beta"], given["k"])


@builder("held-fixed")
def held_fixed(build: Build) -> nn.Module:
    """Build the layer that detaches what is only a weight."""
    return bnn.StopGradient()
