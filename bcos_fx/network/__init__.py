"""The converted network, and what is kept with its weights."""

from __future__ import annotations

from bcos_fx.network.network import BcosNetwork, Guard, InputSpec, Record, reserved_names

__all__ = ["BcosNetwork", "Guard", "InputSpec", "Record", "reserved_names"]
