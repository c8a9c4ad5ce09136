"""Where values flow: which nodes carry a value to the output, and which only weight one.

Every node is one of ``constant`` (does not depend on the input), ``value`` (dynamic linear in the input),
``gate`` (any function of the input that may only be used as a weight) or ``unknown``. Kinds are found
forwards, from each op's linearity class; demand is found backwards, from the output. A layer whose result
only ever feeds gates (the layers of a squeeze-and-excitation block, queries and keys) is on no value path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
from torch import fx

from bcos_fx.rewriting.ops import Call, Vocabulary
from bcos_fx.rewriting.refinement import objection

CONSTANT, VALUE, GATE, UNKNOWN = "constant", "value", "gate", "unknown"

EXPLAINED = "explained"
"""Key of a node's meta: its value is what outputs are explained by, in place of the graph's input."""

_ACTIVATIONS = frozenset({"selection", "ratio"})


@dataclass(frozen=True)
class Choice:
    """Which factor of a product was taken as its gate.

    Attributes:
        gate: the node.
        why: the reason.
    """

    gate: str
    why: str


@dataclass(frozen=True)
class Flow:
    """The result of :func:`analyse`; nodes are given by name.

    Attributes:
        kinds: node -> its kind.
        value_path: nodes through which a value reaches the output.
        choices: product node -> the factor that was taken as its gate, where more than one could carry the value.
        reasons: node -> why it is unknown, for the nodes where that begins.
    """

    kinds: dict[str, str]
    value_path: frozenset[str]
    choices: dict[str, Choice]
    reasons: dict[str, str]

    def on_value_path(self, node: fx.Node) -> bool:
        """Say whether the node carries a value that reaches the output."""
        return node.name in self.value_path

    def is_gate(self, call: Call, parameter: str, source: fx.Node) -> bool:
        """Say whether a call uses what it reads through one of its parameters only as a weight."""
        if self.kinds[source.name] == CONSTANT:
            return False
        choice = self.choices.get(call.node.name)
        return parameter not in call.op.value or self.kinds[source.name] == GATE or _chosen(choice, source)


def _chosen(choice: Choice | None, source: fx.Node) -> bool:
    return choice is not None and choice.gate == source.name


class _Analysis:
    def __init__(self, graph_module: fx.GraphModule, vocabulary: Vocabulary) -> None:
        self.nodes = list(graph_module.graph.nodes)
        self.vocabulary, self.root = vocabulary, graph_module
        self.calls = {node: vocabulary.call(node, graph_module) for node in self.nodes}
        self.kinds: dict[fx.Node, str] = {}
        self.choices: dict[fx.Node, Choice] = {}
        self.reasons: dict[fx.Node, str] = {}

    def forwards(self) -> None:
        for node in self.nodes:
            self.kinds[node] = self._kind(node)

    def _kind(self, node: fx.Node) -> str:
        if node.meta.get(EXPLAINED):
            return VALUE
        if node.op == "get_attr" or node.meta.get("type") in ("size", "other"):
            return CONSTANT
        whole_numbers = _holds_whole_numbers(node)
        if node.op == "placeholder":
            return GATE if whole_numbers else VALUE
        inputs = {self.kinds[source] for source in node.all_input_nodes}
        call = self.calls[node]
        if not inputs - {CONSTANT}:
            return CONSTANT
        if call is not None and call.op.linearity == "constant":
            return self._made(call)
        kind = self._of_call(node, call)
        # Indices, comparisons, rounded numbers: any function of the input, and nothing that could add up to it.
        return GATE if whole_numbers and kind != UNKNOWN else kind

    def _made(self, call: Call) -> str:
        """Kind of a new tensor: of its form other tensors may tell, of its numbers they must not."""
        computed = next((n for n in call.read if self.kinds[n] != CONSTANT), None)
        if computed is None:
            return CONSTANT
        return self._unknown(call.node, f"it is filled with {computed.name}, which depends on the input")

    def _of_call(self, node: fx.Node, call: Call | None) -> str:
        if call is None:
            return self._unknown(node, self.vocabulary.refusal(node, self.root))
        linearity = call.op.linearity
        if linearity == "gate":
            return GATE
        if linearity == "opaque":
            instead = f"; instead: {call.op.instead}" if call.op.instead else ""
            return self._unknown(node, f"{call.name} is not dynamic linear in its input{instead}")
        wrong = objection(call)
        if wrong is not None:
            return self._unknown(node, wrong)
        if node.op == "output":
            return self._joined(node, [self.kinds[source] for source in node.all_input_nodes])
        return self._product(call) if linearity == "product" else self._carried(call)

    def _unknown(self, node: fx.Node, why: str) -> str:
        self.reasons[node] = why
        return UNKNOWN

    def _joined(self, node: fx.Node, kinds: list[str]) -> str:
        """Kind of a sum of values: a gate and a value do not add up to anything dynamic linear."""
        present = set(kinds) - {CONSTANT}
        if UNKNOWN in present:
            return UNKNOWN
        if len(present) > 1:
            return self._unknown(node, "a gate is added to a value, and nothing says how much of it the input explains")
        return present.pop() if present else CONSTANT

    def _carried(self, call: Call) -> str:
        """Linear ops, selections, ratios, norms, quotients, attention: what the value operands say."""
        carried = [self.kinds[n] for name in call.op.value for n in call.nodes(name)]
        added = [n for name in call.op.constants for n in call.nodes(name) if self.kinds[n] != CONSTANT]
        kind = self._joined(call.node, carried)
        if added and kind == VALUE:
            return self._unknown(call.node, f"what it adds ({added[0].name}) is computed from the input")
        return GATE if kind == CONSTANT else kind

    def _product(self, call: Call) -> str:
        operands = [n for name in call.op.value for n in call.nodes(name)]
        values = [n for n in operands if self.kinds[n] == VALUE]
        unknown = [n for n in operands if self.kinds[n] == UNKNOWN]
        if not values:
            return UNKNOWN if unknown else GATE
        if len(values) == 1:
            if unknown:
                why = f"{unknown[0].name} is not dynamic linear, so it can only be a weight"
                self.choices[call.node] = Choice(unknown[0].name, why)
            return VALUE
        return self._chosen_gate(call, values)

    def _chosen_gate(self, call: Call, values: list[fx.Node]) -> str:
        activated = [n for n in values if self._is_activation(n)]
        gate = activated[0] if len(activated) == 1 else self._by_convention(call, values)
        if len(values) != 2 or values[0] is values[1] or gate is None:
            names = ", ".join(dict.fromkeys(n.name for n in values))
            return self._unknown(
                call.node, f"values are multiplied with each other ({names}), and nothing tells the gate"
            )
        why = "it passed an activation, the other factor did not"
        if len(activated) != 1:
            place = "first" if gate is values[0] else "second"
            why = f"by convention ({call.op.name}): both factors are values, and the {place} one weights the other"
        self.choices[call.node] = Choice(gate.name, why)
        return VALUE

    def _by_convention(self, call: Call, values: list[fx.Node]) -> fx.Node | None:
        named = call.nodes(call.op.gate) if call.op.gate is not None else []
        return next((node for node in named if node in values), None)

    def _is_activation(self, node: fx.Node) -> bool:
        call = self.calls[node]
        return call is not None and call.op.linearity in _ACTIVATIONS

    def backwards(self) -> set[fx.Node]:
        """Return the nodes whose value reaches the output: the output's ancestors along value-carrying edges."""
        carrying: nx.DiGraph[fx.Node] = nx.DiGraph()
        carrying.add_nodes_from(self.nodes)
        carrying.add_edges_from((source, node) for node in self.nodes for source in self._sources(node))
        outputs = [node for node in self.nodes if node.op == "output"]
        ends = [before_last_gate(n, self.calls.__getitem__) for node in outputs for n in node.all_input_nodes]
        return set(ends).union(*(nx.ancestors(carrying, end) for end in ends))

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        call = self.calls[node]
        if node.meta.get(EXPLAINED):
            return []
        if call is None:
            candidates = list(node.all_input_nodes)
        elif call.op.linearity == "gate":
            candidates = []
        else:
            candidates = [n for name in call.op.value for n in call.nodes(name)]
        choice = self.choices.get(node)
        return [n for n in candidates if not _chosen(choice, n) and self.kinds[n] in (VALUE, UNKNOWN)]


def before_last_gate(node: fx.Node, read: Callable[[fx.Node], Call | None]) -> fx.Node:
    """Step back over a softmax or sigmoid at the very end: the value before it is what can be explained."""
    call = read(node)
    while call is not None and call.op.linearity == "gate" and len(call.inputs) == 1:
        node = call.inputs[0]
        call = read(node)
    return node


def _holds_whole_numbers(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return dtype is not None and not (dtype.is_floating_point or dtype.is_complex)


def analyse(graph_module: fx.GraphModule, vocabulary: Vocabulary) -> Flow:
    """Classify every node of a graph; nothing is mutated. Cost is linear in the number of edges."""
    analysis = _Analysis(graph_module, vocabulary)
    analysis.forwards()
    reached = analysis.backwards()
    return Flow(
        kinds={node.name: kind for node, kind in analysis.kinds.items()},
        value_path=frozenset(node.name for node in reached),
        choices={node.name: choice for node, choice in analysis.choices.items()},
        reasons={node.name: why for node, why in analysis.reasons.items()},
    )
