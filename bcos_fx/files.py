"""Writing files: the one place of the package that writes to the paths that users name.

A file is written beside its final place under a temporary name and then renamed, so that a reader sees the old file or
the new one, never half of it. What exists and is not a regular file (a device, a FIFO, a socket, a directory) is never
replaced. Symbolic links are followed: the link stays, the file that it leads to is replaced, and a link that leads to
no file yet gets one, as with any program that opens a file for writing.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bcos_fx.errors import BcosFxError, UsageError, nearest

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed, which is as good as a lock
    fcntl = None  # type: ignore[assignment]

PLACE = "name a file in an existing folder on a disk with space, in which you may write"
"""The hint of errors about a path."""

_COMPARED = 200
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def check_target(path: Path, *, overwrite: bool = True) -> None:
    """Check that a file can be written to a path, before the work for it begins.

    Raises:
        UsageError: its folder does not exist, it is something else than a regular file, or it exists and
            ``overwrite`` is false.
    """
    _resolved(path, overwrite)


def nearest_path(path: Path, pattern: str = "*", *, folders: bool = False) -> str:
    """Return a hint for a path that does not exist: what is there with nearly its name.

    Args:
        path: does not exist.
        pattern: names that are meant.
        folders: whether folders alone are meant.
    """
    if path.parts[:1] in (("http:",), ("https:",)):
        return "addresses are not opened: download the file first"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    beside = itertools.islice(path.parent.glob(pattern), _COMPARED)
    names = [item.name for item in beside if not folders or item.is_dir()]
    return nearest(path.name, names) if names else f"the folder {path.parent} has none"


def kind_of_special(status: os.stat_result) -> str | None:
    """Describe what a path leads to if it is not a regular file; return None for a regular file."""
    if stat.S_ISREG(status.st_mode):
        return None
    return _KINDS.get(stat.S_IFMT(status.st_mode), "not a regular file")


@contextmanager
def replacing(
    path: Path,
    label: str = "the file",
    *,
    overwrite: bool = True,
    error: type[BcosFxError] = UsageError,
    hint: str = PLACE,
) -> Iterator[BinaryIO]:
    """Open a new file, and put it in the place of ``path`` when it was written without error.

    After an error nothing is left behind. A process that is killed leaves a temporary file in the folder; the next
    write to the same path removes it.

    Args:
        path: of the file; symbolic links are followed.
        label: is written, for errors.
        overwrite: whether an existing regular file is replaced. Its permissions are kept.
        error: the type of the errors.
        hint: of the errors that the system raises.

    Raises:
        BcosFxError: the path is refused as by :func:`check_target`, or the file cannot be written.
    """
    try:
        final = _resolved(path, overwrite)
        _remove_abandoned(final)
        with _temporary(final) as (temporary, stream):
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            _resolved(path, overwrite)
            if fcntl is None:
                stream.close()  # Windows renames no file that is open; elsewhere the lock is kept until the end
            os.replace(temporary, final)
    except OSError as problem:
        reason = problem.strerror or problem
        raise error(f"{label} cannot be written: {reason}", where=str(path), hint=hint) from problem
    except _RefusedPath as problem:
        raise error(f"{label} cannot be written: {problem.what}", where=problem.where, hint=problem.hint) from problem


@contextmanager
def appending(path: Path, label: str = "the file") -> Iterator[BinaryIO]:
    """Open a regular file, new or existing, for reading and for writing at its end, and flush it to disk.

    Raises:
        UsageError: the path is refused as by :func:`check_target`, or the file cannot be written.
    """
    try:
        with _resolved(path, overwrite=True).open("a+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as problem:
        raise UsageError(
            f"{label} cannot be written: {problem.strerror or problem}", where=str(path), hint=PLACE
        ) from problem


class _RefusedPath(UsageError):
    """The path itself is refused, whatever the content."""


def _resolved(path: Path, overwrite: bool) -> Path:
    """Return the path without symbolic links, which nothing or a regular file has."""
    if "\0" in os.fspath(path):
        raise _RefusedPath("the path holds a null character", where=repr(str(path)), hint=PLACE)
    final = Path(os.path.realpath(path))
    try:
        status = os.stat(path)  # through the system, which refuses other people's links in shared folders
    except FileNotFoundError:
        _check_folder(final)
        return final
    except OSError as problem:
        raise _RefusedPath(str(problem.strerror or problem), where=str(path), hint=PLACE) from problem
    special = kind_of_special(status)
    link = "a link to " if path.is_symlink() else ""
    if special is not None:
        folder = stat.S_ISDIR(status.st_mode)
        hint = "name a file in that folder" if folder else "name a regular file; nothing was changed"
        raise _RefusedPath(f"{path} is {link}{special}, not a file", where=str(path), hint=hint)
    if not final.exists():  # a descriptor's link below /proc, to a file that was removed
        raise _RefusedPath(f"{path} is an open file without a name", where=str(path), hint=PLACE)
    if not overwrite:
        hint = "replace it with overwrite=True, or choose another name"
        raise _RefusedPath(f"{path} is there already", where=str(path), hint=hint)
    return final


def _check_folder(final: Path) -> None:
    folder = final.parent
    if not folder.is_dir():
        hint = f"{nearest_path(folder, folders=True)}; name an existing folder"
        raise _RefusedPath(f"there is no folder {folder}", where=str(final), hint=hint)


@contextmanager
def _temporary(final: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Open a new file beside the final one, locked as long as this process writes to it."""
    while True:
        temporary = final.with_name(f"{_prefix(final)}{uuid.uuid4().hex[:8]}.tmp")
        with temporary.open("xb") as stream:
            # Another process may have taken the file for an abandoned one before it was locked.
            if not _locked(stream) or not os.fstat(stream.fileno()).st_nlink:
                continue
            try:
                if final.exists():
                    temporary.chmod(stat.S_IMODE(final.stat().st_mode))
                yield temporary, stream
            finally:
                temporary.unlink(missing_ok=True)
            return


def _prefix(final: Path) -> str:
    """Return how the temporary files of a path begin: of any length and characters that its name has."""
    return f".bcos-fx-{hashlib.sha256(os.fsencode(final.name)).hexdigest()[:16]}-"


def _locked(stream: BinaryIO) -> bool:
    """Lock a file; false where another process holds it. Where the file system has no locks, nothing is locked."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _remove_abandoned(final: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote to this path."""
    for path in final.parent.glob(f"{_prefix(final)}*.tmp"):
        with suppress(OSError), path.open("rb") as stream:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
