"""Which sums give a value its position: a stored vector for each place of a sequence or map, added to it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import predicate
from bcos_fx.rewriting.core.slots import find_constant_operands

_PROJECTIONS = ("linear", "bcos_linear")


@predicate("adds-positions")
def adds_positions(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call adds a constant that varies with the place, not with the sample, to a value of its shape."""
    contents = [slot.content for slot in find_constant_operands(reader, call)]
    if len(contents) != 1 or not isinstance(contents[0], fx.Node) or call.arguments.get("alpha") not in (None, 1):
        return False
    constant, shape = reader.shape(contents[0]), reader.shape(call.node)
    carriers = [node for node in call.inputs if node is not contents[0]]
    if constant is None or shape is None or len(carriers) != 1 or reader.shape(carriers[0]) != shape:
        return False
    places = [size for size in constant if size > 1]
    # One number for each feature is a bias; two dimensions are a place and its features.
    return len(places) >= 2


@predicate("is-asked-for-here")
def is_asked_for_here(reader: GraphReader, call: Call) -> Verdict:
    """Check that ``positions`` applies to all sums, or to those that only the projections of an attention pool read.

    A pool's queries, keys and values read the sum and nothing else does; elsewhere a residual or a norm reads it.
    """
    if reader.options.positions != "strip-in-pool":
        return True
    for reader_of_sum in _readers(reader, call.node):
        op = reader.op(reader_of_sum)
        if op not in _PROJECTIONS:
            return f"{reader_of_sum.name} ({op}) reads it, so it is not the input of an attention pool"
    return True


def _readers(reader: GraphReader, node: fx.Node) -> Iterator[fx.Node]:
    """Yield what reads a node's numbers, past operations that only move them."""
    for user in node.users:
        call = reader.call(user)
        moves = call is not None and call.op.linearity == "linear" and call.module is None
        if moves and len(user.all_input_nodes) == 1 and call is not None and call.op.name not in _PROJECTIONS:
            yield from _readers(reader, user)
        elif user.meta.get("type") not in ("size", "other"):
            yield user
