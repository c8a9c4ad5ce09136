"""Completeness: do the contributions of the input and of all constants add up to the output?

    gap = |f(x) - Σ W(x)·x - Σ_c W_c(x)·c|,  relative to max(|f(x)|, |Σ W(x)·x|, Σ_c |W_c(x)·c|)

Constants may cancel: each of them is rounded, so the gap is relative to what is added up and not to what is left of it.
Completeness is necessary and not sufficient: W = f(x) x / |x|² is complete for any function. W(x) itself is therefore
compared with a gradient that nothing here had a hand in, where there is one: in a network of selections only (ReLU,
max pooling) W(x) is the gradient of the *original* network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bcos_fx.errors import UsageError
from bcos_fx.explanation.view import ExplanationView
from bcos_fx.explanation.weights import DynamicWeights, Select
from bcos_fx.nn.functional import default_tolerance

LEAST_SHARE = 0.01
"""Below this share of the input's contributions in all contributions a sum is not a test of W(x)."""

COMPLETE, NOT_TESTED, INCOMPLETE = "complete", "not tested", "incomplete"
VERDICTS = (INCOMPLETE, COMPLETE, NOT_TESTED)
"""A whole has the first of these verdicts that one of its parts has."""

ROUNDING = 64
"""So many units in the last place, of the sum of all absolute terms, is what rounding leaves of terms that cancel."""


@dataclass(frozen=True)
class Sums:
    """An output beside what is added up to it: the one definition of gap, relative gap and shares.

    All tensors have one shape, such as (N, K), with one entry per sample and explained number.

    Attributes:
        output: the explained numbers.
        contributions: Σ W(x)·x.
        constants: source -> contribution of that constant.
    """

    output: Tensor
    contributions: Tensor
    constants: Mapping[str, Tensor]

    @property
    def total_of_constants(self) -> Tensor:
        """Sum of the constants' contributions."""
        return sum(self.constants.values(), torch.zeros_like(self.output))

    @property
    def residual(self) -> Tensor:
        """Output - Σ contributions - Σ constants."""
        return self.output - self.contributions - self.total_of_constants

    @property
    def gap(self) -> Tensor:
        """Absolute gap, >= 0."""
        return self.residual.abs()

    @property
    def terms(self) -> Tensor:
        """The size of what is added up: the largest of |output|, |contributions| and the sum of all |constants|."""
        constants = sum((values.abs() for values in self.constants.values()), torch.zeros_like(self.output))
        return torch.stack([self.output.abs(), self.contributions.abs(), constants]).amax(0)

    @property
    def relative_gap(self) -> Tensor:
        """Gap relative to the terms; 0 where all are 0."""
        terms = self.terms
        return torch.where(terms > 0, self.gap / torch.where(terms > 0, terms, 1), self.gap)

    @property
    def share(self) -> Tensor:
        """|Σ contributions| / (|Σ contributions| + |Σ constants|), in [0, 1]; 0 where both are 0."""
        size = self.contributions.abs()
        return _ratio(size, size + self.total_of_constants.abs())

    @property
    def share_of_constants(self) -> Tensor:
        """|Σ constants| / (|Σ contributions| + |Σ constants|), in [0, 1]; 0 where both are 0."""
        rest = self.total_of_constants.abs()
        return _ratio(rest, self.contributions.abs() + rest)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Divide; 0 where the whole is 0 or not a number."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 0)


@dataclass(frozen=True)
class Completeness(Sums):
    """How well contributions add up to what the network itself computes; all tensors (N, K), as in :class:`Sums`.

    Attributes:
        tolerance: largest relative gap that passes.
        vanished: node in which the value underflowed to nothing, or None.
        rounding: the gap that rounding alone can leave where contributions cancel, as on a constant image; None: 0.
        no_weight: W(x) is 0 everywhere.
    """

    tolerance: float
    vanished: str | None = None
    rounding: Tensor | None = None
    no_weight: bool = False

    @property
    def tested(self) -> Tensor:
        """Where the input contributes enough for the sum to be a test: an error of 1 % of it would show."""
        # An error of 1 % of W(x)·x must be larger than the gap that the tolerance forgives.
        shows = self.contributions.abs() * LEAST_SHARE >= self.tolerance * self.terms
        return (self.share >= LEAST_SHARE) & shows & ~(self._exceeds & self._cancels)

    @property
    def _exceeds(self) -> Tensor:
        """Where the gap is larger than the tolerance allows, or no number."""
        # Not ">": NaN has to exceed every tolerance.
        return ~(self.relative_gap <= self.tolerance)

    @property
    def _cancels(self) -> Tensor:
        """Where the terms cancel to what rounding leaves of them, so that a sum is not a test."""
        return torch.zeros_like(self._exceeds) if self.rounding is None else self.gap <= self.rounding

    @property
    def worst(self) -> float:
        """Largest relative gap; NaN counts as infinite."""
        return float(torch.nan_to_num(self.relative_gap, nan=float("inf")).max())

    @property
    def verdict(self) -> str:
        """``incomplete`` if a gap is too large, ``not tested`` if all shares are too small, else ``complete``."""
        if bool((self._exceeds & ~self._cancels).any()):
            return INCOMPLETE
        return COMPLETE if bool(self.tested.any()) else NOT_TESTED

    @property
    def ok(self) -> bool:
        """The contributions add up, and that is a test of W(x)."""
        return self.verdict == COMPLETE

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data: the worst gap, the least share, each constant's mean contribution."""
        return {
            "verdict": self.verdict,
            "relative_gap": self.worst,
            "gap": float(self.gap.max()),
            "tolerance": self.tolerance,
            "least_share": float(self.share.min()),
            "tested": f"{int(self.tested.sum())} of {self.tested.numel()}",
            "constants": {name: float(values.mean()) for name, values in self.constants.items()},
            "vanished": self.vanished,
            "no_weight": self.no_weight,
        }

    def __str__(self) -> str:
        line = f"{self.verdict}: largest gap {self.worst:.1e} of the terms (tolerance {self.tolerance:.0e})"
        if self.verdict == NOT_TESTED:
            line += f"; {self.why_not_tested}"
        return line + (f"; the output vanished at node {self.vanished}" if self.vanished else "")

    @property
    def why_not_tested(self) -> str:
        """Why the sum is not a test of W(x)."""
        if self.no_weight:
            return "W(x) = 0 everywhere, so nothing of these outputs is explained"
        share = float(self.share.max())
        if bool((self._exceeds & self._cancels).all()):
            return "the contributions cancel to rounding"
        if share < LEAST_SHARE:
            return f"the input contributes {share:.2%} at the most, the rest is constants"
        least = float((self.terms / self.contributions.abs()).min())
        return f"the constants cancel, and are {least:.0e} times what the input contributes or more, which hides errors"


