"""The proof that the preserving phases preserved the function."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, fx, nn

from bcos_fx.conversion.inputs import comparison_inputs
from bcos_fx.conversion.records import Preserved
from bcos_fx.errors import TraceError, VerificationError
from bcos_fx.network import InputSpec
from bcos_fx.report.collect import mark_origins
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.verification.blame import find_culprit
from bcos_fx.verification.blocks import WHOLE, verify_blocks
from bcos_fx.verification.conditioning import prove_well_conditioned
from bcos_fx.verification.equivalence import Verification, verify
from bcos_fx.verification.judging import differs
from bcos_fx.verification.original import EachAlone, NormalizedModel


def _sizes(stage: Preserved) -> tuple[()] | None:
    """Return which other sizes of inputs are tried: None for those that the verification chooses."""
    return () if stage.traced.trace.guards or stage.traced.conversion.whole else None


def _compared(
    stage: Preserved, converted: nn.Module, specs: Sequence[InputSpec], inputs: tuple[Tensor, ...]
) -> tuple[nn.Module, nn.Module, tuple[Tensor, ...]]:
    """Return what to compare, and the inputs; whole inputs one by one where samples are not the first dimension."""
    conversion = stage.traced.conversion
    call = stage.traced.example.call
    original = NormalizedModel(conversion.module, specs, output_key=conversion.output_key, call=call)
    if not conversion.whole:
        return original, converted, inputs
    return EachAlone(original), EachAlone(converted), tuple(x.unsqueeze(0) for x in inputs)


def prove(stage: Preserved) -> Verification:
    """Prove that the network so far is the original.

    Raises:
        VerificationError: it is not; names the rule that broke it, and the node.
        TraceError: the trace itself was not the original.
    """
    conversion = stage.traced.conversion
    conversion.begin("verifying")
    if stage.original is not None:
        return _prove_blocks(stage, stage.original)
    # As many samples as the batches hold: every further pass costs as much as a batch.
    original, converted, inputs = _compared(stage, stage.traced.graph_module, stage.specs, comparison_inputs(stage, 3))
    run = partial(verify, original, converted, batch_sizes=(1, 2), sizes=_sizes(stage), preserves="eval")
    if conversion.method == "float32":
        run = partial(run, dtype=torch.float32, gradients=False)
    result = dataclasses.replace(prove_well_conditioned(run, inputs), method=conversion.method)
    wrong = [row.name for row in result.comparisons if row.verdict == "different"]
    if stage.traced.trace.own_backward and wrong and all("gradient" in name for name in wrong):
        # The module's own backward pass is not the gradient of what it computes: the graph holds what it computes.
        result = prove_well_conditioned(partial(run, gradients=False), inputs)
    if differs(result.comparisons):
        raise _not_the_original(stage, result)
    return result


def _prove_blocks(stage: Preserved, original: fx.GraphModule) -> Verification:
    conversion = stage.traced.conversion
    converted, call = stage.traced.graph_module, stage.traced.example.call
    module = NormalizedModel(conversion.module, stage.specs, output_key=conversion.output_key, call=call)
    result = verify_blocks(original, converted, comparison_inputs(stage, 2), stage.specs, module)
    if conversion.verify is None:
        result = dataclasses.replace(result, method=f"blocks, for {conversion.size / 1e6:.0f} million parameters")
    wrong = [row for row in result.comparisons if row.verdict == "different"]
    # The blocks are equal where the rules kept the function; a difference of the whole alone is the trace's.
    if wrong and all(row.name.startswith(WHOLE) for row in wrong):
        raise _of_the_example_only(stage, result)
    if wrong:
        raise VerificationError(
            f"the rewritten network is not the original: {result.detail}",
            where=f"the block that computes {result.node}; rules applied to the network: "
            + ", ".join(dict.fromkeys(step.rule for step in stage.log.steps)),
            hint='verify="full" names the rule; leave that out, and report it as a bug if it is a shipped one',
        )
    return result


def _not_the_original(stage: Preserved, result: Verification) -> VerificationError:
    """Return the error that names the rule; raise another one if no rule is the cause."""
    conversion, inputs = stage.traced.conversion, comparison_inputs(stage, 2)

    def originals(given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(spec.original(x) for spec, x in zip(stage.specs, given, strict=True))

    def retrace() -> fx.GraphModule:
        graph_module = conversion.trace(stage.traced.inputs).graph_module
        mark_origins(GraphReader(graph_module, conversion.engine.ops, conversion.recipe.options))
        return graph_module

    _check_trace(stage, retrace(), originals(inputs))
    blame = find_culprit(retrace, conversion.engine, inputs, originals)
    where = None
    if blame is not None:
        where = f"rule {blame.rule!r} ({blame.origin}) at node {blame.node}"
        where += f", {blame.source}" if blame.source else ""
    return VerificationError(
        f"the rewritten network is not the original: {result.detail}",
        where=where,
        hint="leave that rule out, and report it as a bug if it is a shipped one",
    )


def _check_trace(stage: Preserved, graph_module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
    """Raise TraceError where tracing took something from the example, such as a batch size: no rule is at fault."""
    plain = [dataclasses.replace(spec, encoded=False) for spec in stage.specs]
    compared = _compared(stage, graph_module, plain, inputs)
    result = verify(*compared, batch_sizes=(1, 2), sizes=_sizes(stage), gradients=False)
    if differs(result.comparisons):
        whole = "; where the samples of a batch belong together, batch_axis=None converts them as one"
        raise _of_the_example_only(stage, result, whole)


def _of_the_example_only(stage: Preserved, result: Verification, further_hint: str = "") -> TraceError:
    """Return the error for a graph that is the module for inputs like the example's alone."""
    hint = "keep the number of samples, strides and the input's values out of Python's branches and numbers"
    return TraceError(
        f"the module's graph holds for inputs like the example only: {result.detail}",
        where="; ".join(str(guard.source) for guard in stage.traced.trace.guards) or None,
        hint=hint + further_hint,
    )
