"""Which post-hoc methods and which further measures can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bcos_fx.errors import UsageError, nearest
from bcos_fx.evaluation.methods import Method
from bcos_fx.evaluation.predictions import Subject
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import Prediction
from bcos_fx.evaluation.subjects import OnImages


@dataclass(frozen=True, eq=False)
class Curves:
    """What a measure found for each method, as curves over the share of an image that was changed.

    Attributes:
        measure: its name.
        places: (points,) shares in [0, 1].
        values: method -> (images, points).
        ylabel: what the values are.
        settings: what the measure was set to.
    """

    measure: str
    places: npt.NDArray[np.float64]
    values: Mapping[str, npt.NDArray[np.float64]]
    ylabel: str
    settings: Mapping[str, object] = field(default_factory=dict)


Measure = Callable[[Subject, Sequence[Method], Sequence[Prediction], Runner], Curves]

BASELINES: dict[str, Callable[[OnImages], Method]] = {}
"""Name -> what makes the method for an original network that takes images in [0, 1]."""

MEASURES: dict[str, Measure] = {}
"""Name -> a measure beside gridpg and accuracy."""


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
        if name not in BASELINES:
            raise UsageError(f"no baseline is named {name!r}", hint=nearest(name, [*BASELINES, "all"]))
    return names


def named_metrics(text: str) -> tuple[str, ...]:
    """Read which measures are wanted: ``all``, or names with commas between.

    Raises:
        UsageError: a name is unknown.
    """
    known = ("accuracy", "gridpg", *MEASURES)
    if text == "all":
        return known
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in known:
            raise UsageError(f"no measure is named {name!r}", hint=nearest(name, [*known, "all"]))
    return names
