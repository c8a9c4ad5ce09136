"""Finding the first node at which a rewritten graph stops computing what the original computed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from bcos_fx.errors import UsageError
from bcos_fx.tracing.arguments import tensors
from bcos_fx.tracing.inputs import ExampleInputs
from bcos_fx.verification.judging import finite_scale, largest_error
from bcos_fx.verification.running import FAILURES

# A value this much smaller than the largest one seen is round-off of a sum that cancels, not a signal.
_NOTHING = 1e-6


@dataclass(frozen=True)
class Divergence:
    """The first node whose value differs.

    Attributes:
        node: its name, in both graphs.
        error: largest absolute difference, relative to the larger of the original's value and a millionth of
            the largest value so far; infinite when the shapes differ, one side is not finite, or the
            converted graph fails here.
        shape_original: shape of its value in the original graph; None when it is not a tensor.
        shape_converted: the same in the converted graph.
        source: the user's source line, from ``node.meta["source"]``, if it was recorded.
        failure: message of the error that the converted graph raised here, if any.
    """

    node: str
    error: float
    shape_original: tuple[int, ...] | None
    shape_converted: tuple[int, ...] | None
    source: str | None
    failure: str | None = None


def first_divergence(
    original_graph: fx.GraphModule,
    converted_graph: fx.GraphModule,
    inputs_original: ExampleInputs,
    inputs_converted: ExampleInputs,
    *,
    tolerance: float,
    skip: Collection[str] = (),
) -> Divergence | None:
    """Run both graphs side by side and compare the nodes that stand, by name, in both.

    The graphs advance in step, and a value is freed when it was compared and last used. Both are run in the
    mode and precision that they are in, without gradients; in train mode their buffers change.

    Args:
        original_graph: the reference.
        converted_graph: compared in the order of its nodes. Placeholders and attributes are not compared:
            they are given, not computed.
        inputs_original: a tensor, positional arguments, or a mapping by placeholder name.
        inputs_converted: the same for the converted graph.
        tolerance: largest relative error that counts as equal.
        skip: names of nodes that are meant to differ.

    Returns:
        The first divergence, or None when all nodes that stand in both graphs agree.

    Raises:
        UsageError: the original graph cannot run on its inputs.
    """
    # Rewrites keep the name of a node whose value they keep, so equal names are what can be compared.
    names = (_computed(original_graph) & _computed(converted_graph)) - set(skip)
    largest = 0.0
    with torch.no_grad():  # the reference is a generator, which is advanced here and so runs without gradients, too
        reference = _reference(original_graph, inputs_original, names)
        waiting: dict[str, Any] = {}
        for node, value, failure in _values(converted_graph, inputs_converted):
            if failure is not None:
                return Divergence(node.name, math.inf, None, None, node.meta.get("source"), str(failure))
            if node.name not in names:
                continue
            # A rewrite may have moved the node: the reference runs ahead to it, and what it passes waits for its turn.
            while node.name not in waiting:
                name, expected = next(reference)
                waiting[name] = expected
            expected = waiting.pop(node.name)
            largest = max(largest, *map(finite_scale, tensors(expected)), 0.0)
            error = _relative_error(expected, value, floor=_NOTHING * largest)
            if not error <= tolerance:
                return Divergence(node.name, error, _shape(expected), _shape(value), node.meta.get("source"))
    return None


def _computed(graph_module: fx.GraphModule) -> set[str]:
    return {node.name for node in graph_module.graph.nodes if node.op not in ("placeholder", "get_attr")}


def _reference(
    graph_module: fx.GraphModule, inputs: ExampleInputs, names: Collection[str]
) -> Iterator[tuple[str, Any]]:
    for node, value, failure in _values(graph_module, inputs):
        if failure is not None:
            raise UsageError(
                f"the original graph cannot run on these inputs: {failure}",
                where=node.meta.get("source") or f"node {node.name}",
                hint="give inputs that the original network accepts",
            ) from failure
        if node.name in names:
            yield node.name, value


def _values(graph_module: fx.GraphModule, inputs: ExampleInputs) -> Iterator[tuple[fx.Node, Any, Exception | None]]:
    """Yield each node with its value as it is computed, or with the error it raised, which ends the run."""
    interpreter = fx.Interpreter(graph_module)
    interpreter.args_iter = iter(_arguments(graph_module, inputs))
    for node in graph_module.graph.nodes:
        try:
            interpreter.env[node] = interpreter.run_node(node)
        except FAILURES as failure:
            yield node, None, failure
            return
        yield node, interpreter.env[node], None
        for spent in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[spent]


def _arguments(graph_module: fx.GraphModule, inputs: ExampleInputs) -> list[Any]:
    if isinstance(inputs, Tensor):
        return [inputs]
    if isinstance(inputs, Mapping):
        wanted = [str(node.target) for node in graph_module.graph.nodes if node.op == "placeholder"]
        return [inputs[name] for name in wanted if name in inputs]
    return list(inputs)


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _relative_error(original: object, converted: object, *, floor: float) -> float:
    """Return the worst over the tensors in two values; anything that is not a tensor is not compared."""
    expected, actual = tensors(original), tensors(converted)
    if len(expected) != len(actual):
        return math.inf
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        error, scale = largest_error(a, b.to(a.device)), max(finite_scale(a), floor)
        if error > 0:
            worst = max(worst, error / scale if scale > 0 else math.inf)
    return worst
