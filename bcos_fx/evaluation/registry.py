"""Which post-hoc methods and which further measures can be asked for by name."""

from __future__ import annotations

import functools
from collections.abc import Callable

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
        found = pixel_deletion(
            method,
            network,
            image,
            torch.tensor([[label]]),
            direction=direction,
            imputation=imputation,
            steps=_STEPS,
        )
        values: list[float] = found.curves[0, 0].tolist()
        return values

    places = torch.linspace(0, 1, _STEPS + 1).tolist()
    settings = {"first": "most important", "imputation": imputation, "steps": _STEPS, "score": "softmax"}
    return curve_measure(direction, curve, places, ylabel="softmax of the class", settings=settings)


BASELINES: dict[str, Callable[[NormalizedModel], Method]] = {
    name: functools.partial(_post_hoc, name) for name in baselines.BASELINES
}
"""Name -> what makes the method for an original network that takes images in [0, 1]."""

MEASURES: dict[str, Measure] = {
    "deletion": _pixels("deletion", "mean"),
    "insertion": _pixels("insertion", "blur"),
}
"""Name -> a measure beside gridpg and accuracy."""

OF_IMAGE_TEXT = ("zeroshot", "linear-probe")
"""Measures of image towers: the first needs texts, the second images to train on."""


def named_baselines(text: str | None) -> tuple[str, ...]:
    """Read which baselines are wanted: ``all``, or names with commas between.

    Raises:
        UsageError: a name is unknown.
    """
    if text is None:
        return ()
    if text == "all":
        return tuple(BASELINES)
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        check_choice("baselines", name, [*BASELINES, "all"])
    return names


def named_metrics(text: str) -> tuple[str, ...]:
    """Read which measures are wanted: names with commas between, or ``all`` that a classifier alone is enough for.

    Raises:
        UsageError: a name is unknown.
    """
    ordinary = ("accuracy", "gridpg", *MEASURES)
    if text == "all":
        return ordinary
    known = (*ordinary, *OF_IMAGE_TEXT)
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        check_choice("metrics", name, [*known, "all"])
    return names
