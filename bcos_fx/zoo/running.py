"""Runs examinations, one process per network, within limits; every row is kept as soon as it is there.

A process of its own keeps what other people's code does (leaks, caches, patched functions, crashes) from the next
network, and can be ended when it takes too long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcos_fx.errors import UsageError

Row = dict[str, Any]

_LOOK = 0.5


@dataclass(frozen=True)
class Limits:
    """What one network may take.

    Attributes:
        seconds: of wall time.
        gibibytes: of resident memory; enforced where the system tells it under /proc.
    """

    seconds: float = 600
    gibibytes: float = 10


def examine_all(
    names: Sequence[str],
    out: Path,
    *,
    limits: Limits | None = None,
    side: int | None = None,
    workers: int = 1,
    note: Callable[[Row], None] | None = None,
    known: Callable[[int], None] | None = None,
) -> list[Row]:
    """Examine networks, and append a row for each to a file of JSON lines.

    Args:
        names: of the networks, as :func:`bcos_fx.checkpoint.build_architecture` takes them.
        out: the file. Networks that it has a row of already are not examined again.
        limits: for each network.
        side: of the images, in pixels, where a network takes that; None: its own.
        workers: processes at a time.
        note: called with each new row, one at a time.
        known: called with the number of networks that the file has a row of already.

    Returns:
        The rows in the order of ``names``, those read from the file too.

    Raises:
        UsageError: the file holds something else, or its folder is not there.
        OSError: it cannot be read or written.
    """
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {str(out.parent)!r} for the rows", hint="make it first")
    rows = {row["name"]: row for row in read_rows(out)}
    limits = limits or Limits()
    lock, stopping = threading.Lock(), threading.Event()

    def examine(name: str) -> None:
        row = _examined(name, side, limits, max(1, (os.cpu_count() or 1) // workers), stopping)
        if stopping.is_set():
            return  # cut short: it is examined again
        with lock:
            rows[name] = row
            _append(out, row)
            if note is not None:
                note(row)

    pending = [name for name in dict.fromkeys(names) if name not in rows]
    if known is not None:
        known(len(dict.fromkeys(names)) - len(pending))
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(examine, name) for name in pending]:
                done.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [rows[name] for name in dict.fromkeys(names)]


def _append(path: Path, row: Row) -> None:
    """Add a line to a file; what stands there of a line that was cut short goes."""
    with path.open("a+b") as stream:
        stream.seek(0)
        whole = stream.read().rfind(b"\n") + 1
        stream.truncate(whole)
        stream.write(json.dumps(row).encode() + b"\n")


def read_rows(path: Path) -> Iterable[Row]:
    """Yield the rows of a file of JSON lines; none where there is no file. A last line cut short is passed over.

    Raises:
        UsageError: a line is no row.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            continue  # its run was killed while writing: that network is examined again
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            row = None
        if not isinstance(row, dict) or "name" not in row:
            raise UsageError("this is no row of a zoo", where=f"{path}:{number}", hint="give another file for the rows")
        yield row


def _examined(name: str, side: int | None, limits: Limits, threads: int, stopping: threading.Event) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "row.json"
        command = [sys.executable, "-m", "bcos_fx.zoo", name, str(kept), "--threads", str(threads)]
        command += [] if side is None else ["--side", str(side)]
        start = time.monotonic()
        with open(Path(folder) / "said", "w+b") as said:
            # In a session of its own: the interrupt of a terminal is ours to handle, and must not become a row.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            over = _watch(process, limits, start, stopping)
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
        row: Row = json.loads(kept.read_text()) if kept.exists() else {"name": name}
        row["seconds in all"] = round(time.monotonic() - start, 1)
        if over is not None:
            row["failure"] = f"{over}, in the stage {row.get('stage', 'start')!r}"
        elif process.returncode != 0:
            row["failure"] = f"its process ended with code {process.returncode}: {' '.join(last)}"
        return row


def _watch(process: subprocess.Popen[bytes], limits: Limits, start: float, stopping: threading.Event) -> str | None:
    """Wait for a process to end; end it where it goes over a limit, and say which."""
    try:
        while True:
            try:
                process.wait(_LOOK)
                return None
            except subprocess.TimeoutExpired:
                over = "it was stopped" if stopping.is_set() else _over(process.pid, limits, start)
                if over is not None:
                    return over
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _over(pid: int, limits: Limits, start: float) -> str | None:
    if time.monotonic() - start > limits.seconds:
        return f"it took longer than {limits.seconds:.0f} s"
    if _resident(pid) > limits.gibibytes * 2**30:
        return f"it needed more than {limits.gibibytes:g} GiB"
    return None


def _resident(pid: int) -> int:
    """Bytes of resident memory; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
