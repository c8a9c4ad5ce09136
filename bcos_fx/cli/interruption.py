"""Ctrl-C ends every command with one message and exit code 130, whatever it interrupts.

Libraries swallow the interrupt while they are imported, or turn it into an error of their own. So the signal is
noted when it comes, and what follows it counts as interrupted. Imports nothing that takes time.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
MESSAGE = "interrupted; no half-written file is left"
_came = threading.Event()


def interrupted() -> bool:
    """Return whether the process was interrupted."""
    return _came.is_set()


@contextmanager
def interruptible() -> Iterator[None]:
    """Note interrupts, and end the process with code 130 after one, without a traceback."""
    # Tests run several commands in one process.
    _came.clear()
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not where interrupts are ignored, as after nohup
        signal.signal(signal.SIGINT, _note)
    try:
        yield
    except SystemExit as end:
        if not interrupted() or end.code == INTERRUPTED:
            raise
        raise _ended() from None
    except BaseException:
        if not interrupted():
            raise
        raise _ended() from None
    else:
        if interrupted():
            raise _ended()
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _note(number: int, frame: FrameType | None) -> None:
    _came.set()
    raise KeyboardInterrupt


def _ended() -> SystemExit:
    sys.stderr.write(f"\n{MESSAGE}\n")
    return SystemExit(INTERRUPTED)
