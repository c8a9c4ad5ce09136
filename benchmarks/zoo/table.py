"""The table: what works, what does not, and why, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.zoo.examination import Row

FLOAT64 = 1e-9
"""Largest relative gap of contributions that is let pass in float64."""

_LONGEST = 600

_QUESTIONS: dict[str, Callable[[Row], bool]] = {
    "traced whole": lambda row: row.get("opaque share") == 0,
    "equal": lambda row: bool(row.get("equal")),
    "certified": lambda row: bool(row.get("certified")),
    "complete": lambda row: row.get("completeness") == "complete",
    "saved and loaded": lambda row: bool(row.get("saved")),
}


def passed(row: Row) -> bool:
    """Whether everything that is asked of a network was found to be so."""
    return all(holds(row) for holds in _QUESTIONS.values())


def cause(row: Row) -> str:
    """Why a network did not pass, in one line; empty where it did."""
    if row.get("failure"):
        return _line(row["failure"])
    if not row.get("equal"):
        return _line(row.get("detail") or "not verified")
    if row.get("breaks"):
        return _line(row["breaks"][0])
    missing = [name for name, holds in _QUESTIONS.items() if not holds(row)]
    return "" if not missing else f"not {missing[0]}" + (f": {row['completeness']}" if "complete" in missing else "")


def _line(text: str) -> str:
    line = " ".join(text.split())
    return (line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ...").replace("|", "\\|")


def coverage_page(rows: Sequence[Row], title: str, setting: Sequence[str]) -> str:
    """Return the page: totals, every failure with its cause, and all figures."""
    parts = [f"# {title}", "\n".join(f"- {line}" for line in setting), "## Totals", totals(rows)]
    failed = [row for row in rows if not passed(row)]
    if failed:
        parts += ["## What does not work, and why", _table(("network", "why"), [(r["name"], cause(r)) for r in failed])]
    parts += ["## Every network", _LEGEND, _table(_COLUMNS, [_cells(row) for row in rows])]
    return "\n\n".join(parts) + "\n"


def versions(rows: Sequence[Row]) -> str:
    """Name the libraries that the networks come from, with their versions."""
    packages = {
        "torchvision": "torchvision",
        "timm": "timm",
        "transformers": "transformers",
        "open_clip": "open_clip_torch",
    }
    used = dict.fromkeys(row["name"].partition(":")[0] for row in rows)
    return "".join(f"{packages[name]} {version(packages[name])}, " for name in used if name in packages)


def dates(rows: Sequence[Row]) -> str:
    """Say when networks were examined: rows of one file may be of several days, and so of several states of code."""
    known = sorted({row["date"] for row in rows if "date" in row})
    return " to ".join(dict.fromkeys([known[0], known[-1]])) if known else "an unknown day"


def totals(rows: Sequence[Row]) -> str:
    """Return the counts of networks that each question was answered well for, by library."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["name"].partition(":")[0], []).append(row)
    lines = [
        (name, str(len(group)), *(_share(group, holds) for holds in (*_QUESTIONS.values(), passed)))
        for name, group in groups.items()
    ]
    return _table(("library", "networks", *_QUESTIONS, "all of these"), lines)


def _share(rows: Sequence[Row], holds: Callable[[Row], bool]) -> str:
    count = sum(map(holds, rows))
    return f"{count} ({count / len(rows):.0%})"


_LEGEND = """\
- *parameters*: in millions. *nodes*: of the traced graph.
- *B-cos*: share of the linear and convolution parameters on value paths that are in B-cos layers.
- *unknown*: operations that the vocabulary does not know.
- *error*: of the equivalence proof, relative, float64.
- *spread*: how much the output varies over the inputs, in units of its size.
- *sizes*: whether other image sizes were equal, refused (the graph holds for one size), or are not taken by the
  original either.
- *train*: whether the train graph is the eval graph.
- *certified*: whether the network is dynamic linear.
- *gap*: of the completeness check, relative, float64, or marked where the network itself goes through float32 (the
  tolerance is 1e-9, or 1e-4 there).
- *constants*: their share in the output.
- *seconds*: in all."""
_COLUMNS = (
    *("network", "parameters", "nodes", "B-cos", "unknown", "error", "spread", "sizes", "train"),
    *("certified", "gap", "constants", "seconds"),
)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["name"],
        _number(row, "parameters", lambda value: f"{value / 1e6:.1f}"),
        _number(row, "nodes", str),
        _number(row, "coverage", lambda value: f"{value:.0%}"),
        str(sum(row["unknown"].values())) if "unknown" in row else "",
        _number(row, "error", lambda value: f"{value:.0e}"),
        _number(row, "spread", lambda value: f"{value:.2g}"),
        _sizes(row),
        "" if "train" not in row else "same" if row["train"] == "as in eval" else "other",
        "" if "certified" not in row else "yes" if row["certified"] else "no",
        _number(row, "gap", lambda value: f"{value:.0e}" + (" (float32)" if row["tolerance"] > FLOAT64 else "")),
        _number(row, "constants' share", lambda value: f"{value:.0%}"),
        _number(row, "seconds in all", lambda value: f"{value:.0f}"),
    )


def _number(row: Row, name: str, form: Callable[[Any], str]) -> str:
    return "" if row.get(name) is None else form(row[name])


def _sizes(row: Row) -> str:
    if "runs" not in row:
        return ""
    found = {verdict for name, verdict in row["runs"].items() if name.startswith("size")}
    return ", ".join(sorted(found)) or ("refused" if row["guards"] else "its own alone")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(cells) + " |" for cells in rows])
