"""How far a network moves by rounding alone: the yardstick for a difference between it and another.

One nudge by rounding is a lottery: where an ill-conditioned network amplifies some errors a billionfold, the errors of
one draw may miss those directions. So several draws are made, of inputs and of weights (a rewrite rounds weights), and
one run with another memory layout (a kernel sums in another order); the largest movement counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from bcos_fx.verification.judging import Comparison, discount_rounding
from bcos_fx.verification.running import Case, Outcome
from bcos_fx.verification.samples import nudge, round_otherwise

_DRAWS = 3

Prepare = Callable[[nn.Module], object]


class Run(Protocol):
    """Runs the original on cases, on a copy that was prepared first."""

    def __call__(self, cases: Sequence[Case], *, prepare: Prepare) -> list[Outcome]:
        """Return an outcome for each case."""


def discount_all(
    cases: Sequence[Case],
    rows: Sequence[Comparison],
    expected: Sequence[Outcome],
    run: Run,
    *,
    dtype: torch.dtype,
    seed: int,
) -> tuple[Comparison, ...]:
    """Discount every difference that rounding alone explains: the original itself moves as far.

    Args:
        cases: that were run.
        rows: comparisons of these cases.
        expected: outcomes of the original.
        run: runs the original again.
        dtype: precision of the runs.
        seed: of the draws.
    """
    differing = {row.name for row in rows if row.verdict == "different"}
    moved: dict[str, list[Mapping[str, Tensor]]] = {name: [] for name in differing}
    for changed, prepare in _changes(cases, dtype=dtype, seed=seed):  # all: a run in train mode changes those after it
        for case, outcome in zip(changed, run(changed, prepare=prepare), strict=True):
            for name, result in case.results(outcome).items():
                moved.setdefault(name, []).append(result.values)
    unmoved = {
        name: result.values
        for case, out in zip(cases, expected, strict=True)
        for name, result in case.results(out).items()
    }
    return tuple(
        discount_rounding(row, unmoved[row.name], moved[row.name]) if row.name in differing else row for row in rows
    )


def _changes(cases: Sequence[Case], *, dtype: torch.dtype, seed: int) -> Iterator[tuple[list[Case], Prepare]]:
    def placed(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    for draw in range(seed, seed + _DRAWS):
        nudged = [replace(case, batch=nudge(case.batch.map(placed), seed=draw)) for case in cases]
        yield nudged, lambda module, draw=draw: nudge_weights_(module, seed=draw)  # type: ignore[misc]
    yield [replace(case, batch=case.batch.map(_channels_last)) for case in cases], _weights_channels_last


def nudge_weights_(module: nn.Module, *, seed: int) -> None:
    """Round every parameter and floating-point buffer the other way, in place; integers among them stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                integer = tensor == tensor.round()  # an index, a flag or a count
                tensor.copy_(torch.where(integer, tensor, round_otherwise(tensor, generator)))


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _weights_channels_last(module: nn.Module) -> None:
    # Not by Module.to, which takes volumes' weights for images' as well and fails.
    for parameter in module.parameters():
        parameter.data = _channels_last(parameter.data)
