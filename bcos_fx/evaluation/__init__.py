"""How well explanations explain: localisation, deletion, accuracy, and post-hoc methods to compare with."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcos_fx.evaluation.correctness import Accuracy, accuracy
    from bcos_fx.evaluation.localisation import Localisation, gridpg
    from bcos_fx.evaluation.methods import Method, dynamic_linear
    from bcos_fx.evaluation.reference import gridpg_reference
    from bcos_fx.evaluation.scoring import gridpg_score
    from bcos_fx.evaluation.selection import Protocol, fair, published
    from bcos_fx.evaluation.stores import open_source

# Loaded when first used: none of them is needed to know what there is. No module bears the name of one of them, for
# importing it would put the module in the function's place.
_HOMES = {
    "Accuracy": "correctness",
    "Localisation": "localisation",
    "Method": "methods",
    "Protocol": "selection",
    "accuracy": "correctness",
    "dynamic_linear": "methods",
    "fair": "selection",
    "gridpg": "localisation",
    "gridpg_reference": "reference",
    "gridpg_score": "scoring",
    "open_source": "stores",
    "published": "selection",
}

__all__ = [
    "Accuracy",
    "Localisation",
    "Method",
    "Protocol",
    "accuracy",
    "dynamic_linear",
    "fair",
    "gridpg",
    "gridpg_reference",
    "gridpg_score",
    "open_source",
    "published",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bcos_fx.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bcos_fx.evaluation.{_HOMES[name]}"), name)
