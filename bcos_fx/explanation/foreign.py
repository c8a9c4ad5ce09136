"""Graphs of networks that are not converted: traced for one explanation, on two of the samples that are given."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx import example
from bcos_fx.errors import FORWARD_ERRORS, TraceError, UsageError
from bcos_fx.nn.functional import default_tolerance
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.tracing import Trace, trace
from bcos_fx.tracing.inputs import BatchAxis, ExampleError, ExampleInputs, axes_by_name, bind
from bcos_fx.tracing.modules import own_copy

_AS_A_WHOLE = "where the samples of a batch belong together, batch_axis=None explains the inputs as one sample"


def traced(module: nn.Module, inputs: ExampleInputs | None, batch_axis: BatchAxis = 0) -> fx.GraphModule:
    """Trace a network, and check that its graph holds for the inputs that are given.

    Args:
        module: the network; not changed.
        inputs: what it takes; None: guesses by its first layer.
        batch_axis: where the inputs hold their samples.

    Raises:
        UsageError: the network runs on these inputs together, and not on some of their samples.
        TraceError: it cannot be written as a graph, or Python code read the number of samples.
    """
    trace_module = partial(trace, module, leaf_modules=vocabulary().leaves)
    if inputs is None:
        return example.first_that_runs(module, trace_module)[1].graph_module
    try:
        traced_module = trace_module(_two_samples(inputs) if batch_axis == 0 else _repeated(module, inputs, batch_axis))
    except ExampleError as error:
        if batch_axis != 0:
            hint = f"batch_axis is {batch_axis!r}: leave it out where the first dimension holds the samples"
            raise ExampleError(error.what, where=error.where, hint=hint) from error
        # Two of the samples were traced; a network of fixed size takes only all of them.
        raise _alone(module, inputs, error) from error
    if traced_module.guards:
        _check_samples(module, inputs, traced_module, batch_axis)
    return traced_module.graph_module


def _alone(module: nn.Module, inputs: ExampleInputs, error: ExampleError) -> UsageError:
    """Return the error for a network that does not run on two of the samples; another one if it runs on all of them."""
    bound = bind(module, inputs)
    with suppress(*FORWARD_ERRORS), torch.no_grad():
        own_copy(module)(*bound.args, **bound.kwargs)
        return UsageError(
            f"the network runs on these samples together, and not on two of them: {error.what}",
            where=error.where,
            hint=_AS_A_WHOLE,
        )
    return error


def _check_samples(module: nn.Module, inputs: ExampleInputs, traced_module: Trace, batch_axis: BatchAxis) -> None:
    """Run network and graph on all samples, and on the first: its numbers of samples may be part of the graph.

    Raises:
        TraceError: they differ, or the graph does not run.
    """
    bound, copied = bind(module, inputs), own_copy(module)
    values = list(bound.named.values())
    axes = [0] * len(values) if batch_axis == 0 else axes_by_name(list(bound.named), values, batch_axis)
    samples = next((x.shape[a] for x, a in zip(values, axes, strict=True) if a is not None and x.dim()), 1)
    first = [
        x if a is None or not x.dim() or x.shape[a] != samples else x.narrow(a, 0, 1)
        for x, a in zip(values, axes, strict=True)
    ]
    # All samples and one: a number of samples that became part of the graph shows in one of the two.
    for given in (values, first):
        with torch.no_grad():
            try:
                expected = bound.call(copied, given)
            except FORWARD_ERRORS:
                continue  # what the network itself does not take is named where it is run
            try:
                same = agree(traced_module.graph_module(*given), expected)
            except FORWARD_ERRORS:
                same = False
        if not same:
            guard = traced_module.guards[0]
            raise TraceError(
                f"the graph that was traced for some samples is another one for {tuple(given[0].shape)}: Python code "
                f"took branches or numbers from shapes ({guard.kind} was {guard.value})",
                where=guard.source,
                hint="keep the number of samples out of Python's branches and numbers, with x.shape[0] in place of "
                f"len(x); {_AS_A_WHOLE}",
            )


def agree(value: object, expected: object) -> bool:
    """Return whether two values are the same tensor but for rounding."""
    if not isinstance(value, Tensor) or not isinstance(expected, Tensor) or value.shape != expected.shape:
        return False
    if not value.is_floating_point() or not value.numel():
        return torch.equal(value, expected)
    # Relative to the largest number: a network rounds small ones as coarsely as those that they are sums of.
    limit = default_tolerance(expected.dtype) * float(expected.nan_to_num().abs().max())
    return torch.allclose(value, expected, rtol=0, atol=limit, equal_nan=True)


def _repeated(module: nn.Module, inputs: ExampleInputs, batch_axis: BatchAxis) -> ExampleInputs:
    """Repeat a single sample: tracing could take its size for one that is always 1."""
    named = bind(module, inputs).named
    axes = axes_by_name(list(named), list(named.values()), batch_axis)
    pairs = list(zip(named.values(), axes, strict=True))
    if any(axis is not None and value.shape[axis] > 1 for value, axis in pairs):
        return inputs
    repeated: ExampleInputs = example.like(
        inputs, [x if axis is None else x.repeat_interleave(2, axis) for x, axis in pairs]
    )
    return repeated


def _two_samples(inputs: ExampleInputs) -> ExampleInputs:
    """Return at least two samples: the size of a single one could be taken for a constant 1."""
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs]) if len(inputs) == 1 else inputs[:2]
    if isinstance(inputs, Mapping):
        return {name: _sample_pair(value) for name, value in inputs.items()}
    return [_sample_pair(value) for value in inputs]


def _sample_pair(value: object) -> Any:
    return _two_samples(value) if isinstance(value, Tensor) and value.dim() else value
