"""How a network ends: what turns scores into probabilities, and the scores before it.

``softmax``, ``log_softmax``, ``log(softmax(x) + eps)``, ``softmax(x).clamp(eps, 1)``, ``x - logsumexp(x)`` and
``exp(x) / exp(x).sum()`` all rank the same scores x. A gate and what is done to it, number by number, is stepped over.
What only moves numbers (a reshape, a picked class, probabilities beside each other) is done to the scores in their
place. A layer or a pooling is never stepped over: the scores before it have no place of their own in the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import fx

from bcos_fx.rewriting.core.ops import Call
from bcos_fx.tracing.program import Walk

Reader = Callable[[fx.Node], Call | None]

_ARITHMETIC = frozenset({"add", "sub", "rsub", "neg", "mul", "div", "identity", "clone", "to", "float", "type_as"})
_WITH_ITSELF = frozenset({"sub", "div", "where", "where_value_first"})
_NUMBER_BY_NUMBER = frozenset({"ratio", "selection"})
_OPAQUE_BY_NUMBER = frozenset({"log_softmax", "logarithm", "rounding", "rsqrt"})
_FALLING = frozenset("neg rsqrt softmin reciprocal erfc erfcx acos arccos".split())
_NOT_DYNAMIC_LINEAR = frozenset({"gate", "opaque"})


@dataclass
class Ending:
    """What ends a network in probabilities, and the scores that these are made of.

    Attributes:
        scores: probabilities -> what stands before their gates, of the same shape: scores, or moved probabilities.
        falling: those of the probabilities that fall where their score rises, as in ``1 - sigmoid(x)``.
        moved: the nodes on the way that move numbers and compute none -> whether they move probabilities.
    """

    scores: dict[fx.Node, fx.Node] = field(default_factory=dict)
    falling: set[fx.Node] = field(default_factory=set)
    moved: dict[fx.Node, bool] = field(default_factory=dict)


def read_ending(end: fx.Node, read: Reader) -> Ending:
    """Read how a network ends, from its output back to the scores; nothing is found where no gate ends it."""
    ending = Ending()
    _read_ending(end, read, ending)
    return ending


def _read_ending(node: fx.Node, read: Reader, into: Ending) -> bool:
    """Note what a node is made of; return whether it holds probabilities."""
    steps = _steps(node, read)
    # The gate nearest to the scores counts: log(softmax(x) + eps) ends in two, and x stands before both.
    before, falls = next(((at, falls) for at, is_gate, falls in reversed(steps) if is_gate), (node, False))
    ends_in_gate = before is not node
    last, _, last_falls = steps[-1] if steps else (node, False, False)
    call = read(last)
    if call is not None and call.op.moves and last not in into.moved:
        into.moved[last] = False  # a node that is met again on its own way has no further one
        into.moved[last] = _read_sources(call, read, into)
    if into.moved.get(last):
        before, falls = last, last_falls
    if before is not node:
        into.scores[node] = before
        into.falling |= {node} if falls else set()
    return ends_in_gate or into.moved.get(last, False)


def _read_sources(call: Call, read: Reader, into: Ending) -> bool:
    """Note what the sources of a call are made of; values side by side all hold probabilities, or none counts."""
    sources = [source for name in call.op.value for source in call.nodes(name)]
    # On a copy: where one of the sources holds no probabilities, nothing that the others added may count.
    parts = Ending(dict(into.scores), set(into.falling), dict(into.moved))
    if not all([_read_ending(source, read, parts) for source in sources]):
        return False
    into.scores, into.falling, into.moved = parts.scores, parts.falling, parts.moved
    return True


def _steps(node: fx.Node, read: Reader) -> list[tuple[fx.Node, bool, bool]]:
    """Step back over gates and arithmetic: the values before, whether a gate lies between, whether the node falls."""
    steps: list[tuple[fx.Node, bool, bool]] = []
    falls = False
    while (step := _step(node, read)) is not None:
        call = read(node)
        falls ^= call is not None and _is_falling(call, step[0])
        node = step[0]
        steps.append((*step, falls))
    return steps


def _is_falling(call: Call, value: fx.Node) -> bool:
    """Return whether arithmetic with numbers falls where a value rises: -p, 1 - p, 1 / p, p * -2."""
    minuend = {"sub": "input", "rsub": "other"}.get(call.op.name)
    if not _FALLING.isdisjoint((call.op.name, getattr(call.node.target, "__name__", call.node.target))) or (
        minuend is not None and value not in call.nodes(minuend)
    ):
        return True
    if call.op.name == "div" and value not in call.nodes("input"):
        return True
    numbers = [n for n in call.arguments.values() if isinstance(n, int | float)]
    return call.op.name in ("mul", "div", "pow") and any(number < 0 for number in numbers)


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
    return (node.all_input_nodes[0], True) if call.op.name in _OPAQUE_BY_NUMBER else None


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
            calls = [read(n) for n in between]
            classes = {None if step is None else step.op.linearity for step in calls}
            return value, bool(classes & (_NOT_DYNAMIC_LINEAR | {"selection", None}))
    return None


def _computed_from(value: fx.Node, nodes: list[fx.Node]) -> set[fx.Node] | None:
    """Return the nodes between a value and some nodes; None if one of them depends on an input by another way."""
    between = Walk(nodes)
    for node in between:
        if any(source.op == "placeholder" for source in node.all_input_nodes):
            return None
        between.go_on(set(node.all_input_nodes) - {value})
    return between.reached


def _has_parameters(call: Call) -> bool:
    return call.module is not None and next(call.module.parameters(), None) is not None


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    shapes = a.meta.get("shape"), b.meta.get("shape")
    return shapes[0] is not None and shapes[1] is not None and tuple(shapes[0]) == tuple(shapes[1])
