"""How well explanations explain: localisation, deletion, accuracy, and post-hoc methods to compare with."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcos_fx.evaluation.concept_map import text2concept
    from bcos_fx.evaluation.correctness import Accuracy, accuracy
    from bcos_fx.evaluation.localisation import Localisation, gridpg
    from bcos_fx.evaluation.methods import Method, dynamic_linear
    from bcos_fx.evaluation.probing import embed_images, linear_probe
    from bcos_fx.evaluation.reference import gridpg_reference
    from bcos_fx.evaluation.scoring import gridpg_score
    from bcos_fx.evaluation.selection import Protocol, fair, published
    from bcos_fx.evaluation.stores import open_source
    from bcos_fx.evaluation.zero_shot import ZeroShot

# Loaded when first used: none of them is needed to know what there is. No module bears the name of one of them, for
# importing it would put the module in the function's place.
_HOMES = {
    "Accuracy": "correctness",
    "Localisation": "localisation",
    "Method": "methods",
    "Protocol": "selection",
    "ZeroShot": "zero_shot",
    "accuracy": "correctness",
    "dynamic_linear": "methods",
    "embed_images": "probing",
    "fair": "selection",
    "gridpg": "localisation",
    "gridpg_reference": "reference",
    "gridpg_score": "scoring",
    "linear_probe": "probing",
    "open_source": "stores",
    "published": "selection",
    "text2concept": "concept_map",
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
    return getattr(importlib.import_module(f"bcos_fx.evaluation.{_HOMES[name]}"), name)
