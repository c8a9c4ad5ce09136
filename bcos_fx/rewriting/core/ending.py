"""How a network ends: what turns scores into probabilities, and the scores before it.

``softmax``, ``log_softmax``, ``log(softmax(x) + eps)``, ``softmax(x).clamp(eps, 1)``, ``x - logsumexp(x)`` and
``exp(x) / exp(x).sum()`` all say the same of the scores x. A gate and what is done to it, number by number, is stepped
over; a layer, a pooling or a change of shape never is, for what stands before it has other places.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from bcos_fx.rewriting.core.ops import Call

Reader = Callable[[fx.Node], Call | None]

_ARITHMETIC = frozenset({"add", "sub", "rsub", "neg", "mul", "div", "identity", "clone", "to", "float", "type_as"})
_WITH_ITSELF = frozenset({"sub", "div", "where", "where_value_first"})
_NUMBER_BY_NUMBER = frozenset({"ratio", "selection"})
_NOT_DYNAMIC_LINEAR = frozenset({"gate", "opaque"})


def before_last_gate(node: fx.Node, read: Reader) -> fx.Node:
    """Step back over what ends a network in probabilities: the value before is what can be explained.

    Returns:
        The value before the first of the gates at the very end; the node itself where there are none.
    """
    found, step = node, _step(node, read)
    while step is not None:
        node, is_gate = step
        found = node if is_gate else found
        step = _step(node, read)
    return found


def gate_at_the_end(node: fx.Node, read: Reader) -> fx.Node | None:
    """Return the gate, as it is, picked, reshaped or averaged, that a network ends with in place of a row of scores."""
    last: fx.Node | None = node
    while last is not None:
        if before_last_gate(last, read) is not last:
            return last
        call = read(last)
        alone = call is not None and len(last.all_input_nodes) == 1 and not _has_parameters(call)
        passes = alone and call is not None and call.op.linearity in ("linear", "selection")
        last = last.all_input_nodes[0] if passes else None
    return None


def _step(node: fx.Node, read: Reader) -> tuple[fx.Node, bool] | None:
    """Return the node before, and whether a gate lies between; None if a step would leave the ending."""
    call = read(node)
    if call is None or node.op in ("placeholder", "get_attr", "output"):
        return None
    if call.op.name == "logit_layer":
        return call.nodes("input")[0], False
    if _has_parameters(call):
        return None
    if call.op.linearity == "gate" and len(call.inputs) == 1:
        return call.inputs[0], True
    if call.op.name in _WITH_ITSELF and len(call.node.all_input_nodes) == 2:
        return _with_itself(call, read)
    if len(node.all_input_nodes) != 1 or not _same_shape(node, node.all_input_nodes[0]):
        return None
    if call.op.name in _ARITHMETIC or call.op.linearity in _NUMBER_BY_NUMBER:
        return node.all_input_nodes[0], False
    return (node.all_input_nodes[0], True) if call.op.linearity == "opaque" else None


def _with_itself(call: Call, read: Reader) -> tuple[fx.Node, bool] | None:
    """Return a value that meets only what is computed from it alone: a sum of its powers, a comparison with a bound."""
    for value in call.node.all_input_nodes:
        # x - logsumexp(x) ends in x only if its other side is made of x alone; otherwise it is a difference of two
        # values.
        between = _computed_from(value, [node for node in call.node.all_input_nodes if node is not value])
        if between is None or not _same_shape(call.node, value):
            continue
        if call.op.name.startswith("where"):
            return value, False
        if call.nodes(call.op.value[0]) == [value]:
            classes = {found.op.linearity for n in between if (found := read(n)) is not None}
            unknown = any(read(n) is None for n in between)
            return value, unknown or bool(classes & (_NOT_DYNAMIC_LINEAR | {"selection"}))
    return None


def _computed_from(value: fx.Node, nodes: list[fx.Node]) -> set[fx.Node] | None:
    """Return the nodes between a value and some nodes; None if one of them depends on an input by another way."""
    between, pending = set(nodes), list(nodes)
    while pending:
        for source in pending.pop().all_input_nodes:
            if source.op == "placeholder":
                return None
            if source is not value and source not in between:
                between.add(source)
                pending.append(source)
    return between


def _has_parameters(call: Call) -> bool:
    return call.module is not None and next(call.module.parameters(), None) is not None


def _same_shape(one: fx.Node, other: fx.Node) -> bool:
    shapes = one.meta.get("shape"), other.meta.get("shape")
    return shapes[0] is not None and shapes[1] is not None and tuple(shapes[0]) == tuple(shapes[1])
