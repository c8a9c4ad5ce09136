"""Results in the form that CLIP Benchmark (LAION, version 1.6) writes, to be laid beside its own."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from bcos_fx.evaluation.selection import Prediction

ZERO_SHOT, LINEAR_PROBE = "zeroshot_classification", "linear_probe"
_FIVE = 5


def record(
    task: str, metrics: Mapping[str, float | None], *, dataset: str, model: str, pretrained: str
) -> dict[str, Any]:
    """Return one result: what was measured, of what, on what."""
    return {
        "dataset": dataset,
        "model": model,
        "pretrained": pretrained,
        "task": task,
        "metrics": dict(metrics),
        "language": "en",
    }


def zero_shot_metrics(predictions: Sequence[Prediction], classes: int) -> dict[str, float | None]:
    """Return acc1, acc5 and mean_per_class_recall, in [0, 1]; acc5 is None below five classes, there it is NaN."""
    return rates(
        [p.label for p in predictions],
        [p.predicted for p in predictions],
        [p.among_five for p in predictions],
        classes,
    )


def rates(
    labels: Sequence[int], predicted: Sequence[int], among_five: Sequence[bool], classes: int
) -> dict[str, float | None]:
    """Return the same from labels, predictions, and whether the label is among the five highest."""
    right = [a == b for a, b in zip(labels, predicted, strict=True)]
    by_class: dict[int, list[bool]] = defaultdict(list)
    for label, hit in zip(labels, right, strict=True):
        by_class[label].append(hit)
    return {
        "acc1": _mean(right),
        "acc5": _mean(among_five) if classes >= _FIVE else None,
        # Exact sums, so that the order of classes does not matter.
        "mean_per_class_recall": math.fsum(map(_mean, by_class.values())) / len(by_class),
    }


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
