"""Whether two networks compute the same function, decided by running both.

A comparison is only worth what it could have found. A network that answers nearly the same to every input
(a random deep one often does) hides errors in that constant, so errors are judged against how much the output
*varies* over the test inputs as well as against its size, and where it hardly varies the verdict is "not
tested". Gradients are compared too: a detached branch leaves every output as it was.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from bcos_fx.display import Displayed
from bcos_fx.errors import BcosFxError, UsageError
from bcos_fx.nn.functional import default_tolerance
from bcos_fx.tracing.source import error_source
from bcos_fx.verification.divergence import first_divergence
from bcos_fx.verification.judging import ORDER, Comparison, compare, differs, failed, not_tested, spreads
from bcos_fx.verification.plain_values import fix_values, split_values
from bcos_fx.verification.running import (
    Case,
    Outcome,
    coarsest_precision,
    copy_to_device_of,
    isolated_copy,
    list_storages,
    run_cases,
    transform_first,
)
from bcos_fx.verification.samples import CallInputs, extend, gather, jitter, other_sizes, resize, synthetic_images
from bcos_fx.verification.sensitivity import discount_all


@dataclass(frozen=True, repr=False)
class Verification(Displayed):
    """The result of :func:`verify`; true in a boolean context when the networks are equal.

    Attributes:
        ok: at least one comparison was made and every one found the networks equal.
        tested: at least one comparison could have found a difference.
        error: worst relative error of all comparisons.
        tolerance: largest relative error that counts as equal.
        dtype: precision that both networks ran in.
        comparisons: one row per run.
        node: first diverging node, when both networks are graphs and they differ.
        detail: the outcome in one sentence.
        method: how the networks were run: ``full``, ``blocks`` or ``float32``, and why if that was not asked for.
    """

    ok: bool
    tested: bool
    error: float
    tolerance: float
    dtype: torch.dtype
    comparisons: tuple[Comparison, ...]
    node: str | None
    detail: str
    method: str = "full"

    def __bool__(self) -> bool:
        return self.ok

    def brief(self) -> list[str]:
        """Return the verdict in one sentence."""
        return [f"Verification: {self.detail}"]

    def to_text(self) -> str:
        """Return the verdict, and a line for each run."""
        rows = [f"  {row.name}: {row.verdict}, relative error {row.relative:.1e}" for row in self.comparisons]
        return "\n".join([*self.brief(), *rows])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; numbers that are not finite become None."""
        return {
            **_finite_or_none({"ok": self.ok, "tested": self.tested, "error": self.error, "tolerance": self.tolerance}),
            "dtype": str(self.dtype).removeprefix("torch."),
            "comparisons": [_finite_or_none(asdict(row)) for row in self.comparisons],
            "node": self.node,
            "detail": self.detail,
            "method": self.method,
        }


