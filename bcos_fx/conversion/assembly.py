"""The last stage: the graph becomes a network, with its report."""

from __future__ import annotations

from collections.abc import Sequence

from bcos_fx.conversion.records import Changed
from bcos_fx.example import recorded_statistics
from bcos_fx.network import BcosNetwork, Guard, Record
from bcos_fx.report import Report
from bcos_fx.report.collect import coverage, read_rows, removed_nodes, unknown_rows
from bcos_fx.report.model import Figures, RuleUse
from bcos_fx.verification.equivalence import Verification


def assembled(stage: Changed, verification: Verification | None, train: str) -> BcosNetwork:
    """Wrap the graph with everything that is known about it."""
    traced = stage.preserved.traced
    traced.reader.refresh()
    guards = tuple(Guard(guard.kind, repr(guard.value), guard.source) for guard in traced.trace.guards)
    report = _report(stage, guards, verification)
    record = Record(report, stage.preserved.specs, guards, report.train_difference, train)
    return BcosNetwork(traced.graph_module, record)


def _report(stage: Changed, guards: tuple[Guard, ...], verification: Verification | None) -> Report:
    traced, recipe = stage.preserved.traced, stage.preserved.traced.conversion.recipe
    rows = read_rows(traced.reader)
    rules = {rule.name: RuleUse(rule.phase, rule.preserves) for rule in recipe.rules}
    return Report(
        recipe=recipe.name,
        options=recipe.options.to_dict(),
        rule_hashes=recipe.hashes,
        rules={name: rules[name] for name in dict.fromkeys(step.rule for step in stage.log.steps)},
        before=traced.before,
        nodes=rows,
        removed=removed_nodes(stage.log.steps, traced.before, rows),
        near_misses=tuple(dict.fromkeys(stage.log.near_misses)),
        unknown=unknown_rows(traced.reader, rows),
        unused=traced.trace.unused,
        guards=tuple(map(str, guards)),
        train_difference=traced.trace.train_difference or _own_backward(traced.trace.own_backward, verification),
        inputs={spec.name: spec.described() for spec in stage.preserved.specs},
        coverage=coverage(traced.reader),
        notes=_notes(stage),
        figures=Figures(verification.to_dict() if verification is not None else None, stage.drift, stage.total),
    )


def _own_backward(lines: Sequence[str], verification: Verification | None) -> str | None:
    """Return where the module's own backward pass is, if the proof found its gradients to be others or has none."""
    if not lines or (verification and any("gradient" in row.name for row in verification.comparisons)):
        return None
    return f"a backward pass of its own, which is not the gradient of what it computes: {'; '.join(lines)}"


def _notes(stage: Changed) -> tuple[str, ...]:
    traced, conversion = stage.preserved.traced, stage.preserved.traced.conversion
    notes = list(traced.trace.notes)
    if len(stage.preserved.specs) > 1 and (main := traced.reader.flow.main):
        notes.append(f"layers on value paths were found for the input {main[0]!r}; factors by other inputs weight it")
    if conversion.module.training:
        notes.append("the module was in train mode; it was traced, and is returned, in eval mode")
    options, recorded = conversion.recipe.options, recorded_statistics(conversion.module)
    if any(step.rule == "image-input-encoded" for step in stage.log.steps):
        if not options.mean:
            notes.append(
                "mean and std were not given, so the network takes images as the original does, in [0, 1]; the 1 - x "
                "half of the first kernel has no effect of its own until it is trained, and colors mean nothing yet"
            )
        if recorded is not None:
            given = "taken" if recorded == (options.mean, options.std) else "NOT taken"
            numbers = " and ".join(", ".join(f"{value:g}" for value in part) for part in recorded)
            notes.append(f"the original records its normalization, which was {given}: mean and std are {numbers}")
    return tuple(notes)
