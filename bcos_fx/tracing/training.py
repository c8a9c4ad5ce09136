"""Where the graph of train mode differs from that of eval mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.nn import functional

from bcos_fx.tracing.arguments import describe


class _GraphsDiffer(Exception):
    """Two nodes differ in more than literals that follow the mode."""


def align(evaluated: Graph, trained: Graph, constants: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> str | None:
    """Walk through both graphs together, and mark the arguments that only say which mode it is.

    Such a literal is False in eval mode and True in train mode, or the share of its weights that attention drops: 0 in
    eval mode. Its name or its position goes into ``node.meta["training_argument"]`` of the node in `evaluated`, its
    value in train mode into ``node.meta["training_value"]``; nothing else is changed.

    Args:
        evaluated: the graph of eval mode, without dead nodes.
        trained: the graph of train mode, likewise.
        constants: the tensors made in forward, of either graph.

    Returns:
        None if the graphs are the same but for such literals, else one sentence on the first difference.
    """
    same: dict[Node, Node] = {}
    first, second = list(evaluated.nodes), list(trained.nodes)
    for node, other in zip(first, second, strict=False):
        if (node.op, node.target) != (other.op, other.target) or not _same_constant(node, *constants):
            return _sentence(node, other)
        same[node] = other
        try:
            marks = _mode_literals(node, other, same)
        except _GraphsDiffer:
            return _sentence(node, other)
        if len(marks) > 1:
            return _sentence(node, other)
        if marks:
            node.meta["training_argument"], node.meta["training_value"] = marks[0]
    return None


def _same_constant(node: Node, evaluated: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> bool:
    name = str(node.target)
    if node.op != "get_attr" or name not in evaluated:
        return True
    return name in trained and torch.equal(evaluated[name], trained[name])


def _mode_literals(node: Node, other: Node, same: Mapping[Node, Node]) -> list[tuple[int | str, bool | float]]:
    if len(node.args) != len(other.args) or node.kwargs.keys() != other.kwargs.keys():
        raise _GraphsDiffer
    pairs: list[tuple[int | str, Any, Any]] = [
        (i, *pair) for i, pair in enumerate(zip(node.args, other.args, strict=True))
    ]
    pairs += [(name, value, other.kwargs[name]) for name, value in node.kwargs.items()]
    marks: list[tuple[int | str, bool | float]] = []
    for place, value, trained in pairs:
        if (value is False and trained is True) or (_is_dropped_share(node, place) and value == 0 != trained):
            marks.append((place, trained))
        else:
            _require_same(value, trained, same)
    return marks


def _is_dropped_share(node: Node, place: int | str) -> bool:
    return node.target is functional.scaled_dot_product_attention and place in (4, "dropout_p")


def _require_same(value: Any, trained: Any, same: Mapping[Node, Node]) -> None:
    if isinstance(value, Node):
        if same.get(value) is not trained:
            raise _GraphsDiffer
    elif isinstance(value, (tuple, list)):
        if not isinstance(trained, type(value)) or len(value) != len(trained):
            raise _GraphsDiffer
        for item, other in zip(value, trained, strict=True):
            _require_same(item, other, same)
    elif isinstance(value, dict):
        _require_same(list(value.items()), list(trained.items()) if isinstance(trained, dict) else trained, same)
    elif isinstance(value, slice) and isinstance(trained, slice):
        _require_same((value.start, value.stop, value.step), (trained.start, trained.stop, trained.step), same)
    elif type(value) is not type(trained) or not (value == trained or value != value):
        raise _GraphsDiffer


def _sentence(node: Node, other: Node) -> str:
    if (node.op, node.target) != (other.op, other.target):
        return (
            f"train mode calls {describe(other.target)} at {other.meta['source']}, "
            f"where eval mode calls {describe(node.target)} at {node.meta['source']}"
        )
    return f"the arguments of {describe(node.target)} differ in train mode, at {other.meta['source']}"
