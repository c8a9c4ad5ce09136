"""From an ordinary ``nn.Module`` to a graph: every call on tensors as a node, sizes included."""

from __future__ import annotations

from bcos_fx.tracing.functional import copy_into, fill, require, set_item
from bcos_fx.tracing.guards import Guard
from bcos_fx.tracing.tracer import Trace, trace

__all__ = ["Guard", "Trace", "copy_into", "fill", "require", "set_item", "trace"]
