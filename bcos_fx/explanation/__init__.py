"""Explanations: W(x), contributions and constants of an output, and the pictures of them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bcos_fx.explanation.attribution import Contributions
    from bcos_fx.explanation.result import Constants, Explanation
    from bcos_fx.explanation.similarity import cosine
    from bcos_fx.explanation.targets import difference

__all__ = ["Constants", "Contributions", "Explanation", "cosine", "difference"]

_HOMES = {
    "Constants": "result",
    "Contributions": "attribution",
    "Explanation": "result",
    "cosine": "similarity",
    "difference": "targets",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bcos_fx.explanation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bcos_fx.explanation.{_HOMES[name]}"), name)
