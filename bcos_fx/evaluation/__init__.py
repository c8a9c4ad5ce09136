"""How well explanations explain: localisation, deletion, accuracy, and post-hoc methods to compare with."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcos_fx.evaluation.concept_map import text2concept
    from bcos_fx.evaluation.correctness import Accuracy, accuracy
    from bcos_fx.evaluation.localisation import Localisation, gridpg
    from bcos_fx.evaluation.probing import embed_images, linear_probe
    from bcos_fx.evaluation.reference import gridpg_reference
    from bcos_fx.evaluation.scoring import gridpg_score
    from bcos_fx.evaluation.selection import Protocol, fair, published
    from bcos_fx.evaluation.stores import open_source
    from bcos_fx.methods.method import Method, dynamic_linear
    from bcos_fx.methods.zero_shot import ZeroShot

# Loaded when first used: none of them is needed to know what there is. No module bears the name of one of them, for
# importing it would put the module in the function's place.
_HOMES = {
    "Accuracy": "evaluation.correctness",
    "Localisation": "evaluation.localisation",
    "Method": "methods.method",
    "Protocol": "evaluation.selection",
    "ZeroShot": "methods.zero_shot",
    "accuracy": "evaluation.correctness",
    "dynamic_linear": "methods.method",
    "embed_images": "evaluation.probing",
    "fair": "evaluation.selection",
    "gridpg": "evaluation.localisation",
    "gridpg_reference": "evaluation.reference",
    "gridpg_score": "evaluation.scoring",
    "linear_probe": "evaluation.probing",
    "open_source": "evaluation.stores",
    "published": "evaluation.selection",
    "text2concept": "evaluation.concept_map",
}

__all__ = [
    "Accuracy",
    "Localisation",
    "Method",
    "Protocol",
    "ZeroShot",
    "accuracy",
    "dynamic_linear",
    "embed_images",
    "fair",
    "gridpg",
    "gridpg_reference",
    "gridpg_score",
    "linear_probe",
    "open_source",
    "published",
    "text2concept",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bcos_fx.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bcos_fx.{_HOMES[name]}"), name)
