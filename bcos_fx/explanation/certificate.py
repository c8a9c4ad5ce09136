"""Is a network dynamic linear? A certificate, read off its graph.

Certified is a convention of the op vocabulary's linearity classes and nothing looser: every node on the way from the
input to the output is linear in what it carries once its gates are held fixed. Then f(x) = W(x)·x + Σ_c W_c(x)·c,
with a term for each constant c (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 3.2).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import fx

from bcos_fx.display import Displayed
from bcos_fx.escaping import amount
from bcos_fx.explanation.preparation import Prepared
from bcos_fx.nn.dynamic import DynamicLayer
from bcos_fx.report.collect import op_name
from bcos_fx.rewriting.builders.view import adds_a_constant, adds_an_uncounted_constant, name_operand, name_shift
from bcos_fx.rewriting.core.chance import draws_at_random
from bcos_fx.rewriting.core.flow import CONSTANT, EXPLAINED, GATE, UNKNOWN, VALUE
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.refinement import is_never_linear
from bcos_fx.rewriting.core.slots import SLOTS, find_constant_operands
from bcos_fx.rewriting.core.stored import sources_of

_SHOWN, _FIRST = 20, 3
_DRAWN = "it draws random numbers in eval mode, so no two runs are the same function"


@dataclass(frozen=True)
class Break:
    """A node where a network stops being dynamic linear.

    Attributes:
        node: its name in the graph.
        op: its canonical op, or what it calls.
        reason: why it breaks.
        module: path of the module that makes the call.
        source: the line of source code, ``file:line: text``, where known.
    """

    node: str
    op: str
    reason: str
    module: str
    source: str | None

    def __str__(self) -> str:
        place = ", ".join(part for part in (self.module, self.source) if part)
        return f"{self.node} ({self.op}): {self.reason}" + (f" [{place}]" if place else "")


@dataclass(frozen=True)
class ConstantSource:
    """A constant that contributes to the output.

    Attributes:
        source: what it is: a stored tensor, a layer's shift, a number and its node.
        node: where it enters.
    """

    source: str
    node: str


@dataclass(frozen=True)
class GateChoice:
    """A product in which one factor was taken as the gate.

    Attributes:
        node: the product.
        gate: the factor that only weights the other.
        why: the reason.
    """

    node: str
    gate: str
    why: str


@dataclass(frozen=True, repr=False)
class Certificate(Displayed):
    """Whether a network is dynamic linear, and on what terms.

    Attributes:
        ok: it is.
        breaks: the nodes where it stops being so; empty if ``ok``.
        constants: the constants that contribute, in graph order.
        choices: the products in which a gate had to be chosen.
        explained: what is explained, ``output`` or a layer's name.
        source: what it is explained by: an input or a layer; several are joined by commas. All terms are for this
            source: what does not depend on it is a constant, and what weights it is a gate.
    """

    ok: bool
    breaks: tuple[Break, ...]
    constants: tuple[ConstantSource, ...]
    choices: tuple[GateChoice, ...]
    explained: str
    source: str

    def __bool__(self) -> bool:
        return self.ok

    @property
    def repeatable(self) -> bool:
        """Whether the network is one function at all: nothing that the output depends on is drawn at random."""
        return all(stop.reason != _DRAWN for stop in self.breaks)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as plain data."""
        return asdict(self)

    def to_json(self) -> str:
        """Return the certificate as JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    def brief(self) -> list[str]:
        """Return the verdict, the first breaks, and how many constants and choices there are."""
        # Not self.to_text(): subclasses add to that what they measured.
        listed = Certificate.to_text(replace(self, constants=(), choices=(), breaks=self.breaks[:_FIRST]))
        more = [f"  and {len(self.breaks) - _FIRST} more"] if len(self.breaks) > _FIRST else []
        # A constant that enters twice is one constant.
        constants = amount(len({constant.source for constant in self.constants}), "constant")
        counts = f"{constants}, {amount(len(self.choices), 'gate')} chosen"
        return [f"Certificate: {listed}", *more, f"  {counts}"]

    def to_text(self) -> str:
        """Return the certificate as text for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        sources = list(dict.fromkeys(constant.source for constant in self.constants))
        terms = " + ".join(f"W(x)·{source}" for source in self.source.split(", "))
        if self.ok:
            yield f"dynamic linear: {self.explained} = {terms}" + (" + constants" if sources else "")
        else:
            yield f"not dynamic linear: {self.explained} is not {terms} + constants"
            yield from _section("breaks at", list(map(str, self.breaks)))
        yield from _section(f"{amount(len(sources), 'constant')} contribute{'s' if len(sources) == 1 else ''}", sources)
        yield from _section("gates chosen", [f"{c.gate} in {c.node}: {c.why}" for c in self.choices])

    def __str__(self) -> str:
        return self.to_text()


def _section(title: str, entries: list[str]) -> Iterator[str]:
    if entries:
        yield f"{title}:"
        yield from (f"  {entry}" for entry in entries[:_SHOWN])
    if len(entries) > _SHOWN:
        yield f"  and {len(entries) - _SHOWN} more"


