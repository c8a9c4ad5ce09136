"""First layers behind a rearrangement of pixels, such as the patch embedding of a vision transformer.

Whether pixels are only rearranged is decided by what the graph computes, not by which operations it names: the nodes
between the decoding and the layer are run on numbers that are all different, once on x' and once, with every read of
the decoding put to what it decodes, on [x', -x']. The layer is widened if the second run gives each number of the first
with both signs, in the same order at every place. (So it is too where a linear map mixes the pixels of one channel.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from bcos_fx.nn.construction import rebuilt
from bcos_fx.rewriting.builders.input import WIDENING, metadata_moved
from bcos_fx.rewriting.builders.layers import new_parameter
from bcos_fx.rewriting.core.build import Build, Refused, Rewired
from bcos_fx.rewriting.core.channels import encoded_axis
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder, predicate
from bcos_fx.tracing.program import run_node

# What running a graph on twice the channels can raise: a size that was written down does not fit any more.
_MISFITS = (RuntimeError, TypeError, ValueError, IndexError)
# Parameters of calls that hold sizes; one of them may be a literal number of channels.
_SIZES = {"reshape": "shape", "unflatten": "sizes"}


@dataclass(frozen=True)
class _Arrangement:
    """How a layer's input comes from pixels.

    Attributes:
        columns: for each input of the widened layer, that of the layer.
        signs: 1 or -1 for each input of the widened layer.
        values: what each node between gives in the second run.
        calls: arguments of the nodes that change.
    """

    columns: list[int]
    signs: list[int]
    values: Mapping[fx.Node, Any]
    calls: Mapping[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]]


@predicate("reads-rearranged-pixels")
def reads_rearranged_pixels(reader: GraphReader, call: Call) -> Verdict:
    """Check that the layer alone reads pixels of the decoded image, in another order but with channels apart."""
    arrangement = _arrangement(reader, call)
    return arrangement if isinstance(arrangement, str) else arrangement is not None


@builder("widened-layer-of-rearranged")
def widened_layer_of_rearranged(build: Build) -> Rewired:
    """Build the layer on rearranged [x', -x'] with weights w/2 and -w/2, at the place where each pixel now stands."""
    arrangement, layer = _arrangement(build.reader, build.call), build.layer
    name, weight = WIDENING.get(type(layer)), layer._parameters["weight"]
    if not isinstance(arrangement, _Arrangement) or name is None or weight is None:
        raise Refused(f"{type(layer).__name__} cannot be widened")
    wide = rebuilt(layer, **{name: 2 * int(getattr(layer, name))})
    signs = torch.tensor(arrangement.signs).to(weight).view(1, -1, *[1] * (weight.dim() - 2))
    wide._parameters["weight"] = new_parameter(weight.detach()[:, arrangement.columns] * signs / 2, weight)
    return Rewired(wide, arrangement.calls, arrangement.values)


def _arrangement(reader: GraphReader, call: Call) -> _Arrangement | str | None:
    """Find the rearrangement before a layer; a reason why it does not count as one, or None where there is none."""
    between = _between(reader, call.inputs[0])
    if between is None:
        return None
    decoding, nodes = between
    others = [user for node in (decoding, *nodes) if _is_tensor(node) for user in node.users if _is_tensor(user)]
    stray = [user.name for user in others if user not in nodes and user is not call.node]
    if stray:
        return f"{stray[0]} reads the rearranged pixels too"
    if reader.shape(decoding) is None:
        return None
    run = _NumberedRun(reader, decoding, nodes)
    axis = -1 if call.op.name == "linear" else 1
    try:
        plain = run.on_plain()
    except _MISFITS:
        return None
    if getattr(call.module, "groups", 1) != 1:
        return "it is a grouped convolution, whose groups would no longer see the pairs [x, -x]"
    for values, calls in run.on_both_halves():
        columns = _columns(plain[call.inputs[0]].movedim(axis, -1), values[call.inputs[0]], axis)
        if columns is not None:
            leak = _leak(nodes, call.node, plain, values)
            return leak if leak is not None else _Arrangement(*columns, values, calls)
    return "what it reads is not the pixels of the image in another order, with the same pixels at each place"


def _leak(
    nodes: list[fx.Node], layer: fx.Node, plain: Mapping[fx.Node, Any], both: Mapping[fx.Node, Any]
) -> str | None:
    """Return the reason why the rest of the graph would read another size than it does now, if it would."""
    for node in nodes:
        outside = [user for user in node.users if user not in nodes and user is not layer]
        changed = _size(plain[node]) != _size(both[node])
        if outside and changed and any(user.args[1:2] not in (("dtype",), ("device",)) for user in outside):
            return f"{outside[0].name} reads a size that depends on the number of channels"
    return None


def _size(value: object) -> Any:
    return value.shape if isinstance(value, Tensor) else value


def _is_tensor(node: fx.Node) -> bool:
    return node.meta.get("type") not in ("size", "other")


def _between(reader: GraphReader, last: fx.Node) -> tuple[fx.Node, list[fx.Node]] | None:
    """Return the decoding behind a value and the nodes between, in order; None unless all of these are linear."""
    decodings, between, pending = set(), set(), [last]
    while pending:
        node = pending.pop()
        if reader.op(node) == "input_decoding":
            decodings.add(node)
        elif node not in between and _is_tensor(node):
            call = reader.call(node)
            holds = call is None or call.op.linearity != "linear" or node.op in ("placeholder", "get_attr")
            if holds or (call is not None and call.module is not None and any(True for _ in call.module.parameters())):
                return None
        if node not in decodings and node not in between:
            between.add(node)
            pending += node.all_input_nodes
    if len(decodings) != 1 or last in decodings:
        return None
    # What does not depend on the decoding is the same for plain and for encoded pixels.
    decoding = decodings.pop()
    depends = {decoding}
    ordered = sorted(between)
    for node in ordered:
        if depends & set(node.all_input_nodes):
            depends.add(node)
    return decoding, [node for node in ordered if node in depends]


class _NumberedRun:
    """The nodes between a decoding and a layer, run on numbers that are all different."""

    def __init__(self, reader: GraphReader, decoding: fx.Node, nodes: list[fx.Node]) -> None:
        self.reader, self.decoding, self.nodes = reader, decoding, nodes
        shape, self.axis = reader.shape(decoding) or (), encoded_axis(reader, decoding)
        count = torch.Size(shape).numel()
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        # From 1, as 0 has no sign; shuffled, so that no arithmetic on neighbors passes for a rearrangement.
        self.pixels = (order + 1).double().view(shape)

    def on_plain(self) -> dict[fx.Node, Any]:
        """Run on x' as the graph stands."""
        values: dict[fx.Node, Any] = {self.decoding: self.pixels}
        for node in self.nodes:
            values[node] = self._value(node, node.args, node.kwargs, values)
        return values

    def on_both_halves(self) -> Iterator[tuple[dict[fx.Node, Any], dict[fx.Node, Any]]]:
        """Run on [x', -x'], with every choice of one size doubled in each call that names sizes; skip misfits."""
        encoded = torch.cat([self.pixels, -self.pixels], self.axis)
        # Sizes that other nodes read from the decoding are read from its input instead, see metadata_moved().
        readers = [node for node in self.nodes if self.decoding in node.all_input_nodes]
        calls = {node: self._moved(node.args, dict(node.kwargs)) for node in readers}
        calls |= metadata_moved(self.reader, self.decoding, without=readers)
        yield from self._from(0, {self.decoding.all_input_nodes[0]: encoded}, calls)

    def _from(
        self, place: int, values: dict[fx.Node, Any], calls: dict[fx.Node, Any]
    ) -> Iterator[tuple[dict[fx.Node, Any], dict[fx.Node, Any]]]:
        if place == len(self.nodes):
            yield values, calls
            return
        node = self.nodes[place]
        args, kwargs = calls.get(node, (node.args, dict(node.kwargs)))
        for changed, given in self._choices(node, args, kwargs, values):
            try:
                value = self._value(node, *given, values)
            except _MISFITS:
                continue
            yield from self._from(place + 1, {**values, node: value}, {**calls, node: given} if changed else calls)

    def _choices(
        self, node: fx.Node, args: object, kwargs: object, values: dict[fx.Node, Any]
    ) -> Iterator[tuple[bool, tuple[Any, Any]]]:
        """Yield the call as it is, then with one of its sizes doubled."""
        yield False, (args, kwargs)
        call = self.reader.call(node)
        name = None if call is None else _SIZES.get(call.op.name)
        sizes = call.arguments.get(name) if call is not None and name is not None else None
        if not isinstance(sizes, tuple | list) or call is None or name is None or call.module is not None:
            return
        for place, size in enumerate(sizes):
            known = self._number(size, values)
            if known > 0:
                new = (*sizes[:place], 2 * known, *sizes[place + 1 :])
                first = self._moved(tuple(a for p, a in call.arguments.items() if p != name and a is not None), {})[0]
                yield True, ((*first, new), {})

    def _moved(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        source = self.decoding.all_input_nodes[0]
        moved: tuple[Any, Any] = fx.node.map_arg((args, kwargs), lambda n: source if n is self.decoding else n)
        return moved

    def _number(self, size: object, values: dict[fx.Node, Any]) -> int:
        number = values.get(size, size.meta.get("value")) if isinstance(size, fx.Node) else size
        return number if isinstance(number, int) else 0

    def _value(self, node: fx.Node, args: Any, kwargs: Any, values: dict[fx.Node, Any]) -> Any:
        def known(source: fx.Node) -> Any:
            return values[source] if source in values else source.meta["value"]

        try:
            args, kwargs = fx.node.map_arg((args, kwargs), known)
        except KeyError as error:
            raise ValueError(f"{error} has no known value") from error
        return run_node(node, self.reader.graph_module, args, kwargs)


def _columns(plain: Tensor, both: object, axis: int) -> tuple[list[int], list[int]] | None:
    """Return the layer's input and sign for each input of the widened layer; None if they vary between places."""
    if not isinstance(both, Tensor) or both.dim() != plain.dim():
        return None
    both = both.movedim(axis, -1)
    features = plain.shape[-1]
    if both.shape != (*plain.shape[:-1], 2 * features) or not plain.numel():
        return None
    first = {int(pixel): column for column, pixel in enumerate(plain.reshape(-1, features)[0].tolist())}
    wanted = both.reshape(-1, 2 * features)[0].tolist()
    if len(first) != features or any(abs(int(pixel)) not in first or pixel == 0 for pixel in wanted):
        return None
    columns, signs = [first[abs(int(pixel))] for pixel in wanted], [1 if pixel > 0 else -1 for pixel in wanted]
    if not torch.equal(both, plain[..., columns] * torch.tensor(signs, dtype=plain.dtype)):
        return None
    # Each input of the layer must come with both signs, once each, or [w/2, -w/2] would not add up to w.
    each_twice = [(column, sign) for column in range(features) for sign in (-1, 1)]
    return (columns, signs) if sorted(zip(columns, signs, strict=True)) == each_twice else None
