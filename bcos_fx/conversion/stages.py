"""The stages that make a graph and rewrite it: trace, preserve, change."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import fx

from bcos_fx import example
from bcos_fx.conversion.inputs import drift_batches
from bcos_fx.conversion.records import Changed, Conversion, Preserved, Traced
from bcos_fx.network import InputSpec
from bcos_fx.nn import BcosLayer
from bcos_fx.report.collect import mark_origins, read_rows
from bcos_fx.report.model import Drift
from bcos_fx.rewriting.builders.input import input_affine
from bcos_fx.rewriting.core.channels import encoded_axis
from bcos_fx.rewriting.core.options import check_patterns
from bcos_fx.rewriting.core.passes import PassLog
from bcos_fx.rewriting.core.precision import Precision
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rule import CHANGING_PHASES, PRESERVING_PHASES
from bcos_fx.tracing.inputs import ExampleInputs, axes_by_name, bind
from bcos_fx.tracing.modules import deep_copy
from bcos_fx.validation import check_encoding, check_finite, check_images
from bcos_fx.verification.drift import DriftMeter


def traced(conversion: Conversion, example_inputs: ExampleInputs | None) -> Traced:
    """Turn the module into a graph of its own, and note what every node is."""
    conversion.begin("tracing")
    options = conversion.recipe.options
    options.check_leaves([path for path, _ in conversion.module.named_modules()])
    if example_inputs is None:
        example_inputs, trace = example.first_that_runs(conversion.module, conversion.trace)
        notes = (*trace.notes, *example.notes_of_guess(conversion.module, example_inputs))
        trace = dataclasses.replace(trace, notes=notes)
    else:
        trace = conversion.trace(example_inputs)
    check_finite(trace.graph_module)
    reader = GraphReader(trace.graph_module, conversion.engine.ops, options)
    mark_origins(reader)
    bound = bind(conversion.module, example_inputs)
    return Traced(conversion, example_inputs, trace, bound, reader, read_rows(reader), Precision(trace.graph_module))


def preserved(traced: Traced) -> Preserved:
    """Run the phases that preserve the function, in float64: what they compute is rounded only once."""
    conversion, options = traced.conversion, traced.conversion.recipe.options
    original, engine = None, conversion.engine
    if conversion.method == "full":
        traced.precision.raise_()
    else:
        builders = {name: traced.precision.in_double(builder) for name, builder in engine.builders.items()}
        engine = dataclasses.replace(engine, builders=builders)
    if conversion.method == "blocks":
        original = _as_traced(traced)
    log = engine.run(traced.graph_module, PRESERVING_PHASES)
    specs = _specs(traced)
    # A network of peers' layers came with its own encoding: a recipe's statistics are not for it.
    check_encoding(options, specs, log.near_misses, conversion.asked if traced.reader.has_peer_layers else None)
    if isinstance(patterns := conversion.asked.get("b"), Mapping):
        paths = [str(node.target) for node in traced.graph_module.graph.find_nodes(op="call_module")]
        layers = {path: traced.graph_module.get_submodule(path) for path in paths}
        check_patterns(patterns, {path: layer for path, layer in layers.items() if isinstance(layer, BcosLayer)})
    if conversion.images is not None:
        check_images(conversion.images, specs)
    return Preserved(traced, specs, log, original)


def _as_traced(traced: Traced) -> fx.GraphModule:
    """Return a copy of the graph over the module's own parameters, which no rewrite of the graph can reach."""
    originals = dict(traced.conversion.module.named_parameters(remove_duplicate=False))
    shared = {}
    for name, tensor in traced.graph_module.named_parameters(remove_duplicate=False):
        other = originals.get(name)
        if other is None or (other.shape, other.dtype) != (tensor.shape, tensor.dtype):
            continue
        if torch.equal(other, tensor):
            shared[id(tensor)] = other
    return deep_copy(traced.graph_module, shared)


def _specs(traced: Traced) -> tuple[InputSpec, ...]:
    named, batch_axis = traced.example.named, traced.conversion.batch_axis
    axes = (0,) * len(named) if batch_axis == 0 else axes_by_name(list(named), list(named.values()), batch_axis)
    nodes = traced.graph_module.graph.find_nodes(op="placeholder")
    first, *others = (_spec(traced, node, axis) for node, axis in zip(nodes, axes, strict=True))
    return dataclasses.replace(first, **example.recorded_preprocessing(traced.conversion.module)), *others


def _spec(traced: Traced, node: fx.Node, axis: int | None) -> InputSpec:
    spec = InputSpec(str(node.target), tuple(node.meta.get("shape") or ()), samples=axis)
    encoding = next((user for user in node.users if traced.reader.op(user) == "input_encoding"), None)
    if encoding is None:
        return spec
    axis = encoded_axis(traced.reader, encoding)
    matrix, offset = input_affine(traced.conversion.recipe.options, spec.shape[axis])
    rows = tuple(tuple(row) for row in matrix.tolist())
    return dataclasses.replace(spec, encoded=True, matrix=rows, offset=tuple(offset.tolist()), channel_axis=axis)


def changed(preserved: Preserved, *, measured: bool) -> Changed:
    """Run the phases that change the function, and measure how far each rule moved the output."""
    network = preserved.traced.graph_module
    preserved.traced.precision.restore_()
    meter = DriftMeter(network, drift_batches(preserved)) if measured else None
    # The log of the stage before stays as it is: sweeps() adds to the one that it is given.
    log = PassLog([*preserved.log.steps], [*preserved.log.near_misses])
    drift: list[Drift] = []
    for rule, done in preserved.traced.conversion.engine.sweeps(network, CHANGING_PHASES, log):
        if meter is not None:
            drift.append(meter.step(network, rule.name, len(done)))
    total = meter.total(sum(step.nodes for step in drift)) if meter is not None and drift else None
    return Changed(preserved, log, tuple(drift), total)
