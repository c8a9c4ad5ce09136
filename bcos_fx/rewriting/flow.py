"""Where values flow: which nodes carry a value to the output, and which only weight one.

Every node is one of ``constant`` (does not depend on the input), ``value`` (dynamic linear in the input),
``gate`` (any function of the input that may only be used as a weight) or ``unknown``. Kinds are found
forwards, from each op's linearity class; demand is found backwards, from the output. A layer whose result
only ever feeds gates (the layers of a squeeze-and-excitation block, queries and keys) is on no value path.
"""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
from torch import fx

from bcos_fx.rewriting.ops import Call, Vocabulary

CONSTANT, VALUE, GATE, UNKNOWN = "constant", "value", "gate", "unknown"

_ACTIVATIONS = frozenset({"selection", "ratio"})


@dataclass(frozen=True)
class Flow:
    """The result of :func:`analyse`; nodes are given by name.

    Attributes:
        kinds: node -> its kind.
        value_path: nodes through which a value reaches the output.
        choices: product node -> the input that was taken as its gate, where both carry a value.
    """

    kinds: dict[str, str]
    value_path: frozenset[str]
    choices: dict[str, str]

    def on_value_path(self, node: fx.Node) -> bool:
        """Say whether the node carries a value that reaches the output."""
        return node.name in self.value_path


def _joined(kinds: list[str]) -> str:
    """Kind of a sum of values: a gate and a value do not add up to anything dynamic linear."""
    present = set(kinds) - {CONSTANT}
    if UNKNOWN in present or len(present) > 1:
        return UNKNOWN
    return present.pop() if present else CONSTANT


class _Analysis:
    def __init__(self, graph_module: fx.GraphModule, vocabulary: Vocabulary) -> None:
        self.nodes = list(graph_module.graph.nodes)
        self.calls = {node: vocabulary.call(node, graph_module) for node in self.nodes}
        self.kinds: dict[fx.Node, str] = {}
        self.choices: dict[fx.Node, fx.Node] = {}

    def forwards(self) -> None:
        for node in self.nodes:
            self.kinds[node] = self._kind(node)

    def _kind(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return VALUE
        if node.op == "get_attr" or node.meta.get("type") in ("size", "other"):
            return CONSTANT
        call = self.calls[node]
        inputs = [self.kinds[source] for source in node.all_input_nodes]
        if call is None or call.op.linearity == "opaque":
            return UNKNOWN if set(inputs) - {CONSTANT} else CONSTANT
        if node.op == "output":
            return _joined(inputs)
        if call.op.linearity == "constant":
            return CONSTANT
        if call.op.linearity == "gate":
            return GATE if set(inputs) - {CONSTANT} else CONSTANT
        if call.op.linearity == "product":
            return self._product(call)
        return self._carried(call)

    def _carried(self, call: Call) -> str:
        """Linear ops, selections, ratios, norms, quotients, attention: what the value operands say."""
        carried = [self.kinds[n] for name in call.op.value for n in call.nodes(name)]
        weights = [self.kinds[n] for name in call.arguments if name not in call.op.value for n in call.nodes(name)]
        kind = _joined(carried)
        if kind == CONSTANT and set(weights) - {CONSTANT}:
            return GATE
        return kind

    def _product(self, call: Call) -> str:
        operands = [n for name in call.op.value for n in call.nodes(name)]
        kinds = [self.kinds[n] for n in operands]
        if UNKNOWN in kinds:
            return UNKNOWN
        values = [n for n in operands if self.kinds[n] == VALUE]
        if len(values) > 1:
            activated = [n for n in values if self._is_activation(n)]
            if len(values) != 2 or len(activated) != 1:
                return UNKNOWN
            self.choices[call.node] = activated[0]
        return VALUE if values else _joined(kinds)

    def _is_activation(self, node: fx.Node) -> bool:
        call = self.calls[node]
        return call is not None and call.op.linearity in _ACTIVATIONS

    def backwards(self) -> set[fx.Node]:
        """Return the nodes whose value reaches the output: the output's ancestors along value-carrying edges."""
        carrying: nx.DiGraph[fx.Node] = nx.DiGraph()
        carrying.add_nodes_from(self.nodes)
        carrying.add_edges_from((source, node) for node in self.nodes for source in self._sources(node))
        ends = [self._before_last_gate(n) for node in self.nodes if node.op == "output" for n in node.all_input_nodes]
        return set(ends).union(*(nx.ancestors(carrying, end) for end in ends))

    def _before_last_gate(self, node: fx.Node) -> fx.Node:
        """Step over a softmax or sigmoid at the very end: the value before it is what is explained."""
        call = self.calls[node]
        while call is not None and call.op.linearity == "gate" and len(call.inputs) == 1:
            node = call.inputs[0]
            call = self.calls[node]
        return node

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        call = self.calls[node]
        if call is None:
            candidates = list(node.all_input_nodes)
        elif call.op.linearity == "gate":
            candidates = []
        else:
            candidates = [n for name in call.op.value for n in call.nodes(name)]
        gate = self.choices.get(node)
        return [n for n in candidates if n is not gate and self.kinds[n] in (VALUE, UNKNOWN)]


def analyse(graph_module: fx.GraphModule, vocabulary: Vocabulary) -> Flow:
    """Classify every node of a graph; nothing is mutated. Cost is linear in the number of edges."""
    analysis = _Analysis(graph_module, vocabulary)
    analysis.forwards()
    reached = analysis.backwards()
    return Flow(
        kinds={node.name: kind for node, kind in analysis.kinds.items()},
        value_path=frozenset(node.name for node in reached),
        choices={node.name: gate.name for node, gate in analysis.choices.items()},
    )
