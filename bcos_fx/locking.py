"""One run per folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bcos_fx.errors import UsageError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"
_REFUSED = (errno.EACCES, errno.EAGAIN)
_LONGEST = 1000


@dataclass
class _Held:
    """A lock of this process: a record lock does not keep out the other threads of the process that holds it."""

    process: int
    thread: int
    times: int = 1


_held: dict[str, _Held] = {}
_guard = threading.Lock()


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a folder against every other run, in this process or another, while the context lasts.

    The folder is made where it is missing, and removed again if nothing was written into it. The system releases the
    lock of a process that ends, in whatever way, so the file of a killed one blocks nothing. The thread that holds a
    folder may hold it again. On a system or a file system without locks only the runs of one process exclude each
    other.

    Raises:
        UsageError: another run holds the folder, or it cannot be made or written to.
    """
    key = os.path.realpath(folder)
    if not _begun(key):
        raise _refusal(folder, f"another thread of this process, {os.getpid()}")
    descriptor: int | None = None
    try:
        if _held[key].times == 1:
            descriptor = _locked(folder)
        yield
    finally:
        with _guard:
            _held[key].times -= 1
            if not _held[key].times:
                del _held[key]
                _release(folder, descriptor)


def _begun(key: str) -> bool:
    """Count one more use of a folder by this thread; False where another thread uses it."""
    with _guard:
        held = _held.get(key)
        if held is None or held.process != os.getpid():  # what a parent held before a fork is not held by the child
            _held[key] = _Held(os.getpid(), threading.get_ident())
            return True
        held.times += held.thread == threading.get_ident()
        return held.thread == threading.get_ident()


def _locked(folder: Path) -> int:
    """Return the descriptor of the locked file in a folder, which names this process."""
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
            try:
                _lock(descriptor, folder)
                if _is_at(descriptor, path):
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, _holder())
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the holder removed the file between our opening and locking it
    except OSError as error:
        raise UsageError(
            f"the folder cannot be used: {error.strerror}", where=str(path), hint="name a folder that can be written to"
        ) from error


def _lock(descriptor: int, folder: Path) -> None:
    """Take a record lock: unlike one of flock(), no forked worker that outlives the run keeps it."""
    if fcntl is None:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _REFUSED:
            raise _refusal(folder, _lock_owner(os.read(descriptor, _LONGEST))) from None
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise


def _is_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _holder() -> bytes:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return json.dumps({"process": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _lock_owner(content: bytes) -> str:
    """Return the process that a lock's file names; the file may hold anything."""
    try:
        owner = json.loads(content)
        process, host, since = int(owner["process"]), ascii(owner["host"])[1:-1], ascii(owner["since"])[1:-1]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
    return f"process {process} on {host}, since {since}"


def _refusal(folder: Path, holder: str) -> UsageError:
    return UsageError(
        f"the folder is in use by {holder}", where=str(folder), hint="wait until that run ends, or use another folder"
    )


def _release(folder: Path, descriptor: int | None) -> None:
    if descriptor is None:
        return
    with suppress(OSError):
        (folder / LOCK).unlink()  # before the lock ends: a file that is there again belongs to the next holder
    os.close(descriptor)
    with suppress(OSError):  # which it is if there is anything in it
        folder.rmdir()
