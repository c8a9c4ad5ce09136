"""The explanation view: a second graph over the same layers, whose gradient is W(x).

In the view every gate is held fixed and every constant is counted (``rules/explain.toml``), so that

    f(x) = W(x)·x + Σ_c W_c(x)·c,    W(x) = d view / dx,    W_c(x)·c = d view / d(coefficient of c)

(Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 3.2). A view holds no state of its own: it may be used
from several threads at once, and it follows the network through training and to another device, because the layers in
it are the network's own. No gradient reaches the network's parameters.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from bcos_fx.errors import UsageError
from bcos_fx.explanation.certificate import Certificate, certificate, uncounted, unfinished, with_breaks
from bcos_fx.explanation.interpreter import Observer, evaluate
from bcos_fx.explanation.preparation import Prepared, Source, entry, prepare, recipe
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import Counted, CountedConstant
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.passes import Engine
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rewrite import add_ledger
from bcos_fx.tracing.functional import require
from bcos_fx.tracing.graph_module import GraphModule

Select = Callable[[Tensor], Tensor]
"""From the explained value (N, ...) to the numbers to be explained (N, K)."""


@dataclass(frozen=True)
class SourceWeights:
    """W(x) with respect to one of the sources; tensors detached.

    Attributes:
        start: (N, ...) what the weights act on: the encoded images, say.
        weights: (N, K, ...) W(x), in start's shape for each number.
    """

    start: Tensor
    weights: Tensor

    @property
    def contributions(self) -> Tensor:
        """(N, K) Σ W(x)·x."""
        return (self.weights * self.start.unsqueeze(1)).flatten(2).sum(2)


@dataclass(frozen=True)
class DynamicWeights:
    """What a view says of some numbers; all tensors detached.

    Attributes:
        start: (N, ...) what the weights of the first source act on: the encoded images, say.
        value: (N, ...) the whole explained value.
        output: (N, K) the explained numbers.
        weights: (N, K, ...) W(x) of the first source, in start's shape for each number.
        constants: source -> (N, K), the contribution of each constant that the numbers depend on.
        further: the weights of the other sources, by name, where outputs are explained by several.
    """

    start: Tensor
    value: Tensor
    output: Tensor
    weights: Tensor
    constants: Mapping[str, Tensor]
    further: Mapping[str, SourceWeights] = field(default_factory=dict)

    @property
    def parts(self) -> list[SourceWeights]:
        """The weights of all sources, in order."""
        return [SourceWeights(self.start, self.weights), *self.further.values()]

    @classmethod
    def joined(cls, parts: Sequence[DynamicWeights]) -> DynamicWeights:
        """Join what was computed for several batches of one network."""

        def cat(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        constants = {name: torch.cat([part.constants[name] for part in parts]) for name in parts[0].constants}
        further = {
            name: SourceWeights(
                torch.cat([part.further[name].start for part in parts]),
                torch.cat([part.further[name].weights for part in parts]),
            )
            for name in parts[0].further
        }
        return cls(cat("start"), cat("value"), cat("output"), cat("weights"), constants, further)


class ExplanationView:
    """A network's graph with gates held fixed and constants counted.

    Args:
        network: a converted network, which is not changed; or a freshly traced graph, which becomes part of the view.
        output: what is explained: None, ``logits``, or a layer's name.
        source: what it is explained by: None for the main (encoded) input, the name of an input or a layer, or several
            of these.

    Attributes:
        certificate: whether the network is dynamic linear in these.
        ends_in_gate: what is explained is a probability, and the value before it could be explained.
        starts: name -> node of what outputs are explained by, in the order that was asked for.
        sources: names of the constants, in graph order. What other inputs contribute, or the input itself past an inner
            layer that outputs are explained by, is among them.
    """

    def __init__(
        self, network: BcosNetwork | fx.GraphModule, *, output: str | None = None, source: Source = None
    ) -> None:
        prepared = prepare(network, output=output, source=source)
        self.end_name = None if output is None else _output(prepared.graph_module).name
        self.certificate: Certificate = certificate(prepared)
        self.ends_in_gate = prepared.ends_in_gate
        # The same layers, nothing frozen: what sums are compared with must not come from the view's own arithmetic.
        self._unfrozen = GraphModule(prepared.graph_module, copy.deepcopy(prepared.graph_module.graph))
        self._freeze(prepared)
        self._network = weakref.ref(network) if isinstance(network, BcosNetwork) else None
        self._separable: bool | None = None

    def _freeze(self, prepared: Prepared) -> None:
        self.graph_module, self.starts = prepared.graph_module, dict(prepared.starts)
        graph = self.graph_module.graph
        self.inputs: list[fx.Node] = [node for node in graph.nodes if node.op == "placeholder"]
        self._ledger = add_ledger(graph)
        Engine(recipe()).run(self.graph_module, ("freeze",))
        self.end: fx.Node = _output(self.graph_module)
        counted = [m for m in map(self._module, graph.nodes) if isinstance(m, Counted)]
        self.sources = tuple(dict.fromkeys(module.source for module in counted))
        for module in counted:
            module.column = self.sources.index(module.source)
        reader = GraphReader(self.graph_module, vocabulary(), Options())
        self._value_path = reader.flow.value_path
        if self.certificate.ok:
            missed = unfinished(reader) or uncounted(self.certificate, self.sources)
            self.certificate = with_breaks(self.certificate, missed)

    @property
    def unfrozen(self) -> fx.GraphModule:
        """The network's graph up to what is explained, as it runs: nothing frozen, nothing counted."""
        return self._unfrozen

    def _module(self, node: fx.Node) -> object:
        return self.graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def shown(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return name -> the given input, for those sources that are inputs."""
        given = dict(zip(self.inputs, inputs, strict=True))
        entries = {entry(node, self.graph_module): value for node, value in given.items()}
        return {name: entries[node] for name, node in self.starts.items() if node in entries}

    def environment(self, inputs: Sequence[Any]) -> dict[fx.Node, Any]:
        """Return the values that a run of the graph begins with, for its value alone."""
        return self._environment(inputs, self._ones(inputs[0], requires_grad=False))

    def value(self, inputs: Sequence[Any]) -> Tensor:
        """Run the view for its value alone, under no_grad; the network's own output but for rounding."""
        with torch.no_grad():
            value: Tensor = evaluate(self.graph_module, self.environment(inputs), self.end)
        return value

    def network_value(self, inputs: Sequence[Any], observe: Observer | None = None) -> Tensor:
        """Run the network itself to what is explained, under no_grad; nothing of the view has a hand in it."""
        value: Tensor = self._run_network(inputs, _output(self._unfrozen), observe)
        return value

    def own_value(self, inputs: Sequence[Any]) -> Tensor:
        """Return what is explained as the network's own forward gives it, in this very call, under no_grad.

        Of a converted network that is what ``network(*inputs)`` returns; of an inner layer, and of a module that was
        traced for this view, the value in the graph that its forward runs.
        """
        network = None if self._network is None else self._network()
        if network is None:
            return self.network_value(inputs)
        with torch.no_grad():
            if self.end_name is None:
                value: Tensor = network(*inputs)
                return value
            given = [node for node in network.graph.nodes if node.op == "placeholder"]
            inner = next((node for node in network.graph.nodes if node.name == self.end_name), None)
            if inner is None:
                return self.network_value(inputs)
            value = evaluate(network, dict(zip(given, inputs, strict=True)), inner)
        return value

    def check_values(self, inputs: Sequence[Any]) -> None:
        """Check what Python code of the original reads of the inputs' values: whether a mask leaves anything out, say.

        Raises:
            TraceError: it would read something else than in the example run, so the graph does not hold for them.
        """
        for node in self._unfrozen.graph.nodes:
            if node.target is require:
                self._run_network(inputs, node)

    def _run_network(self, inputs: Sequence[Any], end: fx.Node, observe: Observer | None = None) -> Any:
        given = [node for node in self._unfrozen.graph.nodes if node.op == "placeholder"]
        with torch.no_grad():
            return evaluate(self._unfrozen, dict(zip(given, inputs, strict=True)), end, observe)

    def on_value_path(self, node: fx.Node) -> bool:
        """Say whether a node of the graph carries a value to the explained output."""
        return node.name in self._value_path

    def dynamic_weights(self, inputs: Sequence[Any], select: Select) -> DynamicWeights:
        """Compute W(x) and the contributions of all constants.

        Args:
            inputs: the network's inputs in order; the first dimension of each holds the samples.
            select: picks the numbers to be explained out of the value; each must be a linear function of it.

        Returns:
            The weights and contributions, by one forward and K backward passes. Inputs, parameters and their
            gradients stay as they are, whatever grad mode the caller is in.

        Raises:
            UsageError: the network is in train mode by now, or several samples were given that cannot be told apart
                (see :attr:`separable`).
        """
        self._check_mode()
        if len(inputs[0]) > 1 and not self.separable:
            raise UsageError(
                "the samples of a batch cannot be told apart inside this network",
                hint="explain them one at a time: its separable attribute says so",
            )
        with torch.inference_mode(False), torch.enable_grad():
            given = [_own(value) for value in inputs]
            ledger = self._ones(given[0], requires_grad=True)
            environment = self._environment(given, ledger)
            with torch.no_grad():
                leaves = {node: evaluate(self.graph_module, environment, node) for node in self.starts.values()}
            self._check_samples(leaves, len(given[0]))
            leaves = {node: leaf.detach().requires_grad_() for node, leaf in leaves.items()}
            value = evaluate(self.graph_module, environment | leaves, self.end)
            numbers = select(value)
            found = _gradients(numbers, (*leaves.values(), *ledger))
        used = zip(self.sources, found[len(leaves) :], strict=True)
        constants = {name: column for name, column in used if column is not None}
        weights = [_or_zeros(each, leaf, numbers) for each, leaf in zip(found, leaves.values(), strict=False)]
        parts = [SourceWeights(leaf.detach(), each) for leaf, each in zip(leaves.values(), weights, strict=True)]
        first, *further = parts
        named = dict(zip([*self.starts][1:], further, strict=True))
        return DynamicWeights(first.start, value.detach(), numbers.detach(), first.weights, constants, named)

    def _ones(self, like: Any, *, requires_grad: bool) -> list[Tensor]:
        """The ledger for a batch like this, in the network's precision: the first input may hold whole numbers."""
        dtype = like.dtype if like.is_floating_point() else self._like().dtype
        return [
            torch.ones(len(like), dtype=dtype, device=like.device, requires_grad=requires_grad) for _ in self.sources
        ]

    def _like(self) -> Tensor:
        return next((p for p in self.graph_module.parameters() if p.is_floating_point()), torch.empty(0))

    def _environment(self, inputs: Sequence[Any], ledger: list[Tensor]) -> dict[fx.Node, Any]:
        known: dict[fx.Node, Any] = dict(zip(self.inputs, inputs, strict=True))
        return known | {self._ledger: ledger}

    def _check_samples(self, leaves: Mapping[fx.Node, Tensor], samples: int) -> None:
        for name, node in self.starts.items():
            shape = tuple(leaves[node].shape)
            if not shape or shape[0] != samples:
                raise UsageError(
                    f"the source {name!r} has shape {shape}: its first dimension does not hold the {samples} samples",
                    hint="explain by another layer; what is the same for all samples is among the constants",
                )

    def _check_mode(self) -> None:
        network = None if self._network is None else self._network()
        if network is not None and network.training:
            raise UsageError(
                "the network is in train mode, and an explanation is one of eval mode", hint="call network.eval() first"
            )

    @property
    def separable(self) -> bool:
        """Whether the samples of a batch can be told apart wherever a constant is counted.

        They can where they are the slowest part of the first dimension. That is found by running the view for two batch
        sizes; and where samples are merged with something else, by looking where a sample that is no number arrives.
        """
        if self._separable is None:
            self._separable = not self.sources or self._is_separable()
        return self._separable

    def _is_separable(self) -> bool:
        counted = [node for node in self.graph_module.graph.nodes if isinstance(self._module(node), Counted)]
        carriers = [node.args[-1] for node in counted if isinstance(self._module(node), CountedConstant)]
        wanted = [*counted, *(node for node in carriers if isinstance(node, fx.Node))]
        two, three = (self._observed(samples, wanted) for samples in (2, 3))
        if two is None or three is None:
            return False
        shapes = [(two[node].shape, three[node].shape) for node in counted if node in two]
        if not all(_grows(*pair) for pair in shapes):
            return False
        # Where samples were merged with something else, the second of two must stay out of the first half.
        return all(shape[0] == 2 for shape, _ in shapes) or not any(seen.mixed for seen in two.values())

    def _observed(self, samples: int, nodes: Sequence[fx.Node]) -> dict[fx.Node, _Seen] | None:
        """What some nodes give for some samples, all but the first NaN; None where the graph does not run."""
        seen: dict[fx.Node, _Seen] = {}

        def note(node: fx.Node, value: Any) -> None:
            if node in wanted and isinstance(value, Tensor):
                first = value[: len(value) // samples] if value.dim() else value
                seen[node] = _Seen(tuple(value.shape), bool(first.isnan().any()))

        like, wanted = self._like(), set(nodes)
        try:
            with torch.no_grad():
                inputs = [_stand_in(node, samples, like) for node in self.inputs]
                evaluate(self.graph_module, self.environment(inputs), self.end, note)
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return None
        return seen


@dataclass(frozen=True)
class _Seen:
    """What was seen of a value: its shape, and whether its first part holds anything of samples after the first."""

    shape: tuple[int, ...]
    mixed: bool


def _grows(two: tuple[int, ...], three: tuple[int, ...]) -> bool:
    """Whether the shapes for two and three samples differ in the first dimension alone, by that ratio."""
    return len(two) > 0 and two[1:] == three[1:] and two[0] % 2 == 0 and three[0] == two[0] // 2 * 3


def _output(graph_module: fx.GraphModule) -> fx.Node:
    """The node whose value the graph returns."""
    node: fx.Node = next(node for node in graph_module.graph.nodes if node.op == "output").all_input_nodes[0]
    return node


def _is_floating(node: fx.Node) -> bool:
    dtype = node.meta.get("dtype")
    return dtype is None or bool(dtype.is_floating_point)


def _stand_in(node: fx.Node, samples: int, like: Tensor) -> Tensor:
    """A first sample of 0.5, the others not a number; on the network's device and in its precision."""
    shape = tuple(node.meta.get("shape") or (1,))
    dtype = like.dtype if _is_floating(node) else node.meta["dtype"]
    value = torch.full((samples, *shape[1:]), 0.5 if dtype.is_floating_point else 0, dtype=dtype, device=like.device)
    if dtype.is_floating_point:
        value[1:] = torch.nan
    return value


def _own(value: Any) -> Any:
    """A tensor that autograd may use, whatever mode the caller made it in; without the caller's graph."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def _or_zeros(weights: Tensor | None, leaf: Tensor, numbers: Tensor) -> Tensor:
    """The weights of a leaf, 0 where nothing carries its value to the numbers."""
    return leaf.new_zeros(len(leaf), numbers.shape[1], *leaf.shape[1:]) if weights is None else weights


def _gradients(numbers: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The gradient of each of the (N, K) numbers with respect to each leaf (N, ...), as (N, K, ...); None if unused."""
    columns = numbers.shape[1]
    rows = [
        torch.autograd.grad(
            numbers[:, k].sum(), leaves, retain_graph=k + 1 < columns, allow_unused=True, materialize_grads=False
        )
        for k in range(columns)
    ]
    return [_stacked(found) for found in zip(*rows, strict=True)]


def _stacked(found: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [gradient for gradient in found if gradient is not None]
    if not present:
        return None
    return torch.stack([present[0].new_zeros(present[0].shape) if g is None else g for g in found], dim=1)
