"""Numbers that Python code read from inputs of integers, such as masks: does the graph hold for others too?

A library asks a mask whether it masks anything, and leaves it out if not. The graph that was recorded with the mask is
right either way; the one recorded without it is not. Which of the two a graph is, running both tells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.fx import Node

from bcos_fx.errors import TraceError
from bcos_fx.tracing.functional import require
from bcos_fx.tracing.graph_module import GraphModule

RunGraph = Callable[[list[Tensor]], Tensor]
Agree = Callable[[Tensor, Tensor], bool]


def drop_needless_checks(
    graph_module: GraphModule, inputs: list[Tensor], run: RunGraph, agree: Agree
) -> tuple[str, ...]:
    """Take checks of numbers that a graph is right without out of it, in place; return a sentence for each number."""
    checks = [node for node in graph_module.graph.nodes if node.target is require]
    if not checks:
        return ()
    others = list(_others(inputs))
    free = {check for check in checks if _holds_without(graph_module, check, others, run, agree)}
    for check in free:
        graph_module.graph.erase_node(check)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return tuple(dict.fromkeys(_sentence(check, free=check in free) for check in checks))


def _others(inputs: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield inputs whose integers are those of masks: nothing masked, the last place masked; none without integers."""
    for last in (1, 0) if not all(value.is_floating_point() for value in inputs) else ():
        changed = [value if value.is_floating_point() else torch.ones_like(value) for value in inputs]
        for value in changed:
            if not value.is_floating_point() and value.dim():
                value[..., -1] = last
        yield changed


def _holds_without(
    graph_module: GraphModule, check: Node, others: list[list[Tensor]], run: RunGraph, agree: Agree
) -> bool:
    """Return whether the module computes what the graph does for other numbers; False where none was found."""
    refused = [values for values in others if _refuses(_with_checks(graph_module, {check.name}), values)]
    unchecked = _with_checks(graph_module, set())
    try:
        return bool(refused) and all(agree(unchecked(*values), run(values)) for values in refused)
    except Exception:  # inputs that were made up may be none that the module takes, and then it may raise anything
        return False


def _refuses(graph_module: GraphModule, values: list[Tensor]) -> bool:
    try:
        graph_module(*values)
    except TraceError:
        return True
    except Exception:  # as above: that tells nothing of the number
        return False
    return False


def _with_checks(graph_module: GraphModule, names: set[str]) -> GraphModule:
    """Return a graph over the same modules that makes only these checks."""
    graph = copy.deepcopy(graph_module.graph)
    for node in list(graph.nodes):
        if node.target is require and node.name not in names:
            graph.erase_node(node)
    return GraphModule(graph_module, graph)


def _sentence(check: Node, *, free: bool) -> str:
    read = f"Python code reads {check.args[1]} from the values of an input at {check.args[2]}"
    return f"{read}; the graph holds for inputs that answer otherwise too" if free else f"{read}; others are refused"
