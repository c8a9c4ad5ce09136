"""Progress on stderr: the stage that runs, and how long each one took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar

from rich.status import Status
from rich.text import Text

from bcos_fx.terminal import EscapingConsole

T = TypeVar("T")


class Stages:
    """Shows stages as they begin; a context, and a callable for :func:`bcos_fx.convert.bcosify`'s ``progress``."""

    def __init__(self) -> None:
        self._console = EscapingConsole(stderr=True)
        self._status: Status | None = None
        self._stage: str | None = None
        self._began = self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __call__(self, stage: str, *, listed: bool = True) -> None:
        """End the stage that ran, and begin another; one that is not listed leaves no line behind."""
        self._end()
        self._stage, self._start = stage if listed else None, time.monotonic()
        if self._console.is_terminal:
            self._status = self._console.status(Text(stage))
            self._status.start()

    def passing(self, stage: str) -> None:
        """Begin a stage that leaves no line behind."""
        self(stage, listed=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._end()
            self._line("in all", time.monotonic() - self._began)
        elif self._status is not None:
            self._status.stop()

    def _end(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._stage is not None:
            self._line(self._stage, time.monotonic() - self._start)
            self._stage = None

    def _line(self, stage: str, seconds: float) -> None:
        self._console.print(Text(f"{stage:<24} {seconds:6.1f} s", style="dim"))


def counted(parts: Sequence[T], sizes: Sequence[int], label: str, *, quiet: bool = False) -> Iterator[T]:
    """Yield parts of a long work, with a bar on stderr of how much is done and how long the rest takes.

    Args:
        parts: of the work.
        sizes: of each part, in things that the user counts.
        label: of the bar.
        quiet: show nothing. Nothing is shown either where stderr is not a terminal.
    """
    # Loaded here: `bcos-fx --help` imports this module and draws no bar.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = EscapingConsole(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(label, total=sum(sizes))
        for part, size in zip(parts, sizes, strict=True):
            yield part
            bar.advance(task, size)
