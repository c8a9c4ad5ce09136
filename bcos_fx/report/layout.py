"""Where everything in the picture of a graph stands; nothing is drawn here.

Both graphs are lists of boxes in the order they run. Boxes that bear one name in both stand in one row where their
order allows it; a box that is new or gone has a row of its own. Values that skip boxes travel in lanes beside them,
one lane per value however many read it, so that dense blocks stay readable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from enum import StrEnum

from bcos_fx.report.model import Findings, NodeRow

_ROWS_PER_PANEL = 88


class Change(StrEnum):
    """What became of a node."""

    UNCHANGED = "unchanged"
    REWRITTEN = "rewritten, same function"
    CHANGED = "rewritten, function changed"
    NEW = "new"
    REMOVED = "removed"


@dataclass(frozen=True)
class Box:
    """A node: what it says, where it came from, and its row."""

    name: str
    label: str
    change: Change
    row: int


@dataclass(frozen=True)
class Bus:
    """A value that skips boxes: from a row to several others, in a lane (0 is nearest to the boxes)."""

    source: int
    targets: tuple[int, ...]
    lane: int


@dataclass(frozen=True)
class Column:
    """One graph: boxes, links between boxes that follow each other (rows), and the rest as buses."""

    boxes: tuple[Box, ...]
    links: tuple[tuple[int, int], ...]
    buses: tuple[Bus, ...]

    @property
    def lanes(self) -> int:
        """How many lanes stand side by side."""
        return max((bus.lane + 1 for bus in self.buses), default=0)


@dataclass(frozen=True)
class Layout:
    """The whole picture.

    Attributes:
        before, after: the two graphs.
        remarks: row -> the rules that made or removed what stands there.
        panels: first row and the row after the last one of each pair of columns, side by side.
    """

    before: Column
    after: Column
    remarks: dict[int, str]
    panels: tuple[tuple[int, int], ...]


def lay_out(report: Findings) -> Layout:
    """Place the nodes of a report."""
    origins = _origins(report)
    remaining = set(origins.values())
    # A node of the new graph that was none of the old ones gets a mark that no name can be equal to.
    names = [origins.get(row.name, f"+{row.name}") for row in report.nodes]
    left, right, count = _align([row.name for row in report.before], names)
    places = {row.name: right[name] for row, name in zip(report.nodes, names, strict=True)}
    gone = {name: rule for name, rule in report.removed.items() if name in left and name not in remaining}
    changing = frozenset(name for name, rule in report.rules.items() if rule.preserves == "never")
    fates = [Change.REMOVED if row.name in gone else Change.UNCHANGED for row in report.before]
    became = [_change(row, changing) if row.name in origins else Change.NEW for row in report.nodes]
    remarks = {places[row.name]: ", ".join(row.rules) for row in report.nodes if row.rules}
    remarks |= {left[name]: f"removed: {rule}" for name, rule in gone.items()}
    return Layout(
        before=_column(report.before, fates, left),
        after=_column(report.nodes, became, places),
        remarks=remarks,
        panels=_panels(count),
    )


def _origins(report: Findings) -> dict[str, str]:
    """Return which traced node each node was; a node that was none is new.

    It is the one of its name; where a rewrite renamed it, the one of its module, or else the next of its op.
    """
    traced = {row.name: row for row in report.before}
    origins = {row.name: row.name for row in report.nodes if row.name in traced and traced[row.name].op == row.was}
    free = [row for row in report.before if row.name not in origins]
    for by_module in (True, False):
        for row in report.nodes:
            fits = (old for old in free if old.op == row.was and (not by_module or old.module == row.module))
            if row.name not in origins and (origin := next(fits, None)) is not None:
                origins[row.name] = origin.name
                free.remove(origin)
    return origins


def _align(before: Sequence[str], after: Sequence[str]) -> tuple[dict[str, int], dict[str, int], int]:
    """Give each name a row in its column; equal stretches share rows."""
    left: dict[str, int] = {}
    right: dict[str, int] = {}
    row = 0
    for _, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        left.update(zip(before[i1:i2], range(row, row + i2 - i1), strict=True))
        if before[i1:i2] != after[j1:j2]:  # what is gone stands above what is new
            row += i2 - i1
        right.update(zip(after[j1:j2], range(row, row + j2 - j1), strict=True))
        row += j2 - j1
    return left, right, row


def _change(row: NodeRow, changing: frozenset[str]) -> Change:
    if not row.rules:
        return Change.UNCHANGED
    return Change.CHANGED if changing.intersection(row.rules) else Change.REWRITTEN


def _column(rows: Sequence[NodeRow], changes: Sequence[Change], places: dict[str, int]) -> Column:
    boxes = tuple(
        Box(row.name, f"{row.op}  ({row.name})", change, places[row.name])
        for row, change in zip(rows, changes, strict=True)
    )
    following = dict(zip((row.name for row in rows), (row.name for row in rows[1:]), strict=False))
    readers: dict[str, list[str]] = {row.name: [] for row in rows}
    for row in rows:
        for source in row.inputs:
            readers[source].append(row.name)
    links = [(places[a], places[b]) for a, b in following.items() if b in readers[a]]
    far = {
        places[name]: tuple(places[reader] for reader in users if reader != following.get(name))
        for name, users in readers.items()
    }
    return Column(boxes, tuple(links), _buses({source: targets for source, targets in far.items() if targets}))


def _buses(far: dict[int, tuple[int, ...]]) -> tuple[Bus, ...]:
    """Give each value the innermost lane that is free all the way; short ones first, so that they stay inside."""
    taken: list[list[tuple[int, int]]] = []
    buses = []
    for source, targets in sorted(far.items(), key=lambda item: (max(item[1]) - item[0], item[0])):
        end = max(targets)
        lane = next((i for i, spans in enumerate(taken) if all(end < a or b < source for a, b in spans)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((source, end))
        buses.append(Bus(source, targets, lane))
    return tuple(buses)


def _panels(rows: int) -> tuple[tuple[int, int], ...]:
    count = max(1, math.ceil(rows / _ROWS_PER_PANEL))
    height = math.ceil(rows / count)
    return tuple((start, min(start + height, rows)) for start in range(0, max(rows, 1), max(height, 1)))
