"""Explanation views of networks whose values hold their samples elsewhere than in the first dimension, or nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from bcos_fx.errors import UsageError
from bcos_fx.explanation.layout import SampleLayout, find_layout, own_form, samples_first
from bcos_fx.explanation.preparation import SourceNames
from bcos_fx.explanation.view import ExplanationView, in_order, view_of
from bcos_fx.explanation.weights import DynamicWeights, Select, SourceWeights
from bcos_fx.network import BcosNetwork
from bcos_fx.tracing.exported import as_module
from bcos_fx.tracing.inputs import BatchAxis, ExampleInputs, axes_by_name


class ArrangedView(ExplanationView):
    """A view that takes and returns (N, ...), over a graph that holds its samples elsewhere; it runs one at a time.

    Args:
        view: of the graph; the new view shares everything with it.
        given: inputs as the network takes them, to find out where other values hold their samples.
        batch_axis: the dimension of the samples in the first input, None, or either for each input by name.

    Raises:
        UsageError: there is no such dimension, or a value holds no samples.
    """

    def __init__(self, view: ExplanationView, given: Sequence[Tensor], batch_axis: BatchAxis) -> None:
        # Everything is shared, not copied: the view's nodes, layers and certificate hold for one sample as for several.
        self.__dict__.update(vars(view))
        # Samples without a common first dimension are run one at a time.
        self._axes, self._separable = {}, False
        names = {name: node.name for name, node in self.starts.items()}
        axes = axes_by_name([str(node.target) for node in self.inputs], given, batch_axis)
        end = self.unfrozen.graph.output_node().all_input_nodes[0]
        self.layout: SampleLayout = find_layout(self._shapes, given, axes, names, end.name)
        self.samples_in = self.layout.starts

    def _shapes(self, inputs: Sequence[Tensor]) -> dict[str, tuple[int, ...]]:
        """Name of a node -> shape of its value, for inputs in the network's own form."""
        given = {node.name: tuple(x.shape) for node, x in zip(self.inputs, inputs, strict=True)}
        with torch.no_grad():
            steps = super().network_steps(inputs)
            return given | {node.name: tuple(value.shape) for node, value in steps if isinstance(value, Tensor)}

    def arrange(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Return inputs as (N, ...); those that belong to every sample are repeated."""
        return self.layout.first(given)

    def samples(self, inputs: Sequence[Tensor]) -> int:
        """Return 1: inputs in the network's own form are those of one sample."""
        return 1

    def _check_samples(self, leaves: Mapping[fx.Node, Tensor], samples: int) -> None:
        """Accept every source: the layout defines where its samples lie."""

    def network_steps(self, inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, object]]:
        """Run the network itself, one sample after the other, and yield each node with its value."""
        for own in self.layout.each(inputs):
            yield from super().network_steps(own)

    def value(self, inputs: Sequence[Tensor]) -> Tensor:
        """Run the view for its value alone."""
        return self._run_each(super().value, inputs)

    def own_value(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return what is explained as the network's own forward gives it."""
        return self._run_each(super().own_value, inputs)

    def value_together(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return what is explained of a run on all samples at once, where it can be told which part is whose."""
        if self.layout.end is None:
            return self.own_value(inputs)
        own = [own_form(x, axis) for x, axis in zip(inputs, self.layout.inputs, strict=True)]
        return samples_first(super().own_value(own), self.layout.end)

    def check_values(self, inputs: Sequence[Tensor]) -> None:
        """Check what Python code of the original reads of the inputs' values."""
        for own in self.layout.each(inputs):
            super().check_values(own)

    def steps(self, inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, object]]:
        """Run the view, one sample after the other, and yield every node with its value."""
        for own in self.layout.each(inputs):
            yield from super().steps(own)

    def _run_each(self, run: Callable[[list[Tensor]], Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """Run each sample by itself and concatenate the results to (N, ...)."""
        return torch.cat([samples_first(run(own), self.layout.end) for own in self.layout.each(inputs)])

    def dynamic_weights(self, inputs: Sequence[Tensor], select: Select) -> DynamicWeights:
        """Compute W(x) and the contributions of all constants for inputs (1, ...); see the base class.

        Raises:
            UsageError: the network is in train mode by now, or several samples were given.
        """
        if len(inputs[0]) > 1:
            raise UsageError("several samples were given at once", hint="explain them one at a time")
        (own,) = self.layout.each(inputs)
        explained = super().dynamic_weights(own, lambda value: select(samples_first(value, self.layout.end)))
        sources = {name: _samples_first(source, self.layout.starts[name]) for name, source in explained.sources.items()}
        return replace(explained, value=samples_first(explained.value, self.layout.end), sources=sources)


def _samples_first(source: SourceWeights, axis: int | None) -> SourceWeights:
    """Return weights (1, K, ...) of a source (1, ...), from weights that hold K in dimension 1 of the source."""
    weights = torch.stack([samples_first(rows, axis) for rows in source.weights.unbind(1)], dim=1)
    return SourceWeights(samples_first(source.start, axis), weights)


def arranged_view_of(
    module: nn.Module,
    inputs: ExampleInputs | None,
    batch_axis: BatchAxis,
    *,
    output: str | None = None,
    source: SourceNames = None,
) -> ExplanationView:
    """Build the explanation view of a network; see :func:`bcos_fx.certify` for the arguments.

    Raises:
        UsageError: the inputs do not hold their samples so.
    """
    if batch_axis == 0 or (inputs is None and isinstance(module, BcosNetwork)):
        return view_of(module, inputs, output=output, source=source)  # without inputs nothing is measured
    if inputs is None:
        raise UsageError("batch_axis= was given without inputs", hint="give what the module takes")
    module = as_module(module)
    if isinstance(module, BcosNetwork):
        specs = module.record.inputs
        first = batch_axis if isinstance(batch_axis, Mapping) else {specs[0].name: batch_axis}
        for spec in specs:
            spec.check_samples(first.get(spec.name))
    view = view_of(module, inputs, output=output, source=source, batch_axis=batch_axis)
    return ArrangedView(view, in_order([str(node.target) for node in view.inputs], inputs), batch_axis)
