"""The former name of :mod:`bcos_fx.verification.parameter_coverage`; to be removed in the next release."""

from __future__ import annotations

from bcos_fx.lazy import renamed

__getattr__ = renamed(
    __name__,
    "bcos_fx.verification.parameter_coverage",
    {"find_copies": "parameter_coverage", "Copies": "ParameterCoverage", "Copy": "CoveredParameter"},
)
