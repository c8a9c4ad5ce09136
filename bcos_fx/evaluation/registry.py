"""Post-hoc methods and further measures by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bcos_fx.errors import check_choice
from bcos_fx.evaluation.curve_measures import Measure, curve_measure
from bcos_fx.evaluation.deletion import pixel_deletion
from bcos_fx.methods import baselines
from bcos_fx.methods.method import Method
from bcos_fx.verification.original import NormalizedModel

_STEPS = 20


def _post_hoc(name: str, network: NormalizedModel) -> Method:
    (method,) = baselines.baselines(name, network=network, reference=network.neutral)
    return method


def _pixels(direction: str, imputation: str) -> Measure:
    """Return deletion or insertion of the most important pixels first (Petsiuk et al., BMVC 2018, section 4.1)."""

    def curve(method: Method, network: nn.Module, image: Tensor, label: int) -> list[float]:
        deleted = pixel_deletion(
            method,
            network,
            image,
            torch.tensor([[label]]),
            direction=direction,
            imputation=imputation,
            steps=_STEPS,
        )
        values: list[float] = deleted.curves[0, 0].tolist()
        return values

    places = torch.linspace(0, 1, _STEPS + 1).tolist()
    settings = {"first": "most important", "imputation": imputation, "steps": _STEPS, "score": "softmax"}
    return curve_measure(direction, curve, places, ylabel="softmax of the class", settings=settings)


BASELINES: dict[str, Callable[[NormalizedModel], Method]] = {
    name: functools.partial(_post_hoc, name) for name in baselines.BASELINES
}
"""Name -> what makes the method for an original network that takes images in [0, 1]."""

MEASURES: dict[str, Measure] = {
    # A pixel is hidden by the mean color of its image; a blurred image hardly shows what will be inserted.
    "deletion": _pixels("deletion", "mean"),
    "insertion": _pixels("insertion", "blur"),
}
"""Name -> a measure beside gridpg and accuracy."""

OF_IMAGE_TEXT = ("zeroshot", "linear-probe")
"""Measures of image towers: the first needs texts, the second images to train on."""


def named_baselines(names: str | Sequence[str] | None) -> tuple[str, ...]:
    """Parse names of baselines: ``all``, a list, or one text with commas between; UsageError for unknown ones."""
    return () if names is None else _parse_names("baselines", names, tuple(BASELINES))


def named_metrics(names: str | Sequence[str]) -> tuple[str, ...]:
    """Parse names of measures, as :func:`named_baselines`; ``all``: those of any classifier."""
    return _parse_names("metrics", names, ("accuracy", "gridpg", *MEASURES), OF_IMAGE_TEXT)


def _parse_names(
    keyword: str, names: str | Sequence[str], usual: tuple[str, ...], further: tuple[str, ...] = ()
) -> tuple[str, ...]:
    text = names if isinstance(names, str) else ",".join(names)
    if text == "all":
        return usual
    chosen = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in chosen:
        check_choice(keyword, name, [*usual, *further, "all"])
    return chosen
