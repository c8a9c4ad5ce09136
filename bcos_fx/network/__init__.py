"""The converted network, and what is kept with its weights."""

from __future__ import annotations

from bcos_fx.network.facts import Origin, TrainingRun
from bcos_fx.network.network import BcosNetwork, reserved_names
from bcos_fx.network.record import Guard, InputSpec, Record

__all__ = ["BcosNetwork", "Guard", "InputSpec", "Origin", "Record", "TrainingRun", "reserved_names"]
