"""Slots: single places in a call's arguments, one of which a rule may exchange.

``F.scaled_dot_product_attention(x, x, x)`` reads one node three times, twice as a gate and once as a value, so what
a rule exchanges is a place and not a node. Rules name slots as ``node.gate``, ``node.constant``, ``node.literal`` and
``node.carrier``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from bcos_fx.rewriting.core.flow import CONSTANT, GATE, UNKNOWN, VALUE
from bcos_fx.rewriting.core.ops import Call, arguments_of
from bcos_fx.rewriting.core.reader import GraphReader


@dataclass(frozen=True)
class Slot:
    """One leaf of a call's arguments.

    Attributes:
        index: its place among all leaves, positional arguments first.
        parameter: the op's parameter that it belongs to.
        content: a node, or a literal.
    """

    index: int
    parameter: str
    content: Any


def list_slots(call: Call) -> list[Slot]:
    """Return the leaves of a call's arguments that belong to a parameter, in order."""
    leaves: list[Any] = []

    def note(leaf: object) -> Any:
        leaves.append(leaf)
        # The leaves are replaced by slots, so that the op's own naming of arguments says which parameter each is in.
        return Slot(len(leaves) - 1, "", leaf)

    args = fx.node.map_aggregate(call.node.args, note)
    kwargs = fx.node.map_aggregate(dict(call.node.kwargs), note)
    named = arguments_of(call.op, call.node, args, kwargs)
    labeled = [Slot(leaf.index, name, leaf.content) for name, value in named.items() for leaf in _leaves(value)]
    return sorted(labeled, key=lambda slot: slot.index)


def _leaves(value: object) -> Iterator[Slot]:
    if isinstance(value, Slot):
        yield value
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)


def find_live_gate(reader: GraphReader, call: Call) -> Slot | None:
    """Return the first slot that is only a weight and through which a gradient could still flow."""
    for slot in list_slots(call):
        if not isinstance(slot.content, fx.Node) or reader.op(slot.content) == "held_fixed":
            continue
        if slot.content.meta.get("type") == "tensor" and reader.flow.is_gate(call, slot.parameter, slot.content):
            return slot
    return None


def find_constant_operand(reader: GraphReader, call: Call) -> Slot | None:
    """Return the first tensor or size that does not depend on the input and is added, joined or selected beside it."""
    return next((slot for slot in find_constant_operands(reader, call) if isinstance(slot.content, fx.Node)), None)


def find_literal_operand(reader: GraphReader, call: Call) -> Slot | None:
    """Return the first number other than 0 that is added to or selected beside a value."""
    return next((slot for slot in find_constant_operands(reader, call) if not isinstance(slot.content, fx.Node)), None)


def find_constant_operands(reader: GraphReader, call: Call) -> list[Slot]:
    """Return the operands that contribute beside a value and are not values: tensors, sizes, numbers, fixed gates."""
    return [slot for slot in _operands(reader, call) if _contributes(reader, slot)]


def _contributes(reader: GraphReader, slot: Slot) -> bool:
    content = slot.content
    if isinstance(content, fx.Node):
        return not _counts_nothing(reader, content)
    # torch.max(x, 1) has a dimension where torch.max(x, y) has a tensor.
    is_number = isinstance(content, int | float) and not isinstance(content, bool)
    return is_number and content != 0 and slot.parameter != "dim"


def find_carrier(reader: GraphReader, call: Call) -> Slot | None:
    """Return the first operand that carries a value: it defines the number of samples and their layout."""
    for slot in list_slots(call):
        content = slot.content
        if isinstance(content, fx.Node) and slot.parameter in reader.flow.value_parameters(call):
            if reader.flow.kinds[content.name] in (VALUE, UNKNOWN):
                return slot
    return None


def _operands(reader: GraphReader, call: Call) -> list[Slot]:
    """Return the slots of value parameters that hold constants or gates, if the call carries a value besides."""
    if call.op.linearity not in ("linear", "selection") or reader.flow.kinds[call.node.name] not in (VALUE, UNKNOWN):
        return []
    of_values = [slot for slot in list_slots(call) if slot.parameter in reader.flow.value_parameters(call)]
    beside = (CONSTANT, GATE)
    return [s for s in of_values if not isinstance(s.content, fx.Node) or reader.flow.kinds[s.content.name] in beside]


def _counts_nothing(reader: GraphReader, node: fx.Node) -> bool:
    """Return whether a constant is not a number, counted already, or zero by its very name."""
    if node.meta.get("type") not in ("tensor", "size", None) or reader.op(node) == "counted_constant":
        return True
    name = getattr(node.target, "__name__", str(node.target))
    return name in ("zeros", "zeros_like", "new_zeros")


SlotFinder = Callable[[GraphReader, Call], Slot | None]
SLOTS: dict[str, SlotFinder] = {
    "gate": find_live_gate,
    "constant": find_constant_operand,
    "literal": find_literal_operand,
    "carrier": find_carrier,
}
"""The slots that a rule may name, as ``node.gate`` and so on."""
