"""Better conditioned test inputs, where a network turns rounding into visible differences on the first ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor

from bcos_fx.verification.equivalence import Verification
from bcos_fx.verification.judging import Comparison, differs

_CONTRAST = 0.25


def prove_well_conditioned(
    prove: Callable[[tuple[Tensor, ...]], Verification], inputs: tuple[Tensor, ...]
) -> Verification:
    """Return the proof on inputs; where rounding hides what it could find, the one on inputs of less contrast.

    Args:
        prove: compares two networks on inputs.
        inputs: the first to be tried.

    A difference that either proof finds beyond rounding is returned in any case.
    """
    first = prove(inputs)
    if not is_hidden_by_rounding(first.comparisons):
        return first
    second = prove(tuple(map(reduce_contrast, inputs)))
    if not is_better(second.comparisons, first.comparisons):
        return first
    reason = "rounding hides differences on the test inputs, so these were taken with a quarter of their contrast"
    return replace(second, detail=f"{second.detail}; {reason}")


def is_hidden_by_rounding(rows: Sequence[Comparison]) -> bool:
    """Return whether rounding explains a difference, and no difference is beyond it."""
    # A sensitivity was measured only where the networks differed and rounding had to be looked at.
    return any(row.sensitivity for row in rows) and not differs(rows)


def is_better(calmer: Sequence[Comparison], first: Sequence[Comparison]) -> bool:
    """Return whether comparisons on inputs of less contrast found a difference, or tested more than the first ones."""
    return differs(calmer) or _tested(calmer) > _tested(first)


def reduce_contrast(tensor: Tensor) -> Tensor:
    """Return a tensor with a quarter of its contrast around its mean; integers as they are."""
    if not tensor.is_floating_point():
        return tensor
    mean = tensor.mean()
    return mean + _CONTRAST * (tensor - mean)


def _tested(rows: Sequence[Comparison]) -> int:
    return sum(row.verdict == "equal" for row in rows)