def _finite_or_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def verify(
    original: nn.Module,
    converted: nn.Module,
    inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    tolerance: float | None = None,
    train: bool | None = None,
    gradients: bool = True,
    batch_sizes: Sequence[int] = (1, 2, 5),
    sizes: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    transform: Callable[[Tensor], Tensor] | None = None,
    preserves: Literal["always", "eval"] = "eval",
) -> Verification:
    """Compare two networks on the same inputs: outputs and input gradients, in several batch and image sizes.

    Each network runs alone, on a copy; the caller's modules, tensors, gradients and random states stay as
    they are. Gradients are those of a fixed random projection of the output with respect to ``inputs``, at one of the
    batches, into which a thousandth of noise is blended: pixels that tie have no one gradient.

    Args:
        original: the reference.
        converted: the network that claims to be equal to it.
        inputs: what ``converted`` takes: a tensor (N, ...), positional or keyword arguments. Numbers,
            flags and words among them are passed as they are, and not to a converted network, which has taken them in.
            All samples are used; where there are too few for the batch sizes, shuffled ones are added. None: made-up
            images in [0, 1) of ``converted.input_shape``, a tuple without the batch.
        dtype: precision that both networks run in, torch.float64 or torch.float32. Rounding may switch
            single rectifiers in float32, so gradients of large networks are best compared in float64.
        tolerance: largest error, relative to the smaller of the output's scale and its spread over the
            samples, that counts as equal; 1e-9 in float64 and 1e-4 in float32 when None, by the coarsest precision
            that the original's values pass (attention may compute its softmax in float32 whatever it is given).
            Gradients are judged against their scale alone: a linear network's do not vary.
        train: compare in train mode too, from the same seed; None: when ``preserves`` is "always".
        gradients: compare input gradients.
        batch_sizes: batches to run; those that the original does not take are left out.
        sizes: spatial sizes to run besides that of the inputs. None: two others, where there is one image input
            and the original takes them; a converted network may refuse these with a BcosFxError.
        seed: of made-up inputs, of the projection, and of every random generator before each run.
        transform: maps the first input tensor to what ``original`` expects, such as (x - mean) / std. None:
            ``converted.original_input`` if there is one, else the identity.
        preserves: what the rewrite claims: equal in eval mode, or "always", in train mode as well.

    Raises:
        UsageError: an argument makes no sense, the original cannot run on the inputs, or a network cannot be
            copied apart from the caller's.
    """
    for role, network in (("original", original), ("converted", converted)):
        if not isinstance(network, nn.Module):
            raise UsageError(f"the {role} network is a {type(network).__name__}", hint="give two torch.nn.Modules")
    limit = _tolerance(dtype, tolerance, batch_sizes)
    transform = transform if transform is not None else getattr(converted, "original_input", None)
    needed = sum(batch_sizes)
    inputs, values = split_values(inputs)
    original, converted = fix_values(original, values), fix_values(converted, values)
    given = _made_up(original, converted, needed, seed=seed) if inputs is None else gather(inputs)
    batch = extend(given, needed, seed=seed)
    cases = _eval_cases(batch, batch_sizes) + _size_cases(batch, sizes)
    if gradients:
        cases = _with_gradient(cases, seed=seed)
    if train if train is not None else preserves == "always":
        cases += _train_cases(batch, max(batch_sizes), gradients=gradients, seed=seed)
    live = list_storages(original) | list_storages(converted)

    run = functools.partial(run_cases, dtype=dtype, apart_from=live, seed=seed)
    reference = functools.partial(run, original, role="original network", transform=transform)
    expected = reference(cases)
    # A network that names float32 raises in float64. Reading float64 where it says float32 makes it run, and the run in
    # float32 at the end shows what it computes as it stands.
    named = dtype == torch.float64 and _all_failed(cases, expected)
    if named:
        reference = functools.partial(reference, widened=True)
        wide = reference(cases)
        named = not _all_failed(cases, wide)
        expected = wide if named else expected
    _check_original(cases, expected, batch, sizes)
    actual = run(converted, cases, role="converted network", transform=None)
    comparisons, left_out = _compare_all(cases, expected, actual, limit)
    # Only where they differ, as it takes another run: values that pass through float32 allow its tolerance.
    if tolerance is None and not named and differs(comparisons):
        passed = coarsest_precision(original, cases[0], dtype=dtype, apart_from=live, seed=seed, transform=transform)
        limit = default_tolerance(passed)
        comparisons, left_out = _compare_all(cases, expected, actual, limit)
    if differs(comparisons):
        # Last, and only for differences: does rounding alone move the original as much?
        comparisons = discount_all(cases, comparisons, expected, reference, dtype=dtype, seed=seed)
    result = conclude(comparisons, left_out, limit, dtype)
    worst = _worst(comparisons)
    if worst.verdict == "different":
        guilty = next(case.batch for case in cases if worst.name in (case.name, case.gradient))
        return _blame(result, original, converted, guilty, transform)
    if not named:
        return result
    narrow = verify(
        original,
        converted,
        inputs,
        dtype=torch.float32,
        gradients=False,
        batch_sizes=batch_sizes,
        sizes=sizes,
        seed=seed,
        transform=transform,
    )
    return _in_both(result, narrow)


def _all_failed(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> bool:
    return all(o.failure is not None for case, o in zip(cases, outcomes, strict=True) if case.group == "eval")


def _in_both(wide: Verification, narrow: Verification) -> Verification:
    """Join the proof in float64 of a network that names float32 with the one in float32, as it stands."""
    rows = tuple(replace(row, name=f"float32: {row.name}") for row in narrow.comparisons)
    detail = f"{wide.detail}; the original names float32, read as float64 there; in float32 itself {narrow.detail}"
    node = narrow.node if not narrow.ok else None
    ok, tested = wide.ok and narrow.ok, wide.tested and narrow.tested
    return replace(wide, ok=ok, tested=tested, comparisons=wide.comparisons + rows, node=node, detail=detail)


def _tolerance(dtype: torch.dtype, tolerance: float | None, batch_sizes: Sequence[int]) -> float:
    if dtype not in (torch.float64, torch.float32):
        raise UsageError(f"cannot compare in {dtype}", hint="dtype=torch.float64 or torch.float32")
    tolerance = default_tolerance(dtype) if tolerance is None else tolerance
    if not 0 < tolerance < 1:
        raise UsageError(f"tolerance {tolerance} would judge nothing", hint="a number between 0 and 1, such as 1e-9")
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"batch_sizes are {tuple(batch_sizes)}", hint="one or more sizes of at least 1")
    return tolerance


