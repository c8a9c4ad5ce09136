"""Whether the samples of a batch can be told apart wherever a view counts a constant.

They can where they are the slowest part of the first dimension. That is found by running the view for two batch sizes;
and where samples are merged with something else, by looking where a sample of NaN arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from bcos_fx.nn import Counted, CountedConstant

RunNodes = Callable[[Sequence[Tensor]], Iterator[tuple[fx.Node, object]]]
"""Runs a view on inputs, and yields every node with its value."""


@dataclass(frozen=True)
class _Observed:
    """What was seen of a value: its shape, and whether its first part holds anything of samples after the first."""

    shape: tuple[int, ...]
    mixed: bool


def is_separable(graph_module: fx.GraphModule, inputs: Sequence[fx.Node], run: RunNodes, like: Tensor) -> bool:
    """Return whether the samples of a batch can be told apart.

    Args:
        graph_module: of the view; not changed.
        inputs: its nodes that hold the network's inputs.
        run: runs it.
        like: a tensor of the network's precision, on its device.
    """
    calls = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    called = {node: graph_module.get_submodule(str(node.target)) for node in calls}
    counted = [node for node, module in called.items() if isinstance(module, Counted)]
    carriers = [node.args[-1] for node in counted if isinstance(called[node], CountedConstant)]
    observed = _of_two_and_three(run, inputs, like, {*counted, *(c for c in carriers if isinstance(c, fx.Node))})
    if observed is None:
        return False
    two, three = observed
    shapes = [(two[node].shape, three[node].shape) for node in counted if node in two]
    if not all(_grows(*pair) for pair in shapes):
        return False
    # Where samples were merged with something else, the second of two must stay out of the first half.
    return all(shape[0] == 2 for shape, _ in shapes) or not any(value.mixed for value in two.values())


def where_mixed(inputs: Sequence[fx.Node], run: RunNodes, like: Tensor) -> fx.Node | None:
    """Return the first node that holds something of all samples and no dimension of them, as a mean; None: none does.

    Args:
        inputs: the nodes of a view that hold the network's inputs.
        run: runs it.
        like: a tensor of the network's precision, on its device.
    """
    observed = _of_two_and_three(run, inputs, like, set(inputs[0].graph.nodes))
    if observed is None:
        return None
    two, three = observed
    lost = (node for node, value in two.items() if value.mixed and node in three and value.shape == three[node].shape)
    return next(lost, None)


def _of_two_and_three(
    run: RunNodes, inputs: Sequence[fx.Node], like: Tensor, nodes: set[fx.Node]
) -> tuple[dict[fx.Node, _Observed], dict[fx.Node, _Observed]] | None:
    """Record the values of nodes for two samples and for three, all but the first NaN; None if the graph fails."""
    two, three = dict[fx.Node, _Observed](), dict[fx.Node, _Observed]()
    try:
        with torch.no_grad():
            for samples, observed in ((2, two), (3, three)):
                for node, value in run([_stand_in(node, samples, like) for node in inputs]):
                    if node in nodes and isinstance(value, Tensor):
                        first = value[: max(1, len(value) // samples)] if value.dim() else value
                        observed[node] = _Observed(tuple(value.shape), bool(first.isnan().any()))
    # A graph of a fixed size does not run on other numbers of samples, which settles the question.
    except (RuntimeError, ValueError, TypeError):
        return None
    return two, three


def _grows(two: tuple[int, ...], three: tuple[int, ...]) -> bool:
    """Return whether the shapes for two and three samples differ in the first dimension alone, by that ratio."""
    return len(two) > 0 and two[1:] == three[1:] and two[0] % 2 == 0 and three[0] == two[0] // 2 * 3


def _stand_in(node: fx.Node, samples: int, like: Tensor) -> Tensor:
    """Return a first sample of 0.5 and NaN for the others, on the network's device and in its precision."""
    shape, noted = tuple(node.meta.get("shape") or (1,)), node.meta.get("dtype")
    dtype = like.dtype if noted is None or noted.is_floating_point else noted
    value = torch.full((samples, *shape[1:]), 0.5 if dtype.is_floating_point else 0, dtype=dtype, device=like.device)
    if dtype.is_floating_point:
        # NaN passes through every operation that reads it, so wherever it arrives, samples were mixed.
        value[1:] = torch.nan
    return value
