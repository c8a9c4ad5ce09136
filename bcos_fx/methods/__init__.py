"""Ways of explaining that are compared: a network's own dynamic linear map, and post-hoc methods on the original."""

from __future__ import annotations

from bcos_fx.methods.method import Method, dynamic_linear

__all__ = ["Method", "dynamic_linear"]
