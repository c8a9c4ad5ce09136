"""Equivalence block by block: float64 for one block at a time, for networks too large to copy in float64.

Both graphs are cut at the same values (:mod:`bcos_fx.verification.cuts`). What the original's blocks before compute is
given to both networks' block in float64, and outputs and gradients with respect to it are compared. A cut is exact, so
each graph *is* its blocks one after the other: blocks that are equal functions make equal networks, and by the chain
rule equal gradients. What is measured are the blocks on these values. How errors of several blocks add up follows from
no such measurement, so the whole is compared as well, in its own precision. Where a block turns rounding into visible
differences, that block alone is run again, on values of less contrast.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, fx, nn

from bcos_fx.network import InputSpec
from bcos_fx.nn.functional import default_tolerance
from bcos_fx.tracing import own_modes
from bcos_fx.verification.conditioning import is_better, is_hidden_by_rounding, reduce_contrast
from bcos_fx.verification.cuts import Cut, block, find_cuts
from bcos_fx.verification.equivalence import Verification, conclude
from bcos_fx.verification.judging import Comparison, compare, differs, failed, not_tested
from bcos_fx.verification.original import NormalizedModel
from bcos_fx.verification.running import Case, Outcome, coarsest_precision, copy_to_device_of, list_storages, run_cases
from bcos_fx.verification.samples import CallInputs, extend, gather, jitter
from bcos_fx.verification.sensitivity import discount_all

WHOLE = "whole network"
"""Begins the name of the comparison that is not of a block."""


@dataclass(frozen=True)
class _Compared:
    """Rows of a comparison, and the original's output, or why it did not run."""

    rows: list[Comparison]
    output: tuple[Tensor, ...] = ()
    left_out: tuple[str, ...] = ()


def verify_blocks(
    original: fx.GraphModule,
    converted: fx.GraphModule,
    inputs: tuple[Tensor, ...],
    specs: Sequence[InputSpec],
    module: nn.Module,
    *,
    seed: int = 0,
) -> Verification:
    """Compare two graphs block by block in float64, and the whole in its own precision.

    Args:
        original: the graph as traced, in eval mode, in its own precision; left as it is.
        converted: the graph that claims to be equal to it, with the same names of nodes for the same values.
        inputs: what ``converted`` takes, (N, ...) each.
        specs: what its inputs take, which says how the original's follow from them.
        module: what was traced, for the same inputs as ``converted``: the whole is compared with it, on one sample.
        seed: of the noise against ties, of the projections of gradients, and of every random generator.

    Returns:
        A row for each block, one for its gradient, and one for the whole; ``node`` is the value after the first block
        that differs.
    """
    batch = gather(inputs)
    samples = max(batch.count, 2) if all(spec.samples == 0 for spec in specs) else 0
    # Against ties: at two equal pixels a max pool has no one gradient, and equal networks may give different ones.
    batch = jitter(extend(batch, samples, seed=seed), seed=seed)
    dtype = next((tensor.dtype for tensor in original.parameters()), torch.float32)
    cuts: list[Cut | None] = [None, *find_cuts(original, converted), None]
    values = tuple(x.to(dtype) if x.is_floating_point() else x for x in batch.tensors)
    rows: list[Comparison] = []
    left_out: list[str] = []
    node: str | None = None
    with own_modes():
        for number, (before, after) in enumerate(pairwise(cuts), start=1):
            reference: nn.Module = block(original, before, after)
            reference = NormalizedModel(reference, specs) if before is None else reference
            end = ", ".join(after or ("the output",))
            name = f"block {number} of {len(cuts) - 1}, to {end}"
            case = Case(name, _call(values), name, gradient=f"{name}: gradient")
            run = functools.partial(
                _compare, reference, block(converted, before, after), dtype=torch.float64, samples=samples, seed=seed
            )
            compared = _well_conditioned(run, case)
            rows += compared.rows
            left_out += compared.left_out
            node = node or (end if differs(compared.rows) else None)
            # Both networks' next block gets what the original computes here: errors do not add up over blocks.
            values = compared.output or _own_output(reference, values, dtype)
            # The float64 copies are part of reference cycles: left to the collector's own pace, several blocks' add up.
            gc.collect()
    blocks = conclude(tuple(rows), tuple(left_out), default_tolerance(torch.float64), torch.float64)
    compared = _compare_whole(module, converted, batch, values, samples, dtype, seed)
    whole = conclude(tuple(compared.rows), compared.left_out, default_tolerance(dtype), dtype)
    return replace(
        blocks,
        ok=blocks.ok and whole.ok,
        tested=blocks.tested and whole.tested,
        comparisons=blocks.comparisons + whole.comparisons,
        node=node,
        detail=f"{blocks.detail}; as a whole {whole.detail}",
        method="blocks",
    )


def _compare_whole(
    module: nn.Module,
    converted: nn.Module,
    batch: CallInputs,
    output: tuple[Tensor, ...],
    samples: int,
    dtype: torch.dtype,
    seed: int,
) -> _Compared:
    """Compare the networks as a whole, in their own precision: on one sample, or on all where that does not run."""
    name = f"{WHOLE} in {str(dtype).removeprefix('torch.')}"
    # One sample does not vary, so the spread is measured over all of them, on the output of the blocks.
    spread = _variation({"output": output[0]}, samples)
    run = functools.partial(
        _compare, module, converted, dtype=dtype, samples=samples, seed=seed, spread=spread, lean=True
    )
    if samples and all(map(batch.is_batched, batch.tensors)):
        alone = _well_conditioned(run, Case(f"{name}, one sample", batch.take(0, 1), name), batch)
        if not alone.left_out:
            return alone
    return _well_conditioned(run, Case(name, batch, name))


