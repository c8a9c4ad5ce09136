"""The explanation view: a second graph over the same layers, whose gradient is W(x).

In the view every gate is held fixed and every constant is counted (``rules/explain.toml``), so that

    f(x) = W(x)·x + Σ_c W_c(x)·c,    W(x) = d view / dx,    W_c(x)·c = d view / d(coefficient of c)

(Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 3.2). A view holds no state of its own: it may be used
from several threads at once, and it follows the network through training and to another device, because the layers in
it are the network's own. No gradient reaches the network's parameters.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn

from bcos_fx.errors import UsageError, nearest
from bcos_fx.escaping import amount
from bcos_fx.explanation.axes import Axes, axes_of
from bcos_fx.explanation.certificate import Certificate, certificate, of_finished_view
from bcos_fx.explanation.foreign import traced
from bcos_fx.explanation.preparation import Prepared, SourceNames, entry, prepare, recipe
from bcos_fx.explanation.separability import is_separable, where_mixed
from bcos_fx.explanation.weights import DynamicWeights, Select, SourceWeights, for_autograd, gradients
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import Counted
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.passes import Engine
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rewrite import add_coefficients
from bcos_fx.tracing.exported import as_module
from bcos_fx.tracing.functional import require
from bcos_fx.tracing.graph_module import GraphModule
from bcos_fx.tracing.inputs import BatchAxis, ExampleInputs
from bcos_fx.tracing.program import evaluate, form_of_run, steps
from bcos_fx.validation import check_module


class ExplanationView:
    """A network's graph with gates held fixed and constants counted.

    Args:
        network: a converted network, which is not changed; or a freshly traced graph, which becomes part of the view.
        output: what is explained: None, ``logits``, or a layer's name.
        source: what it is explained by: None for the main (encoded) input, the name of an input or a layer, or several
            of these.

    Attributes:
        certificate: whether the network is dynamic linear in these.
        scores: what is explained are probabilities: each of these names, as ``output``, explains scores before them.
        starts: name -> node of what outputs are explained by, in the order that was asked for.
        unfrozen: the network's graph up to what is explained, as it runs: nothing frozen, nothing counted.
        samples_in: name of a source -> the dimension that holds its samples, where it is not the first.
        sources: names of the constants, in graph order. What other inputs contribute, or the input itself past an inner
            layer that outputs are explained by, is among them.
    """

    def __init__(
        self, network: BcosNetwork | fx.GraphModule, *, output: str | None = None, source: SourceNames = None
    ) -> None:
        prepared = prepare(network, output=output, source=source)
        self.end_name = None if output is None else _output(prepared.graph_module).name
        # Read before the graph is frozen, which detaches the gates.
        self.certificate: Certificate = certificate(prepared)
        self.scores = prepared.scores
        # The same layers, nothing frozen: what sums are compared with must not come from the view's own arithmetic.
        self.unfrozen: fx.GraphModule = GraphModule(prepared.graph_module, copy.deepcopy(prepared.graph_module.graph))
        self._freeze(prepared)
        # Weak, or the view that _VIEWS keeps for a network would keep that network alive.
        self._network = weakref.ref(network) if isinstance(network, BcosNetwork) else None
        self._separable: bool | None = None
        self._shared: set[Hashable] = set()  # forms of runs in which the view's value was the network's own
        self.samples_in: Mapping[str, int | None] = {}
        self._axes: dict[tuple[str, tuple[int, ...], int | None], Axes] = {}

    def _freeze(self, prepared: Prepared) -> None:
        self.graph_module, self.starts = prepared.graph_module, dict(prepared.starts)
        graph = self.graph_module.graph
        self.inputs = graph.find_nodes(op="placeholder")
        # W(x) acts on the encoding [x, 1 - x]; callers give, and see, the input before it.
        self._begins = {entry(node, self.graph_module): node for node in self.inputs}
        self._coefficients = add_coefficients(graph)
        Engine(recipe()).run(self.graph_module, ("freeze",))
        self.end: fx.Node = _output(self.graph_module)
        called = [self.graph_module.get_submodule(str(node.target)) for node in graph.find_nodes(op="call_module")]
        counted = [module for module in called if isinstance(module, Counted)]
        self.sources = tuple(dict.fromkeys(module.source for module in counted))
        for module in counted:
            # Constants of one source share a coefficient: a layer that is called twice counts as one.
            module.column = self.sources.index(module.source)
        # Read again: the certificate was read off the graph before the rules froze it.
        reader = GraphReader(self.graph_module, vocabulary(), Options())
        self._value_path = reader.flow.value_path
        if self.certificate.ok:
            self.certificate = of_finished_view(self.certificate, reader, self.sources)

    @property
    def converted(self) -> BcosNetwork | None:
        """The converted network that this is a view of, as long as it is there; None for any other module."""
        return None if self._network is None else self._network()

    def shown(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return name -> the given input, for those sources that are inputs."""
        given = dict(zip(self.inputs, inputs, strict=True))
        return {name: given[self._begins[node]] for name, node in self.starts.items() if node in self._begins}

    def arrange(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Return inputs as the view takes them, (N, ...), for inputs as the network takes them."""
        return list(given)

    def value(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run the view for its value alone, under no_grad; the network's own output but for rounding."""
        with torch.no_grad():
            value: Tensor = evaluate(self.graph_module, self._environment(inputs, self._ones(inputs)), self.end)
        return value

    def own_value(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return what is explained as the network's own forward gives it, in this very call, under no_grad.

        Of a converted network that is what ``network(*inputs)`` returns; of an inner layer, and of a module that was
        traced for this view, the value in the graph that its forward runs.
        """
        network = self.converted
        if network is not None and self.end_name is None:
            with torch.no_grad():
                value: Tensor = network(*inputs)
            return value
        # A layer whose node the preparation replaced has no node of that name in the network's own graph.
        nodes = {} if network is None else {node.name: node for node in network.graph.nodes}
        if network is not None and self.end_name in nodes:
            return _run(network, inputs, nodes[self.end_name])
        return _run(self.unfrozen, inputs, _output(self.unfrozen))

    def is_own(self, inputs: Sequence[Tensor]) -> bool:
        """Return whether :meth:`dynamic_weights` is known to give :meth:`own_value` (see :meth:`compare`)."""
        network = self.converted
        return network is not None and form_of_run(network, inputs) in self._shared

    def compare(self, inputs: Sequence[Tensor], value: Tensor, own: Tensor) -> None:
        """Note whether this view's value of inputs is the network's own, bit by bit.

        A view runs the same layers in the same order. Where both were seen to be equal, for inputs of the same form and
        with the same code, the view's forward may stand for the network's own, which costs as much again. Code of
        others, such as a hook, could tell the two runs apart: with it both are always made.
        """
        network = self.converted
        form = None if network is None else form_of_run(network, inputs)
        # Bit by bit: a view that is off by rounding might be off by more for other numbers.
        if form is not None and torch.equal(value, own):
            self._shared.add(form)

    def value_together(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return :meth:`own_value` of a run on all samples at once."""
        return self.own_value(inputs)

    def check_values(self, inputs: Sequence[Tensor]) -> None:
        """Check what the original's Python code reads of the inputs' values, such as whether a mask is all ones.

        Raises:
            TraceError: it would read something else than in the example run, so the graph does not hold for them.
        """
        for node in self.unfrozen.graph.nodes:
            if node.target is require:
                _run(self.unfrozen, inputs, node)

    def network_steps(self, inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, object]]:
        """Run the network itself, and yield each node with its value up to what is explained."""
        return steps(self.unfrozen, _by_placeholder(self.unfrozen, inputs), _output(self.unfrozen))

    def on_value_path(self, node: fx.Node) -> bool:
        """Return whether a node of the graph carries a value to the explained output."""
        return node.name in self._value_path

    def dynamic_weights(self, inputs: Sequence[Tensor], select: Select) -> DynamicWeights:
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
        if (network := self.converted) is not None:
            _check_mode(network)
        samples = self.samples(inputs)
        if samples > 1 and not self.separable:
            raise UsageError(
                "the samples of a batch cannot be told apart inside this network",
                hint="explain them one at a time: its separable attribute says so",
            )
        # Whatever mode the caller is in: autograd takes no tensors that inference mode made.
        with torch.inference_mode(False), torch.enable_grad():
            given = [for_autograd(value) for value in inputs]
            # The constants' contributions are the gradients by these: one factor of 1 for each sample and constant.
            coefficients = [ones.requires_grad_() for ones in self._ones(inputs)]
            environment = self._environment(given, coefficients)
            with torch.no_grad():
                # Without gradients up to the sources, which are the leaves: nothing before them is differentiated.
                leaves = {node: evaluate(self.graph_module, environment, node) for node in self.starts.values()}
            self._check_samples(leaves, samples)
            leaves = {node: leaf.detach().requires_grad_() for node, leaf in leaves.items()}
            value = evaluate(self.graph_module, environment | leaves, self.end)
            numbers = select(value)
            columns = gradients(numbers, (*leaves.values(), *coefficients))
        by_constants = zip(self.sources, columns[len(leaves) :], strict=True)
        constants = {name: column for name, column in by_constants if column is not None}
        by_leaves = zip(self.starts, leaves.values(), columns[: len(leaves)], strict=True)
        # A source that does not lead to these numbers, though it does to others of the output, has weights 0.
        sources = {
            name: SourceWeights(
                leaf.detach(),
                leaf.new_zeros(leaf.shape[0], numbers.shape[1], *leaf.shape[1:]) if column is None else column,
            )
            for name, leaf, column in by_leaves
        }
        return DynamicWeights(value.detach(), numbers.detach(), sources, constants)

    def samples(self, inputs: Sequence[Tensor]) -> int:
        """Return how many samples inputs hold."""
        count: int = inputs[0].shape[0]  # and not its length, which would tie an exported graph to this batch
        return count

    def _ones(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return a tensor of ones for each source of constants, in the network's precision."""
        samples, like = self.samples(inputs), inputs[0]
        # Token indices are integers; constants are counted in the precision of the network.
        dtype = like.dtype if like.is_floating_point() else self._like().dtype
        return [torch.ones(samples, dtype=dtype, device=like.device) for _ in self.sources]

    def _like(self) -> Tensor:
        return next((p for p in self.graph_module.parameters() if p.is_floating_point()), torch.empty(0))

    def _environment(self, inputs: Sequence[Tensor], coefficients: list[Tensor]) -> dict[fx.Node, Any]:
        """Return the values that a run of the graph begins with."""
        return {**dict(zip(self.inputs, inputs, strict=True)), self._coefficients: coefficients}

    def _check_samples(self, leaves: Mapping[fx.Node, Tensor], samples: int) -> None:
        for name, node in self.starts.items():
            shape = tuple(leaves[node].shape)
            if not shape or shape[0] != samples:
                raise UsageError(
                    f"the source {name!r} has shape {shape}: its first dimension does not hold the {samples} samples",
                    hint="explain by another layer; what is the same for all samples is among the constants",
                )

    @property
    def separable(self) -> bool:
        """Whether the samples of a batch can be told apart wherever a constant is counted.

        See :mod:`bcos_fx.explanation.separability` for how that is found.
        """
        if self._separable is None:
            self._separable = not self.sources or is_separable(self.graph_module, self.inputs, self.steps, self._like())
        return self._separable

    def where_mixed(self) -> str | None:
        """Return the line that makes one value of all samples, if it can be found."""
        node = where_mixed(self.inputs, self.steps, self._like())
        return None if node is None else str(node.meta.get("source") or node.name)

    def steps(self, inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, object]]:
        """Run the view, and yield every node with its value, in the caller's grad mode."""
        return steps(self.graph_module, self._environment(inputs, self._ones(inputs)), self.end)

    def axes(self, name: str, shape: tuple[int, ...], channel: int | None) -> Axes:
        """Return what the dimensions of a source mean; see :func:`bcos_fx.explanation.axes.axes_of`.

        Args:
            name: of the source.
            shape: of its value.
            channel: the dimension that the caller names for the channels, or None.
        """
        key = name, shape, channel
        if key not in self._axes:
            held = self.samples_in.get(name, 0)
            self._axes[key] = axes_of(self.unfrozen, self.starts[name].name, shape, channel, samples=held)
        return self._axes[key]


def _output(graph_module: fx.GraphModule) -> fx.Node:
    """Return the node whose value the graph returns."""
    return graph_module.graph.output_node().all_input_nodes[0]


def _run(network: fx.GraphModule | BcosNetwork, inputs: Sequence[Tensor], end: fx.Node) -> Tensor:
    """Return the value of a node of a network's graph, under no_grad."""
    with torch.no_grad():
        value: Tensor = evaluate(network, _by_placeholder(network, inputs), end)
    return value


def _by_placeholder(network: fx.GraphModule | BcosNetwork, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    return dict(zip(network.graph.find_nodes(op="placeholder"), inputs, strict=True))


def view_of(
    module: nn.Module,
    inputs: ExampleInputs | None = None,
    *,
    output: str | None = None,
    source: SourceNames = None,
    batch_axis: BatchAxis = 0,
) -> ExplanationView:
    """Build the explanation view of a network; see :func:`certify` for the arguments.

    The view of a converted network follows its training, and is kept for the next call; that of another module is one
    of a copy.
    """
    if not isinstance(module, BcosNetwork):
        check_module(module := as_module(module))
    _check_mode(module)
    with torch.no_grad():
        if isinstance(module, BcosNetwork) and inputs is not None:
            names = [spec.name for spec in module.record.inputs]
            given = [inputs] if isinstance(inputs, Tensor) else inputs
            # A graph may hold for the example's size alone; the network then keeps others over the same layers.
            module = module.of_size(in_order(names, given) if isinstance(given, Mapping) else given)
        if not isinstance(module, BcosNetwork):
            return ExplanationView(traced(module, inputs, batch_axis), output=output, source=source)
        # A list cannot be part of a key.
        source = source if source is None or isinstance(source, str) else tuple(source)
        views = _VIEWS.setdefault(module, {})
        parts, held = _made_of(module)
        if (output, source) not in views or views[output, source].parts != parts:
            views[output, source] = _Kept(ExplanationView(module, output=output, source=source), parts, held)
        return views[output, source].view


def _check_mode(module: nn.Module) -> None:
    if module.training:
        raise UsageError(
            "the network is in train mode, and an explanation is one of eval mode", hint="call network.eval() first"
        )


def in_order(names: Sequence[str], inputs: ExampleInputs) -> list[Tensor]:
    """Return a network's inputs in its own order.

    Args:
        names: of the inputs, in that order.
        inputs: one tensor, several in order (what is not a tensor is passed over), or all by name.

    Raises:
        UsageError: a name is unknown, or one is missing; or there are more or less.
    """
    if isinstance(inputs, Mapping):
        for name in inputs.keys() - set(names):
            raise UsageError(f"the network has no input {name!r}", hint=nearest(name, names))
        missing = [name for name in names if name not in inputs]
        if missing:
            raise UsageError(f"the input {missing[0]!r} is missing", hint=f"the network takes {', '.join(names)}")
        return [inputs[name] for name in names]
    given = [inputs] if isinstance(inputs, Tensor) else [value for value in inputs if isinstance(value, Tensor)]
    if len(given) != len(names):
        raise UsageError(f"{amount(len(given), 'input')} given, the network takes {len(names)} ({', '.join(names)})")
    return given


class _Kept(NamedTuple):
    """A view, what it was made of, and the tensors among that, so that no new one can have an old one's identity."""

    view: ExplanationView
    parts: list[object]
    held: list[object]


_VIEWS: WeakKeyDictionary[BcosNetwork, dict[tuple[str | None, SourceNames], _Kept]] = WeakKeyDictionary()


def _made_of(network: BcosNetwork) -> tuple[list[object], list[object]]:
    """Return what a view depends on: the layers, which of them add a constant, and the tensors that the graph reads.

    The rest is read again from the layers. Moving or casting a network puts new buffers in the old ones' place.

    Returns:
        Identities, and the tensors.
    """
    tensors = [operator.attrgetter(str(node.target))(network) for node in network.graph.find_nodes(op="get_attr")]
    layers = [(id(layer), getattr(layer, "bias", None) is None) for layer in network.modules()]
    return [*layers, *map(id, tensors)], tensors
