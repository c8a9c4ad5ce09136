"""Where values flow: which nodes carry a value to the output, and which only weight one.

Every node is one of ``constant`` (does not depend on the input), ``value`` (dynamic linear in the input),
``gate`` (any function of the input that may only be used as a weight) or ``unknown``. Kinds are found
forwards, from each op's linearity class; demand is found backwards, from the output. A layer whose result
only ever feeds gates (the layers of a squeeze-and-excitation block, queries and keys) is on no value path.

Of several inputs, kinds are those *for what is explained*. Where a view has marked its sources, whatever does not
depend on them is a constant, however it was computed. In a graph without such marks the main input is what decides
which factor of a product carries the value; what other inputs add to it are values too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from bcos_fx.rewriting.core.main_input import WEIGHT, holds_integers, is_form, main_input
from bcos_fx.rewriting.core.ops import Call, Vocabulary
from bcos_fx.rewriting.core.refinement import is_shifted_ratio, is_square, linearity_violation
from bcos_fx.tracing.program import Walk

CONSTANT, VALUE, GATE, UNKNOWN = "constant", "value", "gate", "unknown"

EXPLAINED = "explained"
"""Key of a node's meta: its value is what outputs are explained by, in place of the graph's input."""

_ACTIVATIONS = frozenset({"selection", "ratio"})


@dataclass(frozen=True)
class Choice:
    """Which factor of a product was taken as its gate."""

    gate: str
    why: str


@dataclass(frozen=True)
class Flow:
    """The result of :func:`analyze`; nodes are given by name.

    Attributes:
        kinds: node -> its kind.
        value_path: nodes through which a value reaches the output.
        choices: product node -> the factor that was taken as its gate, where more than one could carry the value.
        reasons: node -> why it is unknown, for the nodes where that begins.
        main: names of the nodes that values are values of: the marked sources, or else the main input.
        before_gates: the values that the outputs are computed of by gates alone; none where an output is a value.
        by_weight: layer calls that carry a value by their weight, because their input does not depend on ``main``.
    """

    kinds: dict[str, str]
    value_path: frozenset[str]
    choices: dict[str, Choice]
    reasons: dict[str, str]
    main: tuple[str, ...] = ()
    by_weight: frozenset[str] = frozenset()
    before_gates: tuple[str, ...] = ()

    def value_parameters(self, call: Call) -> tuple[str, ...]:
        """Return the parameters through which a value flows in this call."""
        return (WEIGHT,) if call.node.name in self.by_weight else call.op.value

    def on_value_path(self, node: fx.Node) -> bool:
        """Return whether the node carries a value that reaches the output."""
        return node.name in self.value_path

    def is_gate(self, call: Call, parameter: str, source: fx.Node) -> bool:
        """Return whether a call uses what it reads through one of its parameters only as a weight."""
        if self.kinds[source.name] == CONSTANT:
            return False
        choice = self.choices.get(call.node.name)
        return (
            parameter not in self.value_parameters(call) or self.kinds[source.name] == GATE or _chosen(choice, source)
        )


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
        self.by_weight: set[fx.Node] = set()
        self.marked = [node for node in self.nodes if node.meta.get(EXPLAINED)]
        self.main = self.marked or main_input(self.nodes, self.calls)
        self._from_main: set[fx.Node] = set()  # what depends on it
        self._from_inputs: set[fx.Node] = set()  # what depends on any input
        self.carried: set[fx.Node] = set()  # gates that carry values: hidden activations with phi(0) other than 0

    def forwards(self) -> None:
        """Classify all nodes; once more, where activations that make gates hide every value from the outputs."""
        self._classify()
        self.carried = self._hidden_activations()
        if self.carried:
            for results in (self.choices, self.reasons, self.by_weight):
                results.clear()
            self._classify()

    def _classify(self) -> None:
        for node in self.nodes:
            self._note_dependence(node)
            self.kinds[node] = self._kind(node)

    def _hidden_activations(self) -> set[fx.Node]:
        """Return the sigmoids and their like between layers, in a network that has nothing else to carry a value.

        A sigmoid is a gate where it weights something. Where layers go on from it, it is an activation, and
        phi(x) = phi(0) + x (phi(x) - phi(0)) / x: a ratio like that of a tanh, and a constant.
        """
        if any(self.kinds[node] != GATE for node in self.outputs()):
            return set()
        at_the_end = self._gates_before(self.outputs())
        layers = [node for node in at_the_end if self._is_weighted(node)]
        calls = ((node, self.calls[node]) for node in self._gates_before(layers) if node not in layers)
        return {node for node, call in calls if call is not None and is_shifted_ratio(call)}

    def _gates_before(self, nodes: Sequence[fx.Node]) -> set[fx.Node]:
        """Return gates, and those that they are computed of by gates alone."""
        walk = Walk(nodes)
        for node in walk:
            walk.go_on([source for source in node.all_input_nodes if self.kinds[source] == GATE])
        return walk.reached

    def _note_dependence(self, node: fx.Node) -> None:
        """Note whether a node's numbers depend on the main input, or on any."""
        read = [] if is_form(node) else _nodes_read(node, self.calls[node])
        if node in self.main or any(source in self._from_main for source in read):
            self._from_main.add(node)
        if node.op == "placeholder" or any(source in self._from_inputs for source in read):
            self._from_inputs.add(node)

    def _relevant(self, nodes: Sequence[fx.Node]) -> list[fx.Node]:
        """Return the operands that depend on the main input, if any does: beside it the others are constants."""
        dependent = [node for node in nodes if node in self._from_main]
        return dependent or list(nodes)

    def _kind(self, node: fx.Node) -> str:
        # A marked source is a value even where integers made it, and what depends on none is a constant even where
        # inputs made it: both come before what the operation itself says.
        if node in self.marked:
            return VALUE
        if node.op == "get_attr" or is_form(node) or (self.marked and node not in self._from_main):
            return CONSTANT
        integers = holds_integers(node)
        if node.op == "placeholder":
            return GATE if integers else VALUE
        call = self.calls[node]
        inputs = {self.kinds[source] for source in _nodes_read(node, call)}
        if not inputs - {CONSTANT}:
            return CONSTANT
        if call is not None and call.op.linearity == "constant":
            return self._kind_of_new(call)
        kind = self._of_call(node, call)
        # Indices, comparisons, rounded numbers: any function of the input, and nothing that could add up to it.
        return GATE if integers and kind != UNKNOWN else kind

    def _kind_of_new(self, call: Call) -> str:
        """Return the kind of a new tensor: other tensors may give its form, but not its numbers."""
        computed = next((n for n in call.read if self.kinds[n] != CONSTANT), None)
        if computed is None:
            return CONSTANT
        return self._note_unknown(call.node, f"it is filled with {computed.name}, which depends on the input")

    def _of_call(self, node: fx.Node, call: Call | None) -> str:
        if call is None:
            return self._note_unknown(node, self.vocabulary.refusal(node, self.root))
        linearity = call.op.linearity
        if linearity == "gate":
            return self._kind_of_sum([self.kinds[n] for n in call.inputs]) if node in self.carried else GATE
        if linearity == "opaque":
            instead = f"; instead: {call.op.instead}" if call.op.instead else ""
            return self._note_unknown(node, f"{call.name} is not dynamic linear in its input{instead}")
        wrong = linearity_violation(call)
        if wrong is not None:
            return self._note_unknown(node, wrong)
        if node.op == "output":
            return self._kind_of_sum([self.kinds[source] for source in node.all_input_nodes])
        return self._product(call) if linearity == "product" else self._carried(call)

    def _note_unknown(self, node: fx.Node, why: str) -> str:
        self.reasons[node] = why
        return UNKNOWN

    def _kind_of_sum(self, kinds: Sequence[str]) -> str:
        """Return the kind of a sum. A gate that is added to a value is held fixed, and counted as a constant."""
        return next((kind for kind in (UNKNOWN, VALUE, GATE) if kind in kinds), CONSTANT)

    def _carried(self, call: Call) -> str:
        """Return the kind of a linear op, selection, ratio, norm, quotient or attention: that of its value operands."""
        operands = [n for name in call.op.value for n in call.nodes(name)]
        if self._is_carried_by_weight(call, operands):
            self.by_weight.add(call.node)
            operands = call.nodes(WEIGHT)
        operands = self._relevant(operands)
        kind = self._kind_of_sum([self.kinds[n] for n in operands])
        # A bias computed from the input is neither a constant nor a part of the weighted sum. One that depends on
        # another input alone is a constant beside the main one, which _relevant() leaves out.
        added = [n for name in call.op.constants for n in call.nodes(name) if n in self._relevant([*operands, n])]
        added = [n for n in added if self.kinds[n] != CONSTANT]
        if added and kind in (VALUE, CONSTANT):
            return self._note_unknown(call.node, f"what it adds ({added[0].name}) is computed from the input")
        self._note_added_gate(call, kind, operands)
        return GATE if kind == CONSTANT else kind

    def _is_carried_by_weight(self, call: Call, operands: Sequence[fx.Node]) -> bool:
        """Return whether a linear layer's kernel depends on the main input and what it is applied to does not."""
        # A hypernetwork computes kernels from the input: such a layer is linear in its kernel as well.
        weights = call.nodes(WEIGHT) if call.op.linearity == "linear" and call.module is None else []
        return any(n in self._from_main for n in weights) and not any(n in self._from_main for n in operands)

    def _note_added_gate(self, call: Call, kind: str, operands: Sequence[fx.Node]) -> None:
        gates = [n for n in operands if self.kinds[n] == GATE]
        if kind == VALUE and gates and call.op.linearity in ("linear", "selection"):
            why = "a gate that is added to a value is held fixed, and its share is counted as a constant"
            self.choices[call.node] = Choice(gates[0].name, why)

    def _product(self, call: Call) -> str:
        given = [n for name in call.op.value for n in call.nodes(name)]
        operands = self._relevant(given)
        values = [n for n in operands if self.kinds[n] == VALUE]
        unknown = [n for n in operands if self.kinds[n] == UNKNOWN]
        if not values:
            return UNKNOWN if unknown else GATE
        # Beside one value every other factor is a weight; the choice is noted where a reader could expect another.
        if len(values) == 1:
            independent = [n for n in given if n not in operands and n in self._from_inputs]
            if unknown:
                why = f"{unknown[0].name} is not dynamic linear, so it can only be a weight"
                self.choices[call.node] = Choice(unknown[0].name, why)
            elif independent:
                why = f"it does not depend on {' or '.join(n.name for n in self.main)}"
                self.choices[call.node] = Choice(independent[0].name, why)
            return VALUE
        return self._chosen_gate(call, values)

    def _chosen_gate(self, call: Call, values: list[fx.Node]) -> str:
        if is_square(call):
            return VALUE  # x * x is x² in another spelling, and so a ratio
        # From the surest sign to the weakest: an untouched source (a mask beside features), then what more was done to
        # one factor than to the other, then the vocabulary's convention.
        as_given = [n for n in values if self._is_as_given(n)]
        if len(self.marked) > 1 and len(values) == 2 and len(as_given) == 1:
            self.choices[call.node] = Choice(as_given[0].name, "it is a source as given, and weights what layers made")
            return VALUE
        pair = len(values) == 2 and values[0] is not values[1]
        gate, why = self._more_computed(values) if pair else (None, "")
        if pair and gate is None and (gate := self._by_convention(call, values)) is not None:
            place = "first" if gate is values[0] else "second"
            why = f"by convention ({call.op.name}): both factors are values, and the {place} one weights the other"
        if gate is None:
            names = ", ".join(dict.fromkeys(n.name for n in values))
            return self._note_unknown(
                call.node, f"values are multiplied with each other ({names}), and nothing tells the gate"
            )
        self.choices[call.node] = Choice(gate.name, why)
        return VALUE

    def _more_computed(self, values: list[fx.Node]) -> tuple[fx.Node | None, str]:
        """Return which of two values passed more operations after the path that both share, and which operation."""
        # What both factors passed tells nothing about which one is the gate, not even where it ends in one of them:
        # of relu(x) and a gate that is computed from it.
        ways = [(n, self._way(n) - self._way(other)) for n, other in (values, values[::-1])]
        ends = [n for n, way in ways if n in way and self._is_activation(n)]
        kinds = (("a norm", self._is_magnitude), ("an activation", self._is_activation), ("a layer", self._is_weighted))
        passed = [(kind, [n for n, way in ways if any(map(is_kind, way))]) for kind, is_kind in kinds]
        # A norm is the surest sign: it weights what it was taken of, and what stands beside it.
        signs = [passed[0], ("an activation", ends), *passed[1:]]
        # Only a sign that one of the factors alone bears tells them apart.
        whys = ((nodes[0], f"it passed {kind}, the other factor did not") for kind, nodes in signs if len(nodes) == 1)
        return next(whys, (None, ""))

    def _is_as_given(self, node: fx.Node) -> bool:
        """Return whether a node is an explained input or layer itself, at most moved or reshaped: its mask, say."""
        while node not in self.marked:
            call = self.calls[node]
            plain = call is not None and call.op.linearity == "linear" and WEIGHT not in call.op.parameters
            if not plain or node.op == "call_module" or len(node.all_input_nodes) != 1:
                return False
            node = node.all_input_nodes[0]
        return True

    def _by_convention(self, call: Call, values: list[fx.Node]) -> fx.Node | None:
        named = call.nodes(call.op.gate) if call.op.gate is not None else []
        return next((node for node in named if node in values), None)

    def _is_activation(self, node: fx.Node) -> bool:
        call = self.calls[node]
        return call is not None and (call.op.linearity in _ACTIVATIONS or node in self.carried)

    def _is_magnitude(self, node: fx.Node) -> bool:
        call = self.calls[node]
        return call is not None and call.op.magnitude

    def _is_weighted(self, node: fx.Node) -> bool:
        call = self.calls[node]
        return call is not None and call.op.weighted

    def _way(self, *ends: fx.Node) -> set[fx.Node]:
        """Return nodes, and those that their values came through."""
        walk = Walk(ends)
        for node in walk:
            walk.go_on(self._sources(node))
        return walk.reached

    def backwards(self) -> set[fx.Node]:
        """Return the nodes whose value reaches the output: the output's ancestors along value-carrying edges."""
        return self._way(*self.ends())

    def ends(self) -> list[fx.Node]:
        """Return the last values before the outputs.

        Probabilities and what is computed of them are gates, which would leave nothing on the value path: demand for
        values starts at the scores before them.
        """
        outputs = self.outputs()
        seen, pending, ends = set(outputs), list(outputs), []
        while pending:
            node = pending.pop()
            if self.kinds[node] in (VALUE, UNKNOWN):
                ends.append(node)
            if self.kinds[node] == VALUE:
                continue
            sources = [source for source in node.all_input_nodes if source not in seen]
            seen.update(sources)
            pending += sources
        return ends

    def outputs(self) -> list[fx.Node]:
        """Return the nodes that are returned."""
        return [source for node in self.nodes if node.op == "output" for source in node.all_input_nodes]

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        call = self.calls[node]
        if node in self.marked:
            return []
        if call is None:
            candidates = list(node.all_input_nodes)
        elif call.op.linearity == "gate" and node not in self.carried:
            candidates = []
        else:
            parameters = (WEIGHT,) if node in self.by_weight else call.op.value
            candidates = [n for name in parameters for n in call.nodes(name)]
            candidates = self._relevant(candidates) if call.op.linearity == "product" else candidates
        choice = self.choices.get(node)
        return [n for n in candidates if not _chosen(choice, n) and self.kinds[n] in (VALUE, UNKNOWN)]


def _nodes_read(node: fx.Node, call: Call | None) -> list[fx.Node]:
    return node.all_input_nodes if call is None else call.read


def analyze(graph_module: fx.GraphModule, vocabulary: Vocabulary) -> Flow:
    """Classify every node of a graph; nothing is mutated. Cost is linear in the number of edges."""
    analysis = _Analysis(graph_module, vocabulary)
    analysis.forwards()
    reached, outputs = analysis.backwards(), analysis.outputs()
    return Flow(
        kinds={node.name: kind for node, kind in analysis.kinds.items()},
        value_path=frozenset(node.name for node in reached),
        choices={node.name: choice for node, choice in analysis.choices.items()},
        reasons={node.name: why for node, why in analysis.reasons.items()},
        main=tuple(node.name for node in analysis.main),
        by_weight=frozenset(node.name for node in analysis.by_weight),
        before_gates=tuple(n.name for n in analysis.ends() if n not in outputs and analysis.kinds[n] == VALUE),
    )
