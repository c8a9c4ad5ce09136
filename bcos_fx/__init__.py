"""bcos_fx turns trained networks into B-cos networks by graph rewriting, and proves what it did.

``bcosify(module)`` takes an ordinary module and returns a B-cos network, verified, with a report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcos_fx.errors import BcosFxError
from bcos_fx.lazy import lazily
from bcos_fx.version import __version__

if TYPE_CHECKING:
    from bcos_fx.artifact import example_network, load, save
    from bcos_fx.calibration import calibrate
    from bcos_fx.convert import bcosify, plan
    from bcos_fx.diagnosis import why_not
    from bcos_fx.evaluation.measures import evaluate
    from bcos_fx.explanation.certify import certify
    from bcos_fx.explanation.explain import explain
    from bcos_fx.explanation.explanation import Explanation
    from bcos_fx.exporting.export import export
    from bcos_fx.folding import optimize
    from bcos_fx.hub import from_pretrained, push_to_hub, save_pretrained
    from bcos_fx.network import BcosNetwork
    from bcos_fx.report import Report
    from bcos_fx.training.finetune import finetune
    from bcos_fx.training.recipe import Training
    from bcos_fx.training.settings import RunSettings
    from bcos_fx.verification import verify

__all__ = [
    "BcosFxError",
    "BcosNetwork",
    "Explanation",
    "Report",
    "RunSettings",
    "Training",
    "__version__",
    "bcosify",
    "calibrate",
    "certify",
    "evaluate",
    "example_network",
    "explain",
    "export",
    "finetune",
    "from_pretrained",
    "load",
    "optimize",
    "plan",
    "push_to_hub",
    "save",
    "save_pretrained",
    "verify",
    "why_not",
]

__getattr__ = lazily(
    __name__,
    {
        "BcosNetwork": "bcos_fx.network",
        "Explanation": "bcos_fx.explanation.explanation",
        "Report": "bcos_fx.report",
        "RunSettings": "bcos_fx.training.settings",
        "Training": "bcos_fx.training.recipe",
        "bcosify": "bcos_fx.convert",
        "calibrate": "bcos_fx.calibration",
        "certify": "bcos_fx.explanation.certify",
        "evaluate": "bcos_fx.evaluation.measures",
        "example_network": "bcos_fx.artifact",
        "explain": "bcos_fx.explanation.explain",
        "export": "bcos_fx.exporting.export",
        "finetune": "bcos_fx.training.finetune",
        "from_pretrained": "bcos_fx.hub",
        "load": "bcos_fx.artifact",
        "optimize": "bcos_fx.folding",
        "plan": "bcos_fx.convert",
        "push_to_hub": "bcos_fx.hub",
        "save": "bcos_fx.artifact",
        "save_pretrained": "bcos_fx.hub",
        "verify": "bcos_fx.verification",
        "why_not": "bcos_fx.diagnosis",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
