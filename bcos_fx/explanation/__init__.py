"""Explanations: W(x), contributions and constants of an output, and the pictures of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcos_fx.lazy import lazily

if TYPE_CHECKING:
    from bcos_fx.explanation.attribution import Contributions, contributions_as_arrays
    from bcos_fx.explanation.explanation import Explanation
    from bcos_fx.explanation.result import Constants
    from bcos_fx.explanation.similarity import cosine
    from bcos_fx.explanation.targets import difference

__all__ = ["Constants", "Contributions", "Explanation", "contributions_as_arrays", "cosine", "difference"]

__getattr__ = lazily(
    __name__,
    {
        "Constants": "bcos_fx.explanation.result",
        "Contributions": "bcos_fx.explanation.attribution",
        "Explanation": "bcos_fx.explanation.explanation",
        "contributions_as_arrays": "bcos_fx.explanation.attribution",
        "cosine": "bcos_fx.explanation.similarity",
        "difference": "bcos_fx.explanation.targets",
    },
)
