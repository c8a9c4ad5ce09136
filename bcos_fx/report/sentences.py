"""What a report says in sentences: what a network is for, what to do next, and how far it is from its original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bcos_fx.escaping import amount
from bcos_fx.report.model import Calibration, Findings

# Above this change of the output, relative to its size, a network is no longer the one that was trained.
_LARGE_CHANGE = 0.1
RANDOM_WEIGHTS = "RANDOM WEIGHTS"
"""What the note on a network whose weights are random begins with."""
TRAINED = "Its weights were fine-tuned since, so it computes another function than the original did."
_TRAIN = "fine-tune it on the original's training data (bcos_fx.finetune, bcos-fx finetune)"
_EQUIVALENT = "to explain the original as it is, convert it by the recipe equivalent"


def drift_sentence(report: Findings) -> str:
    """Say in one sentence how far the changing rules moved the output."""
    total = report.figures.total_drift
    if report.figures.trained:
        return TRAINED
    if total is None:
        if report.figures.verification is None:
            return "How far the output moved was not measured."
        return "No rule changed the function: the network computes what the original did."
    same = "" if total.agreement is None else f"; the highest class stayed the highest on {total.agreement:.0%} of them"
    return f"The changing rules moved the output by {percent(total.change)} of its size on the test inputs{same}."


def opening(report: Findings) -> list[tuple[str, str]]:
    """Return what a user has to know first, as rows of label and sentence: what the network is for, and what next."""
    figures = report.figures
    random = [note for note in report.notes if note.startswith(RANDOM_WEIGHTS)]
    if figures.trained:
        rows = ("using it as it was trained: it was fine-tuned after its conversion, and is no longer the original",
                "explain it: bcos_fx.explain(model, images), bcos-fx explain")  # fmt: skip
    elif figures.calibration is not None:
        rows = ("fine-tuning: it was calibrated, which is not training, and is no longer the original", _TRAIN)
    elif _changed(report):
        rows = ("fine-tuning: rules changed what the network computes, so it answers at chance until it is trained",
                f"calibrate it (bcos_fx.calibrate, bcos-fx calibrate), then {_TRAIN}; {_EQUIVALENT}")  # fmt: skip
    else:
        rows = ("explaining the original as it is: no rule changed what it computes" if figures.total_drift is None else
                "explaining it as it is: rules changed its output a little",
                "explain it: bcos_fx.explain(model, images), bcos-fx explain")  # fmt: skip
    if figures.explainable is not None and figures.explainable.output is None:
        rows = ("computing: its output cannot be explained",
                "explain a layer before what breaks it (output=, --output), or leave that operation out")  # fmt: skip
    facts = [("warning", note) for note in random] + [("made for", rows[0]), ("next", rows[1])]
    return facts + ([("explainable", str(figures.explainable))] if figures.explainable is not None else [])


def _changed(report: Findings) -> bool:
    """Return whether the network no longer computes what the original did, as far as is known."""
    total = report.figures.total_drift
    if total is not None:
        return not total.change <= _LARGE_CHANGE  # a change that is not a number counts as large
    return report.figures.verification is None and _at_risk(report)


def next_step(report: Findings) -> str | None:
    """Return what has to be done before the network can be used, or None where nothing has."""
    if report.figures.trained:
        return None
    if report.figures.calibration is not None:
        return (
            "Calibration is not training: fine-tune the network on the original's training data before you rely on "
            "it, and before you believe what it explains."
        )
    total = report.figures.total_drift
    at_risk = _at_risk(report)
    if total is None and report.figures.verification is None and at_risk:
        return (
            "Raising B and removing biases change the function: expect a network at chance until it is fine-tuned on "
            "the original's training data."
        )
    if not _changed(report):
        return None
    if at_risk:
        return (
            "This network answers at chance until it is calibrated and fine-tuned: raising B and removing biases took "
            "its activations out of the range that it was trained in. Calibrate it on a few hundred images without "
            "labels (bcos-fx calibrate, bcos_fx.calibrate), then fine-tune it on the original's training data before "
            "you use it, and before you believe what it explains."
        )
    return "Its outputs are no longer the original's: fine-tune it on the original's training data before you use it."


def verdict(report: Findings) -> str:
    """Say in one phrase what the verification found: equal, different, not tested or not verified."""
    verification = report.figures.verification
    return "not verified" if verification is None else overall(verification)


def overall(verification: Mapping[str, Any]) -> str:
    """Say in one phrase what a verification, as plain data, found: equal, different or not tested."""
    if verification["ok"]:
        return "equal"
    # One run that could have found a difference and did not is not a proof while another proves nothing.
    return "different" if any(row["verdict"] == "different" for row in verification["comparisons"]) else "not tested"


def calibration_sentence(calibration: Calibration) -> str:
    """Say in one sentence how well the network answered before and after its calibration."""
    sentence = f"Calibrated on {amount(calibration.images, 'image')}, without labels"
    sentence += f"; gains matched to the {calibration.reference}" if calibration.reference == "original" else ""
    before, after = calibration.before, calibration.after
    if before is not None and after is not None:
        pairs = (
            ("the highest class is the original's on", before.agreement, after.agreement),
            ("it is the label's on", before.accuracy, after.accuracy),
        )
        sentence += "".join(
            f"; {clause} {now:.1%} of them, {was:.1%} before"
            for clause, was, now in pairs
            if was is not None and now is not None
        )
    return sentence + "."


def verdict_line(report: Findings) -> str:
    """Return what the verification found, with its figures, and whether it still holds of the weights."""
    verification = report.figures.verification
    if verification is None:
        return verdict(report)
    line = f"{verdict(report)}, worst relative error {scientific(verification['error'])} in {verification['dtype']}"
    if report.figures.total_drift is not None:
        line += ", before the rules that change the function"
    return line + (", when it was converted: its weights were trained since" if report.figures.trained else "")


def _at_risk(report: Findings) -> bool:
    """Return whether an option is chosen that changes what most networks compute."""
    b = report.options["b"]
    raised = any(value > 1 for value in (b.values() if isinstance(b, Mapping) else (b,)))
    return raised or report.options["bias"] != "keep"


def percent(share: float) -> str:
    """Return a share as text."""
    return f"{share:.1%}" if share < 10 else f"{share:.3g} times"


def scientific(value: float | None) -> str:
    """Return a small number as text; None stands for one that is not finite."""
    return "not finite" if value is None else f"{value:.1e}" if value else "0"
