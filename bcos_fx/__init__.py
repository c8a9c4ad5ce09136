"""bcos_fx turns trained networks into B-cos networks by graph rewriting, and proves what it did.

``bcosify(module)`` takes an ordinary module and returns a B-cos network, verified, with a report.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bcos_fx.errors import BcosFxError
from bcos_fx.version import __version__

if TYPE_CHECKING:
    from bcos_fx.artifact import load, save
    from bcos_fx.calibration import calibrate
    from bcos_fx.certification import certify
    from bcos_fx.convert import bcosify, plan
    from bcos_fx.explanation.explain import explain
    from bcos_fx.proofs import verify
    from bcos_fx.training.finetune import finetune

__all__ = [
    "BcosFxError",
    "__version__",
    "bcosify",
    "calibrate",
    "certify",
    "explain",
    "finetune",
    "load",
    "plan",
    "save",
    "verify",
]

# Loaded when first used: torch takes seconds to import, and `bcos-fx --help` needs none of it.
_HOMES = {
    "bcosify": "bcos_fx.convert",
    "calibrate": "bcos_fx.calibration",
    "certify": "bcos_fx.certification",
    "explain": "bcos_fx.explanation.explain",
    "finetune": "bcos_fx.training.finetune",
    "load": "bcos_fx.artifact",
    "plan": "bcos_fx.convert",
    "save": "bcos_fx.artifact",
    "verify": "bcos_fx.proofs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bcos_fx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
