"""Results in a file that grows line by line, so that an interrupted run resumes.

The first line describes what the results are of; each further line is one result under its number, with a checksum of
both, so that a result which was altered, or written for something else, is refused. Numbers are written so that they
read back as the same ones, so a run in two parts gives what one run gives.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcos_fx.errors import UsageError
from bcos_fx.files import appending, check_target
from bcos_fx.identity import differences, digest_of_data

_LISTED = 6


class ResultLog:
    """Results by number, in memory and, where a path is given, in a file.

    Args:
        path: of a JSON-lines file, which is created or continued; None: nothing is written.
        header: what the results are of: model, data, settings. Plain data.

    Attributes:
        rows: number -> result, those of the file included.
        notes: what was repaired in the file.

    Raises:
        UsageError: the file holds results of something else, or is damaged elsewhere than at its end.
    """

    def __init__(self, path: Path | None, header: Mapping[str, object]) -> None:
        # As it reads back from the file: tuples become lists, so that headers can be compared.
        self.path, self.header = path, json.loads(json.dumps(header))
        self._seal = digest_of_data(self.header)
        self.rows: dict[int, Any] = {}
        self.notes: list[str] = []
        if path is not None:
            check_target(path)
            if path.exists():
                self.rows = read_rows(path, self.header)
                self._drop_half_a_line(path)

    def append(self, number: int, row: object) -> None:
        """Add a result; when this returns it is on the disk. The first one brings the header with it."""
        self.rows[number] = row
        if self.path is not None:
            # NaN is not JSON: another reader would refuse the whole line.
            plain = json.loads(json.dumps(row, allow_nan=False))
            if not self.path.exists() or not self.path.stat().st_size:
                self._write(self.path, self.header)
            self._write(self.path, {"n": number, "row": plain, "sum": digest_of_data([self._seal, number, plain])})

    def _drop_half_a_line(self, path: Path) -> None:
        """Cut off the line that was being written when the last run ended."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole == len(content):
            return
        with appending(path, "the results") as stream:
            stream.truncate(whole)
        self.notes.append(f"{path.name} ended in half a line, which was dropped: the last run was cut off there")

    @staticmethod
    def _write(path: Path, line: object) -> None:
        with appending(path, "the results") as stream:
            stream.write(json.dumps(line, allow_nan=False).encode() + b"\n")


def read_rows(path: Path, header: Mapping[str, object]) -> dict[int, Any]:
    """Read the results of a log; half a line at its end is passed over.

    Raises:
        UsageError: it holds results of something else than the header describes, or a line is not a result.
    """
    *lines, rest = _read_log(path).split(b"\n")
    # Cut off within the header: there is no result yet, and the file may begin again.
    if not lines and json.dumps(header).encode().startswith(rest):
        return {}
    written = _parsed(lines[0] if lines else rest, path, 1)
    if written != header:
        raise UsageError(
            "the file holds results of something else, and going on would mix them",
            where=f"{path}: {'; '.join(differences(written, header)[:_LISTED])}",
            hint="write to another place, or remove the file to begin again",
        )
    seal, rows = digest_of_data(header), dict[int, Any]()
    for number, line in enumerate(lines[1:], start=2):
        row = _parsed(line, path, number)
        if not isinstance(row, dict) or row.keys() != {"n", "row", "sum"} or type(row["n"]) is not int:
            raise _damaged(path, number)
        if row["sum"] != digest_of_data([seal, row["n"], row["row"]]):
            raise _damaged(path, number, "the line is not as it was written: its checksum is another")
        rows[row["n"]] = row["row"]
    return rows


def _read_log(path: Path) -> bytes:
    try:
        if path.is_file():
            return path.read_bytes()
        reason = "it is not a regular file"
    except OSError as error:
        reason = str(error.strerror)
    raise UsageError(f"the results cannot be read: {reason}", where=str(path), hint="write to another place")


def is_result_log(path: Path) -> bool:
    """Return whether a file begins as the result logs of an evaluation do."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.readline().startswith(b'{"bcos-fx": ')


def _parsed(line: bytes, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, number) from error


def _damaged(path: Path, number: int, problem: str = "") -> UsageError:
    return UsageError(
        problem or "the line holds no result: something else wrote into this file",
        where=f"{path}:{number}",
        hint="remove the line, and its result is computed again",
    )
