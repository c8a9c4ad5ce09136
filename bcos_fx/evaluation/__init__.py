"""How well explanations explain: localization, deletion, accuracy, and post-hoc methods to compare with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcos_fx.lazy import lazily

if TYPE_CHECKING:
    from bcos_fx.data.stores import open_source
    from bcos_fx.evaluation.concept_map import text2concept
    from bcos_fx.evaluation.correctness import Accuracy, accuracy
    from bcos_fx.evaluation.localisation import Localisation, gridpg
    from bcos_fx.evaluation.measures import evaluate
    from bcos_fx.evaluation.probing import embed_images, linear_probe
    from bcos_fx.evaluation.reference import gridpg_reference
    from bcos_fx.evaluation.scoring import gridpg_score
    from bcos_fx.evaluation.selection import Protocol, fair, published
    from bcos_fx.methods.method import Method, dynamic_linear
    from bcos_fx.methods.zero_shot import ZeroShot

__all__ = [
    "Accuracy",
    "Localisation",
    "Method",
    "Protocol",
    "ZeroShot",
    "accuracy",
    "dynamic_linear",
    "embed_images",
    "evaluate",
    "fair",
    "gridpg",
    "gridpg_reference",
    "gridpg_score",
    "linear_probe",
    "open_source",
    "published",
    "text2concept",
]

__getattr__ = lazily(
    __name__,
    {
        "Accuracy": "bcos_fx.evaluation.correctness",
        "Localisation": "bcos_fx.evaluation.localisation",
        "Method": "bcos_fx.methods.method",
        "Protocol": "bcos_fx.evaluation.selection",
        "ZeroShot": "bcos_fx.methods.zero_shot",
        "accuracy": "bcos_fx.evaluation.correctness",
        "dynamic_linear": "bcos_fx.methods.method",
        "embed_images": "bcos_fx.evaluation.probing",
        "evaluate": "bcos_fx.evaluation.measures",
        "fair": "bcos_fx.evaluation.selection",
        "gridpg": "bcos_fx.evaluation.localisation",
        "gridpg_reference": "bcos_fx.evaluation.reference",
        "gridpg_score": "bcos_fx.evaluation.scoring",
        "linear_probe": "bcos_fx.evaluation.probing",
        "open_source": "bcos_fx.data.stores",
        "published": "bcos_fx.evaluation.selection",
        "text2concept": "bcos_fx.evaluation.concept_map",
    },
)