def _well_conditioned(run: Callable[[Case], _Compared], case: Case, batch: CallInputs | None = None) -> _Compared:
    """Run a case; where rounding hides what it could find, return what is found on inputs of less contrast.

    Args:
        run: compares two networks on a case.
        case: the first to be run; what the original answers to it is returned in any case.
        batch: takes the place of the case's inputs, before its contrast is reduced.
    """
    first = run(case)
    if not is_hidden_by_rounding(first.rows):
        return first
    name = f"{case.group}, a quarter of the contrast"
    gradient = f"{name}: gradient" if case.gradient else ""
    second = run(replace(case, name=name, batch=(batch or case.batch).map(reduce_contrast), gradient=gradient))
    return replace(second, output=first.output) if is_better(second.rows, first.rows) else first


def _compare(
    original: nn.Module,
    converted: nn.Module,
    case: Case,
    *,
    dtype: torch.dtype,
    samples: int,
    seed: int,
    spread: Mapping[str, float] | None = None,
    lean: bool = False,
) -> _Compared:
    """Run both on a copy each, and compare outputs, and gradients where the case asks for them.

    Args:
        original: the reference.
        converted: the other one.
        case: what to run.
        dtype: precision of the runs.
        samples: how many there are; 0 if they have no dimension.
        seed: of every random generator.
        spread: how much the outputs vary over samples, where the case is one sample and does not show it.
        lean: run over the networks' own parameters.
    """
    live = list_storages(original) | list_storages(converted)
    run = functools.partial(run_cases, dtype=dtype, apart_from=live, seed=seed, transform=None, lean=lean)
    reference = functools.partial(run, original, role="original network")
    (expected,) = reference([case])
    if expected.failure is not None:
        left_out = f"{case.name} (the original fails: {expected.failure})"
        return _Compared([not_tested(case.name)], left_out=(left_out,))
    (actual,) = run(converted, [case], role="converted network")
    one_sample = case.batch.count == 1
    variation = spread if spread is not None and one_sample else _variation(expected.values, samples)
    judge = functools.partial(_rows, case, expected, actual, variation)
    rows = judge(default_tolerance(dtype))
    if differs(rows):
        # A block may compute part of its values in float32 whatever it is given; the tolerance is then that of float32.
        passed = coarsest_precision(original, case, dtype=dtype, apart_from=live, seed=seed, transform=None)
        rows = judge(default_tolerance(passed))
    if differs(rows):
        rows = list(discount_all([case], rows, [expected], reference, dtype=dtype, seed=seed))
    return _Compared(rows, tuple(expected.values.values()))


def _own_output(module: nn.Module, values: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Run a block that does not run in float64 in the network's own precision."""
    with torch.no_grad():
        output = copy_to_device_of(_call(values), module, dtype=dtype).call(module)
    return output if isinstance(output, tuple) else (output,)


def _rows(
    case: Case, expected: Outcome, actual: Outcome, variation: Mapping[str, float], tolerance: float
) -> list[Comparison]:
    if actual.failure is not None:
        return [failed(case.name, expected.values)]
    ours, theirs = _telling(expected.values, actual.values, variation)
    rows = [
        compare(case.name, ours, theirs, variation=variation, tolerance=tolerance) if ours else not_tested(case.name)
    ]
    a, b = expected.gradient, actual.gradient
    if a is not None and b is not None and a.values:  # a gradient that failed has no values, so it differs
        rows.append(compare(case.gradient, a.values, b.values, variation=None, tolerance=tolerance))
    return rows


def _telling(
    expected: Mapping[str, Tensor], actual: Mapping[str, Tensor], variation: Mapping[str, float]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leave out what no sample changes and is the same to the last bit, such as a mask: it proves nothing."""
    silent = {
        place
        for place, value in expected.items()
        if variation[place] == 0 and place in actual and torch.equal(value, actual[place])
    }
    ours = {place: value for place, value in expected.items() if place not in silent}
    return ours, {place: value for place, value in actual.items() if place not in silent}


def _variation(values: Mapping[str, Tensor], samples: int) -> dict[str, float]:
    """Measure how much each value varies over the samples; where no dimension is theirs, its scale.

    A dimension may hold them several times over: windows of an image, say, are samples of their own inside.
    """
    variation: dict[str, float] = {}
    for place, value in values.items():
        wide = value.double().nan_to_num(0.0, posinf=0.0, neginf=0.0)
        dims = [dim for dim in range(min(value.dim(), 2)) if samples and value.shape[dim] % samples == 0]
        rows = wide.movedim(dims[0], 0).reshape(samples, -1) if dims else None
        spread = wide.abs() if rows is None else rows.amax(0) - rows.amin(0)
        variation[place] = float(spread.max()) if value.numel() else 0.0
    return variation


def _call(values: tuple[Tensor, ...]) -> CallInputs:
    return CallInputs(values, None, len(values[0]) if values[0].dim() else 1)