def all_numbers(most: int = 3) -> Select:
    """Select the first few numbers of each sample's value."""
    return lambda value: value.flatten(1)[:, :most]


def check_completeness(
    view: ExplanationView, inputs: Sequence[Tensor], *, select: Select | None = None
) -> Completeness:
    """Measure whether contributions add up.

    Args:
        view: of the network.
        inputs: the network's inputs (N, ...), in order.
        select: the numbers to be explained; None: the first three of each sample.

    Returns:
        The sums, judged by the coarsest precision that the value passes on its way: a network may compute in float32
        whatever it is given.

    Raises:
        UsageError: the inputs hold no samples.
    """
    if not inputs or not len(inputs[0]):
        raise UsageError("there are no samples to check completeness on")
    select = select or all_numbers()
    if len(inputs[0]) == 1 or view.separable:
        weights = view.dynamic_weights(inputs, select)
    else:
        samples = range(len(inputs[0]))
        weights = DynamicWeights.joined([view.dynamic_weights([x[n : n + 1] for x in inputs], select) for n in samples])
    coarsest = coarsest_precision(view, inputs, weights.output.dtype)
    # The network's own output: a frozen layer that computes something else must not vouch for itself.
    weights = replace(weights, output=select(view.own_value(inputs)))
    judgment = judged(weights, dtype=coarsest)
    return replace(judgment, vanished=_vanishing(view, inputs)) if judgment.no_weight else judgment


def coarsest_precision(view: ExplanationView, inputs: Sequence[Tensor], dtype: torch.dtype) -> torch.dtype:
    """Return the coarsest precision of all values on the way to an output, itself of the precision ``dtype``."""
    with torch.no_grad():
        for node, value in view.network_steps(inputs):
            if isinstance(value, Tensor) and value.is_floating_point() and view.on_value_path(node):
                # Only on the way of values: a gate may have any precision, for it only weights them.
                dtype = max(dtype, value.dtype, key=lambda passed: torch.finfo(passed).eps)
    return dtype


def judged(weights: DynamicWeights, *, dtype: torch.dtype | None = None) -> Completeness:
    """Judge weights and constants that were computed already; see :func:`default_tolerance` for the largest gap.

    Args:
        weights: the weights, the constants, and as ``output`` what they are compared with.
        dtype: the coarsest precision on the way to the output; None: that of the output.
    """
    dtype = weights.output.dtype if dtype is None else dtype
    products = [(source.weights * source.start.unsqueeze(1)).flatten(2) for source in weights.sources.values()]
    parts = torch.cat(products, dim=2)
    # Of single products, not of their sums: rounding follows the size of what is added, before it cancels.
    added = sum((values.abs() for values in weights.constants.values()), parts.abs().sum(2))
    return Completeness(
        weights.output,
        parts.sum(2),
        dict(weights.constants),
        default_tolerance(dtype),
        rounding=ROUNDING * torch.finfo(dtype).eps * added,
        no_weight=not any(bool((source.weights != 0).any()) for source in weights.sources.values()),
    )


def _vanishing(view: ExplanationView, inputs: Sequence[Tensor]) -> str | None:
    """Return the first node whose value underflows (below the smallest normal number) though its inputs do not."""
    with torch.no_grad():
        for node, value in view.steps(inputs):
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and view.on_value_path(node):
                if float(value.abs().max()) < torch.finfo(value.dtype).tiny:
                    return node.name
    return None
