"""Shapes of new nodes, from a run on stand-ins: tensors without storage for products with weights, else zeros.

A pass over zeros costs little where there is no such product, and PyTorch's own shape functions of other operations are
Python code that imports the compiler at its first call, which takes seconds, as does ``FakeTensorMode``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call

from bcos_fx.tracing.program import module_at, run_node

_FAILURES = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


class _Unknown(Exception):
    """An input's shape is not known."""


def note_shape(node: fx.Node, graph_module: fx.GraphModule) -> None:
    """Set ``shape`` and ``dtype`` in a node's meta, in place, from those of its inputs; None where unknown."""
    layer = module_at(graph_module, str(node.target)) if node.op == "call_module" else None
    state = {} if layer is None else {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    # Matrices are what costs time; on the meta device products with them give shapes alone.
    multiplies = layer is not None and any(weight.dim() > 1 for weight in layer.parameters())
    device = "meta" if multiplies else "cpu"
    precision = next((p.dtype for p in graph_module.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: _stand_in(n, precision, device))
            if layer is None:
                result = run_node(node, graph_module, args, kwargs)
            else:
                state = {name: tensor.to(device) for name, tensor in state.items()}
                result = functional_call(layer, state, args, kwargs)
    except (_Unknown, *_FAILURES):
        result = None
    known = isinstance(result, Tensor)
    node.meta["shape"] = tuple(result.shape) if known else None
    node.meta["dtype"] = result.dtype if known else None


def _stand_in(node: fx.Node, precision: torch.dtype, device: str) -> Any:
    """Return a tensor of the node's shape; a floating-point one in the precision that the network has now."""
    shape, dtype, value = (node.meta.get(name) for name in ("shape", "dtype", "value"))
    if shape is not None:
        dtype = precision if dtype is None or dtype.is_floating_point else dtype
        return torch.zeros(shape, dtype=dtype, device=device)
    if value is None and node.target is getattr:  # a dtype or a device, that a cast reads
        return getattr(_stand_in(node.args[0], precision, device), node.args[1])  # type: ignore[arg-type]
    if value is None:
        raise _Unknown
    return value
