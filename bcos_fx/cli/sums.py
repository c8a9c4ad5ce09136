"""The sums of explanations, as rows of data and as lines of text. Imports torch: load it inside commands."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from bcos_fx.cli.console import echo
from bcos_fx.escaping import amount
from bcos_fx.explanation.explanation import Explanation
from bcos_fx.explanation.joint import JointExplanation

_NAMED = 20


def row_of(parts: dict[str | None, Explanation], file: str) -> tuple[dict[str, Any], bool]:
    """Return the sums of one image, explained by one or several sources (None: main input), and whether they add up."""

    def numbers(values: Tensor) -> list[float]:
        return [float(value) for value in values.flatten()]

    sample = next(iter(parts.values()))
    # One source is a joint explanation of one part, so both cases have one sum.
    joint = JointExplanation({str(name): part for name, part in parts.items()})
    indices = [] if sample.target is None else [int(index) for index in sample.target.flatten()]
    residual, constants, output = (numbers(v) for v in (sample.residual, joint.constants.total(), sample.output))
    row: dict[str, Any] = {
        "file": file,
        "prediction": None if sample.prediction is None else int(sample.prediction[0]),
        "target": indices,
        "names": [sample.target_name(place) for place in range(len(output))],
        "output": output,
        "input": [o - c - r for o, c, r in zip(output, constants, residual, strict=True)],
        "constants": constants,
        "residual": residual,
        "verdict": joint.verdict,
    }
    # The main input is called the input; sources are called by the names that the user gave.
    if None not in parts:
        row["sources"] = {name: numbers(total) for name, total in joint.totals.items()}
    return row, joint.verdict != "incomplete"


def print_sums(rows: list[tuple[dict[str, Any], bool]], places: Iterable[Path], images: int) -> None:
    """Print the sums of the first images, and where the explanations were written."""
    for row, _ in rows[:_NAMED]:
        for index, value in enumerate(row["output"]):
            terms = row.get("sources", {"input": row["input"]})
            # Only the first term stands without a sign.
            totals = " ".join(
                f"{total[index]:{'+' * (place > 0)}.4g} {name}" for place, (name, total) in enumerate(terms.items())
            )
            residual = f"residual {row['residual'][index]:+.1e}"
            residual += "" if row["verdict"] == "complete" else f"  {row['verdict'].upper()}"
            sums = f"{totals} {row['constants'][index]:+.4g} constants"
            echo(f"{Path(row['file']).name}: {row['names'][index]} {value:.4g} = {sums} ({residual})")
    if len(rows) > _NAMED:
        echo(f"and {len(rows) - _NAMED} more")
    echo(f"Wrote {', '.join(map(str, places))}: {len(rows)} of {amount(images, 'image')} explained.")