def _made_up(original: nn.Module, converted: nn.Module, count: int, *, seed: int) -> CallInputs:
    shape = getattr(converted, "input_shape", None) or getattr(original, "input_shape", None)
    if shape is None:
        raise UsageError(
            "neither network says what inputs it takes",
            hint="pass inputs=, a tensor (N, ...) like those that the network is used on",
        )
    return synthetic_images(tuple(shape), count, seed=seed)


def _eval_cases(batch: CallInputs, batch_sizes: Sequence[int]) -> list[Case]:
    """Cut the samples into one batch of each size, and what is left into batches of the largest."""
    cases, start = [], 0
    for size in batch_sizes:
        cases.append(Case(f"eval, batch {size}", batch.take(start, start + size), "eval"))
        start += size
    while start < batch.count:
        stop = min(start + max(batch_sizes), batch.count)
        rest = f"sample {stop}" if stop == start + 1 else f"samples {start + 1} to {stop}"
        cases.append(Case(f"eval, {rest}", batch.take(start, stop), "eval"))
        start = stop
    return cases


def _with_gradient(cases: Sequence[Case], *, seed: int) -> list[Case]:
    """Ask the first batch of several samples, if there is one, for the gradient of its outputs too."""
    chosen = next((case for case in cases if case.group == "eval" and case.batch.count > 1), cases[0])
    moved = replace(chosen, batch=jitter(chosen.batch, seed=seed), gradient="input gradient")
    return [moved if case is chosen else case for case in cases]


def _size_cases(batch: CallInputs, sizes: Sequence[Sequence[int]] | None) -> list[Case]:
    if sizes and (batch.image is None or any(len(size) != batch.image.dim() - 2 for size in sizes)):
        raise UsageError(
            f"sizes {[tuple(size) for size in sizes]} do not fit inputs of {batch.describe()}",
            hint="sizes are spatial, such as (192, 192), and need one image input (N, C, ...)",
        )
    chosen = list(other_sizes(batch)) if sizes is None else [tuple(size) for size in sizes]
    few, cases = batch.take(0, min(2, batch.count)), []
    for size in chosen:
        name = "size " + "x".join(str(side) for side in size)
        cases.append(Case(name, resize(few, size), name, optional=sizes is None))
    return cases


def _train_cases(batch: CallInputs, size: int, *, gradients: bool, seed: int) -> list[Case]:
    """Train mode needs more than one sample; the run in eval mode after it sees the statistics it left."""
    chosen = batch.take(0, max(size, 2))
    noisy, gradient = (jitter(chosen, seed=seed), "train, input gradient") if gradients else (chosen, "")
    first = Case(f"train, seed {seed}", noisy, "train", training=True, gradient=gradient)
    return [first, Case("eval after train", chosen, "eval after train")]


def _check_original(
    cases: Sequence[Case], outcomes: Sequence[Outcome], batch: CallInputs, sizes: Sequence[Sequence[int]] | None
) -> None:
    """Tell a caller whose inputs do not suit the original, rather than call the networks different."""
    runs = list(zip(cases, outcomes, strict=True))
    plain = [(case, outcome) for case, outcome in runs if case.group == "eval"]
    failed = [run for run in runs if run[0].group.startswith("size") and sizes is not None and run[1].failure]
    if all(outcome.failure for _, outcome in plain):
        failed = plain
    if failed:
        case, failure = failed[0][0], failed[0][1].failure
        integers = not any(tensor.is_floating_point() for tensor in batch.tensors)
        hint = (
            "give inputs of the shape that it takes, and batch_sizes= if it takes only some; where the first dimension "
            "does not hold the samples, or those of a batch belong together, bcosify takes batch_axis="
        )
        source = None if failure is None else error_source(failure)
        where = f"inputs {case.batch.describe()}"
        raise UsageError(
            f"the original network cannot run: {failure}",
            where=where if source is None else f"{source}; {where}",
            hint="images must be floating-point: images.float() / 255" if integers else hint,
        ) from failure
    if not any(outcome.values for _, outcome in plain):
        raise UsageError("the original network returns no tensors", hint="wrap it so that forward returns its output")


