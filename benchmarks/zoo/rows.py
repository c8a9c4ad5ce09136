"""The file of a zoo's rows: JSON lines, which a run adds to and a later one goes on with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bcos_fx.errors import UsageError
from bcos_fx.files import appending
from benchmarks.zoo.examination import Row

_NUMBER, _TEXTS = (int, float), "a list of texts"
# What the tables read, by type; None is taken too, and so is the absence of any but the name.
_FIELDS: dict[str, Any] = {
    "name": str,
    "failure": str,
    "detail": str,
    "completeness": str,
    "train": str,
    "date": str,
    "breaks": _TEXTS,
    "guards": _TEXTS,
    "unknown": dict,
    "runs": dict,
    **dict.fromkeys(
        ("parameters", "nodes", "coverage", "error", "spread", "gap", "tolerance", "constants' share"), _NUMBER
    ),
    "seconds in all": _NUMBER,
}
# A field -> those that are read beside it.
_TOGETHER = {"gap": "tolerance", "runs": "guards", "certified": "completeness"}


def append_row(path: Path, row: Row) -> None:
    """Add a line to a file; what is left of a line that was cut short goes.

    Raises:
        UsageError: the file cannot be written.
    """
    with appending(path, "the row") as stream:
        stream.seek(0)
        whole = stream.read().rfind(b"\n") + 1
        stream.truncate(whole)
        stream.write(json.dumps(row).encode() + b"\n")


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines; none where there is no file. A last line cut short is passed over.

    Raises:
        UsageError: a line is not a row; says which.
    """
    if not path.exists():
        return
    # Behind the last line feed is nothing, or what a run was writing when it was killed: it is examined again.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        wrong = _wrong(row)
        if wrong:
            hint = "remove the line, and its network is examined again; or give another file for the rows"
            raise UsageError(f"this is no row of a zoo: {wrong}", where=f"{path}:{number}", hint=hint)
        yield row


def _wrong(row: Any) -> str:
    """Say what makes a line no row; empty for a row."""
    if not isinstance(row, dict) or not isinstance(row.get("name"), str):
        return "no JSON object with a name"
    for name, kind in _FIELDS.items():
        value = row.get(name)
        fits = _all_texts(value) if kind is _TEXTS else isinstance(value, kind) and not isinstance(value, bool)
        if value is not None and not fits:
            return f"{name!r} is a {type(value).__name__}"
        if name in ("unknown", "runs") and value is not None and not _all_of(value, int if name == "unknown" else str):
            return f"{name!r} holds something else"
    missing = [second for first, second in _TOGETHER.items() if row.get(first) is not None and row.get(second) is None]
    return f"{missing[0]!r} is missing" if missing else ""


def _all_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _all_of(values: dict[str, Any], kind: type) -> bool:
    return all(isinstance(value, kind) for value in values.values())
