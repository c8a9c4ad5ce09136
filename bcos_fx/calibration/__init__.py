"""Calibration: statistics and gains that fit a network again after its B was raised, before any training.

``calibrate`` gives a copy, ``calibrate_`` works in place and can be called as often as B rises; ``measure_original``
saves it running the original each time.
"""

from __future__ import annotations

from bcos_fx.calibration.ordered_pass import calibrate, calibrate_, measure_original
from bcos_fx.calibration.original import Targets

__all__ = ["Targets", "calibrate", "calibrate_", "measure_original"]
