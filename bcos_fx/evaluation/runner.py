"""Long work in pieces: split between processes, written piece by piece, resumed after an interruption.

Each piece is computed alone, by one process and independent of the others, so the numbers are the same however many
processes there are and however often they were cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bcos_fx.evaluation.process_group import ProcessGroup
from bcos_fx.evaluation.result_log import ResultLog, read_rows
from bcos_fx.locking import holding

Track = Callable[[Sequence[int], Sequence[int], str], Iterator[int]]
"""From pieces of work, their sizes and a label: yields the pieces, and shows how far the work has come."""


def untracked(parts: Sequence[int], sizes: Sequence[int], label: str) -> Iterator[int]:
    """Yield the parts, and show nothing."""
    yield from parts


@dataclass(frozen=True)
class Runner:
    """How work is done.

    Attributes:
        group: the processes that share it.
        folder: where results are written as they come; None: nowhere.
        track: shows how far the work has come.
        log: called with each note for the user.
    """

    group: ProcessGroup = field(default_factory=ProcessGroup)
    folder: Path | None = None
    track: Track = untracked
    log: Callable[[str], None] = lambda text: None

    def alone(self) -> AbstractContextManager[None]:
        """Hold the folder against other runs while the context lasts; the leading process does so for its group.

        Raises:
            UsageError: another run holds it.
        """
        return nullcontext() if self.folder is None or not self.group.is_main else holding(self.folder)

    def run(
        self,
        name: str,
        header: Mapping[str, object],
        sizes: Sequence[int],
        compute: Callable[[int], Any],
        label: str,
    ) -> list[Any]:
        """Compute all pieces that are not yet on the disk, and return the results of all of them in order.

        Raises:
            UsageError: there are results of something else under that name, or another run works in the folder.
        """
        rank = self.group.rank
        # Each process has its own file: two that append to one would mix their lines.
        path = None if self.folder is None else self.folder / f"{name}{f'.{rank}' if rank else ''}.jsonl"
        with self.alone():
            results = ResultLog(path, header)
            for note in results.notes:
                self.log(note)
            # All processes have read what is there before any of them adds to it.
            done = self.group.gathered(self._left_by_earlier_runs(name, results) | results.rows)
            left = [number for number in range(len(sizes)) if number not in done]
            if left and len(left) < len(sizes):
                self.log(f"{label}: going on, {len(sizes) - len(left)} of {len(sizes)} were done before")
            # In turn, so that each process has pieces of all sizes.
            mine = left[rank :: self.group.size]
            for number in self.track(mine, [sizes[number] for number in mine], label):
                results.append(number, compute(number))
            # Every process returns all results, for the work after it needs them.
            everything = done | self.group.gathered(results.rows)
            return [everything[number] for number in range(len(sizes))]

    def _left_by_earlier_runs(self, name: str, results: ResultLog) -> dict[int, Any]:
        """Read the results that runs with more processes than this one wrote into their own files."""
        if self.folder is None:
            return {}
        others = sorted({*self.folder.glob(f"{name}.jsonl"), *self.folder.glob(f"{name}.[0-9]*.jsonl")})
        return {number: row for path in others for number, row in read_rows(path, results.header).items()}
