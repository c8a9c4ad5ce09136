"""Shapes of new nodes, found without computing anything: the node is run on tensors that have no storage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from bcos_fx.tracing.program import run_node

_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


class _Unknown(Exception):
    """An input's shape is not known."""


def note_shape(node: fx.Node, graph_module: fx.GraphModule) -> None:
    """Set ``shape`` and ``dtype`` in a node's meta, in place, from those of its inputs; None where unknown."""
    precision = next((p.dtype for p in graph_module.parameters() if p.is_floating_point()), torch.float32)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _stand_in(n, precision))
            result = run_node(node, graph_module, args, kwargs)
    except (_Unknown, *_FAILURES):
        result = None
    known = isinstance(result, Tensor)
    node.meta["shape"] = tuple(result.shape) if known else None
    node.meta["dtype"] = result.dtype if known else None


def _stand_in(node: fx.Node, precision: torch.dtype) -> Any:
    """Return a tensor of the node's shape; a floating-point one in the precision that the network has now."""
    shape, dtype, value = (node.meta.get(name) for name in ("shape", "dtype", "value"))
    if shape is not None:
        return torch.empty(shape, dtype=precision if dtype is None or dtype.is_floating_point else dtype)
    if value is None:
        raise _Unknown
    return value
