"""Several processes that share one evaluation: torch's elastic launcher starts them, and they exchange results here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that work together, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def gathered(self, mine: dict[int, Any]) -> dict[int, Any]:
        """Return the rows of all processes; each waits here for the others."""
        if self.size == 1:
            return dict(mine)
        parts: list[dict[int, Any]] = [{} for _ in range(self.size)]
        dist.all_gather_object(parts, mine)
        # Processes hold rows of their own, or the same ones, so none is lost in the union.
        return {number: row for part in parts for number, row in part.items()}


@contextlib.contextmanager
def joined() -> Iterator[ProcessGroup]:
    """Join the processes that the elastic launcher started (``torchrun``); alone where it started none.

    Only plain results travel between processes, so gloo serves, whatever device they compute on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_available():
        yield ProcessGroup()
        return
    # A caller that initialized the group itself keeps it.
    begun = not dist.is_initialized()
    if begun:
        dist.init_process_group("gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        if begun:
            dist.destroy_process_group()
