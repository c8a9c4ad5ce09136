"""Which post-hoc methods and which further measures can be asked for by name."""

from __future__ import annotations

from collections.abc import Callable

from bcos_fx.errors import UsageError, nearest
from bcos_fx.evaluation.curve_measures import Measure
from bcos_fx.evaluation.methods import Method
from bcos_fx.evaluation.subjects import OnImages

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
