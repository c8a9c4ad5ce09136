"""The verdict on one pair of outputs: equal, different, or not tested."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

EqualityVerdict = Literal["equal", "different", "not tested"]

# Below this share of its scale an output may be a constant with noise, and comparing it may prove nothing.
LEAST_SPREAD = 1e-5
# It still proves something where an error of the tolerance is this many times the rounding error of the scale.
_VISIBLE = 4.0
# Every operation rounds, not the input alone: an error up to this many times what rounding the input does is noise.
ROUNDINGS = 10.0
ORDER: Mapping[str, int] = {"equal": 0, "not tested": 1, "different": 2}


@dataclass(frozen=True)
class Comparison:
    """One line of the proof.

    Attributes:
        name: the run, such as "eval, batch 2", "train, seed 0", "input gradient" or "size 192x192".
        error: largest absolute difference; infinite when the shapes differ or only one side is finite.
        scale: largest finite absolute value of the original's output.
        spread: how much the original's output varies over the samples: the largest, over outputs, of maximum
            minus minimum over samples. Of a gradient it is the scale, for gradients need not vary.
        relative: ``error`` over the smaller of ``scale`` and ``spread``.
        verdict: "equal", "different" or "not tested".
        sensitivity: how far the original's own output moves by rounding, the largest of several draws; measured only
            where the networks differ, else 0.
    """

    name: str
    error: float
    scale: float
    spread: float
    relative: float
    verdict: EqualityVerdict
    sensitivity: float = 0.0


def discount_rounding(
    row: Comparison, original: Mapping[str, Tensor], moved: Sequence[Mapping[str, Tensor]]
) -> Comparison:
    """Take a difference back that rounding alone explains: the original differs from itself as much.

    A chaotic network (attention with saturated scores, say) turns the last bit of its input into a visible change of
    its output or gradient. Another order of the same sums does so too, so such a difference is not an error of
    a rewrite, and proves nothing either.

    Args:
        row: of two networks that differ.
        original: the reference's tensors by place.
        moved: the same, of runs that only rounding tells from the first: each of other inputs or weights.
    """
    runs = [run for run in moved if list(run) == list(original)]
    errors = (largest_error(value, run[place]) for run in runs for place, value in original.items())
    largest = max((error for error in errors if math.isfinite(error)), default=0.0)
    explained = row.error <= ROUNDINGS * largest
    return replace(row, sensitivity=largest, verdict="not tested" if explained else row.verdict)


def differs(rows: Sequence[Comparison]) -> bool:
    """Return whether a difference was found."""
    return any(row.verdict == "different" for row in rows)


def not_tested(name: str) -> Comparison:
    """Make the row of a run that never took place."""
    return Comparison(name, 0.0, 0.0, 0.0, 0.0, "not tested")


def failed(name: str, original: Mapping[str, Tensor]) -> Comparison:
    """Make the row of a run in which the converted network gave nothing that could be compared."""
    scale = max(map(finite_scale, original.values()), default=0.0)
    return Comparison(name, math.inf, scale, 0.0, math.inf, "different")


def spreads(runs: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, float]:
    """Measure how much each output varies over the samples of several runs.

    Args:
        runs: number of samples and outputs of each run. An output whose first size is that number holds one
            sample per row; any other counts as one sample. Only samples of equal size are compared.
    """
    rows: dict[tuple[str, int], list[Tensor]] = {}
    for count, outputs in runs:
        for place, value in outputs.items():
            samples = value.reshape(count if value.dim() > 0 and value.shape[0] == count else 1, -1)
            if samples.numel():
                rows.setdefault((place, samples.shape[1]), []).append(_finite(samples))
    result: dict[str, float] = {}
    for (place, _), parts in rows.items():
        samples = torch.cat(parts)
        result[place] = max(result.get(place, 0.0), float((samples.amax(0) - samples.amin(0)).max()))
    return result


def compare(
    name: str,
    original: Mapping[str, Tensor],
    converted: Mapping[str, Tensor],
    *,
    variation: Mapping[str, float] | None,
    tolerance: float,
) -> Comparison:
    """Compare two runs tensor by tensor, and return the worst.

    Args:
        name: of the run.
        original: the reference's tensors by place.
        converted: the other network's.
        variation: spread of each of the reference's tensors; None to judge against the scale alone.
        tolerance: largest relative error that counts as equal.
    """
    if list(original) != list(converted):
        return failed(name, original)
    rows = []
    for place, value in original.items():
        spread = variation.get(place, 0.0) if variation is not None else None
        rows.append(_compare_one(name, value, converted[place], spread=spread, tolerance=tolerance))
    return max(rows, key=lambda row: (ORDER[row.verdict], row.relative))


def _compare_one(name: str, a: Tensor, b: Tensor, *, spread: float | None, tolerance: float) -> Comparison:
    scale, error = finite_scale(a), largest_error(a, b)
    # By the smaller: an error as large as all that the output varies by would otherwise drown in a large constant.
    unit = scale if spread is None else min(scale, spread)
    relative = 0.0 if error == 0 else error / unit if unit > 0 else math.inf
    verdict: EqualityVerdict = "equal" if relative <= tolerance else "different"
    silent = spread is not None and spread <= LEAST_SPREAD * scale
    if silent and relative <= tolerance and a.is_floating_point():
        # The networks agree in what little varies: that counts if a difference there would not vanish in rounding.
        silent = unit == 0 or tolerance * unit < _VISIBLE * torch.finfo(a.dtype).eps * scale
    # A large error is a difference even where the output hardly varies; only a small one proves nothing there.
    if error <= tolerance * scale and (silent or not bool(torch.isfinite(a).all())):
        verdict = "not tested"
    return Comparison(name, error, scale, scale if spread is None else spread, relative, verdict)


def largest_error(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference; infinite where shapes differ or only one side is finite."""
    if a.shape != b.shape:
        return math.inf
    wide_a, wide_b = a.double(), b.double()
    # Infinity minus infinity is not a number, so equal values are taken out before the difference is judged.
    same = (wide_a == wide_b) | (wide_a.isnan() & wide_b.isnan())
    if bool(same.all()):
        return 0.0
    error = float((wide_a - wide_b).abs().masked_fill(same, 0.0).max())
    return error if math.isfinite(error) else math.inf


def finite_scale(value: Tensor) -> float:
    """Return the largest absolute value of those that are finite; 0 where there are none."""
    return float(_finite(value).abs().max()) if value.numel() else 0.0


def _finite(value: Tensor) -> Tensor:
    return value.double().nan_to_num(0.0, posinf=0.0, neginf=0.0)
