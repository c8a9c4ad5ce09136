"""From an ordinary ``nn.Module`` to a graph: every call on tensors as a node, sizes included."""

from __future__ import annotations

from bcos_fx.tracing.functional import copy_into, fill, require, set_item
from bcos_fx.tracing.modes import own_modes
from bcos_fx.tracing.sizes import TracedGuard
from bcos_fx.tracing.tracer import Trace, trace

__all__ = ["Trace", "TracedGuard", "copy_into", "fill", "own_modes", "require", "set_item", "trace"]
