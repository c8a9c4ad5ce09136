"""The arguments and results of recorded calls: walking through them, and putting them into nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_aggregate

from bcos_fx.errors import TraceError
from bcos_fx.tracing.scalars import ForeignScalarError, plain_scalar
from bcos_fx.tracing.sizes import Symbolic
from bcos_fx.tracing.source import SourceLine, current_source

LEAVE_WHOLE = "leave its module as one operation: leaf_modules=[its name], --leaf-module"
"""What to do about a line that cannot be traced, nor written in another way."""


def tensors(value: object) -> list[Tensor]:
    """List the tensors in nested tuples, lists, dicts and slices."""
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Tensor)]


def oddity(tensor: Tensor) -> str | None:
    """Return what keeps a tensor out of every graph, or None of an ordinary one: dense, and of plain numbers."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout is not torch.strided:
        return "sparse"
    return "quantized" if tensor.is_quantized else None


def numbers(value: object) -> list[Symbolic]:
    """List the symbolic numbers in nested tuples, lists, dicts and slices."""
    return [leaf for leaf in _leaves(value) if isinstance(leaf, Symbolic)]


def _leaves(value: object) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in _leaves(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, slice):
        return _leaves((value.start, value.stop, value.step))
    return [value]


def leaves_of(node: Node) -> list[Any]:
    """List the leaves of a node's arguments, positional ones first; :func:`exchange` counts them like this."""
    leaves: list[Any] = []

    def note(leaf: object) -> Any:
        leaves.append(leaf)
        return leaf

    map_aggregate((node.args, dict(node.kwargs)), note)
    return leaves


def exchange(node: Node, index: int, new: Node) -> None:
    """Replace one leaf of a node's arguments by another node, in place."""
    position = -1

    def put(leaf: object) -> Any:
        nonlocal position
        position += 1
        return new if position == index else leaf

    args = map_aggregate(node.args, put)
    kwargs = map_aggregate(dict(node.kwargs), put)
    node.args, node.kwargs = args, kwargs


def graph_argument(value: object, node_of: Callable[[Tensor], Node], device: Callable[[torch.device], Any]) -> Any:
    """Return `value` as a node's argument: tensors and symbolic numbers as nodes, containers as plain ones.

    Raises:
        TraceError: for a value that no graph can hold.
    """

    def leaf(item: object) -> Any:
        if isinstance(item, Tensor):
            return node_of(item)
        if isinstance(item, Symbolic):
            return item.as_node()
        if isinstance(item, Node):
            return item
        if isinstance(item, torch.device):
            return device(item)
        # An index may be a NumPy array. Nodes hold nothing foreign, so it becomes a constant tensor of the graph.
        if _is_array(item):
            return node_of(torch.tensor(item))
        try:
            return plain_scalar(item)
        except ForeignScalarError as error:
            raise TraceError(
                f"an argument of type {type(item).__name__} cannot be put into a graph",
                where=str(current_source()),
                hint=f"{error}, or {LEAVE_WHOLE}",
            ) from error

    return _rebuilt(value, leaf)


def _is_array(value: Any) -> bool:
    """Return whether this is a NumPy array of numbers, as an index may be."""
    return type(value).__module__ == "numpy" and getattr(value, "ndim", 0) > 0 and value.dtype.kind in "biuf"


def _rebuilt(value: object, leaf: Callable[[Any], Any]) -> Any:
    """Apply `leaf` to everything inside plain containers; a size and a named tuple become tuples, a range a list."""
    if isinstance(value, (tuple, list, range)):
        return (tuple if isinstance(value, tuple) else list)(_rebuilt(item, leaf) for item in value)
    if isinstance(value, dict):
        return {key: _rebuilt(item, leaf) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_rebuilt(item, leaf) for item in (value.start, value.stop, value.step)))
    return leaf(value)


def fill_meta(node: Node, value: object, source: SourceLine, module: tuple[str, str]) -> None:
    """Write what is known about a node into its ``meta``, as plain values that survive a deep copy."""
    tensor, number = value if isinstance(value, Tensor) else None, plain_number(value)
    if tensor is None and number is None:
        kind = "tuple" if isinstance(value, (tuple, list)) else "other"
    else:
        kind = "size" if tensor is None else "tensor"
    node.meta.update(
        source=str(source),
        text=source.text,
        module_path=module[0],
        module_type=module[1],
        shape=None if tensor is None else tuple(tensor.shape),
        dtype=None if tensor is None else tensor.dtype,
        value=number,
        origin=node.name,
        type=kind,
    )


def plain_number(value: object) -> object:
    """Return a number, a truth value or a tuple of numbers as it is, anything else as None."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, (bool, int, float)) for item in value):
        return tuple(value)
    return None


def describe(target: object) -> str:
    """Name the target of a call."""
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))
