"""Results in a file that grows line by line, so that a run which was cut off goes on where it was.

The first line says what the results are of; each further line is one result under its number. Numbers are written so
that they read back as the same ones, so a run in two parts gives what one run gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcos_fx.errors import UsageError
from bcos_fx.files import appending, check_target

_LONGEST = 60


class Journal:
    """Results by number, in memory and, where a path is given, in a file.

    Args:
        path: of a JSON-lines file, which is made or gone on with; None: nothing is written.
        header: what the results are of: model, data, settings. Plain data.

    Attributes:
        rows: number -> result, those of the file included.
        notes: what was found and mended.

    Raises:
        UsageError: the file holds results of something else, or is damaged elsewhere than at its end.
    """

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, json.loads(json.dumps(header))
        self.rows: dict[int, Any] = {}
        self.notes: list[str] = []
        if path is not None:
            self._open(path)

    def append(self, number: int, row: Any) -> None:
        """Add a result; when this returns it is on the disk."""
        self.rows[number] = row
        if self.path is not None:
            self._write(self.path, {"n": number, "row": row})

    def _open(self, path: Path) -> None:
        check_target(path)
        if path.exists():
            self._mend(path)
            self.rows = read_rows(path, self.header)
        if not path.exists() or not path.stat().st_size:
            self._write(path, self.header)

    def _mend(self, path: Path) -> None:
        """Cut off the line that was being written when the last run ended."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return
        with appending(path, "the results") as stream:
            stream.truncate(whole)
        self.notes.append(f"{path.name} ended in half a line, which was dropped: the last run was cut off there")

    @staticmethod
    def _write(path: Path, line: Any) -> None:
        with appending(path, "the results") as stream:
            stream.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def read_rows(path: Path, header: Mapping[str, Any]) -> dict[int, Any]:
    """Read the results of a journal; half a line at its end is passed over.

    Raises:
        UsageError: it holds results of something else than the header says, or a line is none of a journal.
    """
    *lines, _ = path.read_bytes().split(b"\n")
    if not lines:
        return {}
    found = _parsed(lines[0], path, 1)
    if found != header:
        raise UsageError(
            "the file holds results of something else, and going on would mix them",
            where=f"{path}: {'; '.join(_differences(found, header))}",
            hint="write to another place, or remove the file to begin anew",
        )
    rows: dict[int, Any] = {}
    for number, line in enumerate(lines[1:], start=2):
        row = _parsed(line, path, number)
        if not isinstance(row, dict) or not isinstance(row.get("n"), int) or "row" not in row:
            raise _damaged(path, number)
        rows[row["n"]] = row["row"]
    return rows


def is_journal(path: Path) -> bool:
    """Whether a file begins as the journals of an evaluation do."""
    with path.open("rb") as stream:
        return stream.readline().startswith(b'{"bcos-fx": ')


def _parsed(line: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number) from error


def _damaged(path: Path, number: int) -> UsageError:
    return UsageError(
        "the line holds no result: something else wrote into this file",
        where=f"{path}:{number}",
        hint="remove the line, and its result is computed again",
    )


def _differences(found: Any, wanted: Mapping[str, Any]) -> list[str]:
    """What the two headers say differently, by name."""
    if not isinstance(found, dict):
        return ["no journal of bcos-fx"]
    first, second = _flat(found), _flat(wanted)
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return [f"{name} is {_short(first.get(name))} there and {_short(second.get(name))} now" for name in names]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else text[:12] + "…"