def _compare_all(
    cases: Sequence[Case], expected: Sequence[Outcome], actual: Sequence[Outcome], tolerance: float
) -> tuple[tuple[Comparison, ...], tuple[str, ...]]:
    """Compare outcome by outcome; name the runs that were left out, with the reason."""
    rows, left_out = [], []
    for case, *outcomes in zip(cases, expected, actual, strict=True):
        group = [(c.batch.count, o.values) for c, o in zip(cases, expected, strict=True) if c.group == case.group]
        ours, theirs = map(case.results, outcomes)
        for name, a, b in zip(ours, ours.values(), theirs.values(), strict=True):
            outputs = name == case.name
            if a.failure is not None:
                left_out.append(f"{name} (the original fails: {a.failure})")
                # Batch sizes that the original refuses prove nothing, nor do they leave a doubt.
                if not case.optional and not (outputs and case.group == "eval"):
                    rows.append(not_tested(name))
            elif isinstance(b.failure, BcosFxError) and case.optional:
                left_out.append(f"{name} (refused: {b.failure.what})")
            elif b.failure is not None:
                left_out.append(f"{name} (the converted network fails: {b.failure})")
                rows.append(failed(name, a.values))
            elif a.values or b.values:
                variation = spreads(group) if outputs else None
                rows.append(compare(name, a.values, b.values, variation=variation, tolerance=tolerance))
    return tuple(rows), tuple(left_out)


def _worst(rows: Sequence[Comparison]) -> Comparison:
    """Pick the row that decides: a different one before one that was not tested before an equal one."""
    return max(rows, key=lambda row: (ORDER[row.verdict], row.relative))


def conclude(
    rows: tuple[Comparison, ...], left_out: tuple[str, ...], tolerance: float, dtype: torch.dtype
) -> Verification:
    """Return the verdict on all comparisons, which is that of the worst, and name what was left out."""
    tested = [row for row in rows if row.verdict != "not tested"]
    worst = _worst(rows)
    if worst.verdict == "not tested" and worst.sensitivity:
        reason = (
            f"in {worst.name!r} the networks differ by {worst.error:.2g} at a scale of {worst.scale:.2g}, and the "
            f"original differs from itself by {worst.sensitivity:.2g} when inputs and weights are rounded otherwise"
        )
    elif worst.verdict == "not tested":
        reason = f"in {worst.name!r} the output varies by {worst.spread:.2g} at a scale of {worst.scale:.2g}"
    else:
        reason = f"worst relative error {worst.relative:.2g} (tolerance {tolerance:.2g}) in {worst.name!r}"
    detail = "; ".join([f"{worst.verdict}: {reason}", *(f"left out: {item}" for item in left_out)])
    error = max((row.relative for row in tested), default=math.inf)
    return Verification(worst.verdict == "equal", bool(tested), error, tolerance, dtype, rows, None, detail)


def _blame(
    result: Verification,
    original: nn.Module,
    converted: nn.Module,
    batch: CallInputs,
    transform: Callable[[Tensor], Tensor] | None,
) -> Verification:
    """Name the first node that differs in eval mode, if both networks are graphs and there is one."""
    if not (isinstance(original, fx.GraphModule) and isinstance(converted, fx.GraphModule)):
        return result
    live = list_storages(original) | list_storages(converted)
    with torch.inference_mode(False):
        reference = isolated_copy(original, dtype=result.dtype, apart_from=live, role="original graph")
        twin = isolated_copy(converted, dtype=result.dtype, apart_from=live, role="converted graph")
        given = transform_first(copy_to_device_of(batch, reference, dtype=result.dtype), transform)
        inputs = copy_to_device_of(batch, twin, dtype=result.dtype)
        divergence = first_divergence(reference, twin, given.arguments, inputs.arguments, tolerance=result.tolerance)
    if divergence is None:
        return result
    place = f"; first differs at node {divergence.node!r}" + (f" ({divergence.source})" if divergence.source else "")
    return replace(result, node=divergence.node, detail=result.detail + place)
