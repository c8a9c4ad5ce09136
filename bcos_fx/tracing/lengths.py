"""``len(x)`` of a tensor, as a size that stays symbolic.

Python turns whatever ``__len__`` returns into a plain integer, so a graph would hold for that number of samples alone.
While a module is recorded, ``len`` in the source files of its modules is a function of ours, which answers for a
traced tensor as ``x.shape[0]`` does.
"""

from __future__ import annotations

import builtins
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from bcos_fx.tracing.caches import homes
from bcos_fx.tracing.recorder import Recorder


@contextmanager
def follow_lengths(root: nn.Module, recorder: Recorder) -> Iterator[None]:
    """While this lasts, ``len`` of a traced tensor stays symbolic in the modules' source files."""
    recording = threading.get_ident()

    def followed(value: Any) -> Any:
        is_recorded = isinstance(value, Tensor) and threading.get_ident() == recording
        return recorder.length(value) if is_recorded else builtins.len(value)

    files = [home for home in homes(root) if isinstance(home, ModuleType) and "len" not in vars(home)]
    try:
        for home in files:
            home.len = followed  # type: ignore[attr-defined]
        yield
    finally:
        for home in files:
            del home.len