def certificate(prepared: Prepared) -> Certificate:
    """Analyze a prepared graph; nothing is run but elementwise activations at 0, and nothing is changed."""
    reader = GraphReader(prepared.graph_module, vocabulary(), Options())
    output = prepared.graph_module.graph.output_node()
    kind = reader.flow.kinds[output.name]
    on_path = [n for n in prepared.graph_module.graph.nodes if reader.flow.on_value_path(n)]
    # What is drawn may be a value, a gate or a constant, so everything that the output depends on is looked at.
    drawn = [node for node in sources_of(output) if draws_at_random(node, reader.call(node))]
    breaks = tuple(_break(reader, node, _DRAWN) for node in drawn)
    if kind != VALUE:
        breaks += tuple(_breaks(reader, output, kind, prepared))
    return Certificate(
        ok=not breaks,
        breaks=breaks,
        constants=tuple(constant for node in on_path for constant in _constants(reader, node)),
        choices=tuple(
            GateChoice(node.name, choice.gate, choice.why)
            for node in on_path
            if (choice := reader.flow.choices.get(node.name)) is not None
        ),
        explained=prepared.end,
        source=", ".join(prepared.starts),
    )


def of_finished_view(certificate: Certificate, reader: GraphReader, counted: tuple[str, ...]) -> Certificate:
    """Return a certificate with breaks for what the view left undone: gates that are not held fixed, constants.

    Args:
        certificate: of the network, without breaks.
        reader: of the finished view.
        counted: the sources of the constants that the view counts.
    """
    on_path = filter(reader.flow.on_value_path, reader.graph_module.graph.nodes)
    undone = {node: _left_undone(reader, node) for node in on_path}
    breaks = [_break(reader, node, reason) for node, reason in undone.items() if reason is not None]
    # A constant that is not counted is named only where no node shows why.
    breaks = breaks or [
        Break(constant.node, "constant", f"{constant.source} contributes, and no rule could count it", "", None)
        for constant in certificate.constants
        if constant.source not in counted
    ]
    return replace(certificate, ok=not breaks, breaks=tuple(breaks))


def _left_undone(reader: GraphReader, node: fx.Node) -> str | None:
    call = reader.call(node)
    if call is None or node.op == "output" or node.meta.get(EXPLAINED) or reader.flow.kinds[node.name] != VALUE:
        return None
    # Each of these was certified because a rule can handle it, so what is left shows a rule that did not apply.
    if is_never_linear(call) or isinstance(call.module, DynamicLayer):
        return "its weight is a layer's or call's own secret: no rule could hold it fixed"
    if find_constant_operands(reader, call) or adds_an_uncounted_constant(reader, call) is True:
        return "it adds a constant that no rule could count"
    if SLOTS["gate"](reader, call) is not None:
        return "it reads a gate that no rule could hold fixed"
    return None


def _constants(reader: GraphReader, node: fx.Node) -> Iterator[ConstantSource]:
    call = reader.call(node)
    if call is None or node.op == "output" or node.meta.get(EXPLAINED):
        return
    if adds_a_constant(call) or (call.op.linearity == "gate" and reader.flow.kinds[node.name] == VALUE):
        yield ConstantSource(name_shift(call), node.name)
    for slot in find_constant_operands(reader, call):
        yield ConstantSource(name_operand(reader, slot, call), node.name)


def _breaks(reader: GraphReader, output: fx.Node, kind: str, prepared: Prepared) -> Iterator[Break]:
    """Walk back from the output to where each unknown begins, or to the gates that arrive there as values."""
    if kind == CONSTANT:
        yield _break(reader, output, f"{prepared.end} does not depend on {', '.join(prepared.starts)}")
        return
    seen, pending = {output}, [output]
    while pending:
        # First in, first out: breaks are listed from the output backwards.
        node = pending.pop(0)
        reason = reader.flow.reasons.get(node.name)
        call = reader.call(node)
        if reason is not None:
            yield _break(reader, node, reason)
            continue
        carried = [] if call is None else [n for name in reader.flow.value_parameters(call) for n in call.nodes(name)]
        # A gate begins where none comes in through what the call carries.
        begins = not any(reader.flow.kinds[n.name] == GATE for n in carried)
        makes_gate = call is not None and node.op != "output" and (call.op.linearity == "gate" or begins)
        if kind == GATE and makes_gate:
            yield _break(
                reader, node, "it makes a gate, which may only weight something else, and that reaches the output"
            )
            continue
        fresh = [n for n in carried if n not in seen and reader.flow.kinds[n.name] in (kind, UNKNOWN)]
        seen.update(fresh)
        pending += fresh


def _break(reader: GraphReader, node: fx.Node, reason: str) -> Break:
    # A node that a rule made has no path of its own; its target is one.
    module = str(node.meta.get("module_path") or (node.target if node.op == "call_module" else ""))
    source = node.meta.get("source")
    return Break(node.name, op_name(reader, node), reason, module, None if source is None else str(source))
