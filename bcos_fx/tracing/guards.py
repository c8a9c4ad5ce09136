"""What tracing took for granted about the input's shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TracedGuard:
    """A branch or a number that tracing took from a shape: the graph holds only for inputs that answer the same.

    Attributes:
        kind: how it was read: ``bool``, ``int``, ``float``, ``iter``, ``in``, or ``len`` (in a
            file that defines no module).
        node: name of the node that was read; it may have been removed from the graph since, if only Python used it.
        value: the answer, a plain Python value.
        source: the line that asked, as ``file.py:123: if x.shape[2] > 7:``.
    """

    kind: str
    node: str
    value: object
    source: str
