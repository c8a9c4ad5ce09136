"""Writing files whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file beside ``path``, and put it in that one's place when it was written without error.

    A reader sees the old file or the new one, never half of it, and after an error nothing is left behind.

    Raises:
        OSError, ValueError: the place cannot be written to, or the path is none.
    """
    final = Path(os.path.realpath(path))
    temporary = final.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)
