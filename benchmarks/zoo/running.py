"""Runs examinations, one process per network, within limits; every row is kept as soon as it is there.

A process of its own keeps what other people's code does (leaks, caches, patched functions, crashes) from the next
network, and can be ended when it takes too long. The processes are forked from one that has imported the libraries and
done nothing else: importing them takes as long as the examination of a small network.
"""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from bcos_fx.files import check_target
from benchmarks.zoo.examination import Row
from benchmarks.zoo.process import examine
from benchmarks.zoo.rows import append_row, read_rows

_LOOK = 0.5
_CONTEXT = multiprocessing.get_context("forkserver")
# Modules that hold a library's networks, where that is not the library's own name.
_MODULES = {"torchvision": "torchvision.models"}


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
    minutes: float | None = None,
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
        minutes: after which no further network is begun; None: all are.
        note: called with each new row, one at a time.
        known: called with the number of networks that the file has a row of already.

    Returns:
        The rows in the order of ``names``, those read from the file too; none of a network that was not begun.

    Raises:
        UsageError: the file holds something else, or its folder is not there.
        OSError: it cannot be read or written.
    """
    check_target(out)
    rows = {row["name"]: row for row in read_rows(out)}
    limits = limits or Limits()
    lock, stopping = threading.Lock(), threading.Event()
    end = None if minutes is None else time.monotonic() + 60 * minutes

    def keep_row_of(name: str) -> None:
        if end is not None and time.monotonic() >= end:
            return
        row = _examined(name, side, limits, max(1, torch.get_num_threads() // workers), stopping)
        if stopping.is_set():
            return  # cut short: it is examined again
        with lock:
            rows[name] = row
            append_row(out, row)
            if note is not None:
                note(row)

    pending = [name for name in dict.fromkeys(names) if name not in rows]
    if known is not None:
        known(len(dict.fromkeys(names)) - len(pending))
    _import_first(pending)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in [pool.submit(keep_row_of, name) for name in pending]:
                done.result()
        except BaseException:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [rows[name] for name in dict.fromkeys(names) if name in rows]


def _import_first(names: Iterable[str]) -> None:
    """Have the process that others are forked from import the networks' libraries; one that fails is left out."""
    libraries = dict.fromkeys(name.partition(":")[0] for name in names)
    _CONTEXT.set_forkserver_preload(["benchmarks.zoo.process", *(_MODULES.get(name, name) for name in libraries)])


def _examined(name: str, side: int | None, limits: Limits, threads: int, stopping: threading.Event) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        kept, printed = Path(folder) / "row.json", Path(folder) / "said"
        start = time.monotonic()
        process = _CONTEXT.Process(target=examine, args=(name, kept, printed, side, threads))
        process.start()
        over = _watch(process, limits, start, stopping)
        last = printed.read_text(errors="replace").strip().splitlines()[-1:] if printed.exists() else []
        row: Row = json.loads(kept.read_text()) if kept.exists() else {"name": name}
        row["seconds in all"] = round(time.monotonic() - start, 1)
        row["date"] = datetime.date.today().isoformat()
        if over is not None:
            row["failure"] = f"{over}, in the stage {row.get('stage', 'start')!r}"
        elif process.exitcode != 0:
            row["failure"] = f"its process ended with code {process.exitcode}: {' '.join(last)}"
        process.close()
        return row


def _watch(process: BaseProcess, limits: Limits, start: float, stopping: threading.Event) -> str | None:
    """Wait for a process to end; end it where it goes over a limit, and say which."""
    try:
        while process.is_alive():
            process.join(_LOOK)
            over = "it was stopped" if stopping.is_set() else _over(process.pid, limits, start)
            if over is not None and process.is_alive():
                return over
        return None
    finally:
        process.kill()
        process.join()


def _over(pid: int | None, limits: Limits, start: float) -> str | None:
    if time.monotonic() - start > limits.seconds:
        return f"it took longer than {limits.seconds:.0f} s"
    if _resident(pid) > limits.gibibytes * 2**30:
        return f"it needed more than {limits.gibibytes:g} GiB"
    return None


def _resident(pid: int | None) -> int:
    """Bytes of resident memory; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
