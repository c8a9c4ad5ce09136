"""Checkpoints of a run: whole or not there, unaltered, of this run or refused, and opened without running anything."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from bcos_fx.checkpoint import identify
from bcos_fx.errors import CheckpointError, TrainingError, UsageError
from bcos_fx.files import replacing
from bcos_fx.identity import differences

NAME = "last.ckpt"
KEY = "bcos_fx"
# A checkpoint is what torch.save() writes, and after it this line with the SHA-256 of all bytes before it.
_SEAL = b"\nbcos-fx sha256 %s\n"
_SEAL_LENGTH = len(_SEAL % (b"0" * 64))
_CHUNK = 2**20
_LISTED = 4
_BEGIN_AGAIN = "delete it to begin again; a checkpoint of this version is complete and unaltered, or not there"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint with its checksum beside the last one and renames it; reads tensors and plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: it cannot be written; the one before is still there.
        """
        hint = ("the last one is whole: " if Path(path).is_file() else "") + "make room, and go on with resume"
        try:
            with replacing(Path(path), "the checkpoint", error=TrainingError, hint=hint) as stream:
                summed: Any = _Summed(stream)
                torch.save(checkpoint, summed)
                stream.write(_SEAL % summed.digest.hexdigest().encode())
        except RuntimeError as error:  # torch's own, where a write of its archive fails
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"the checkpoint cannot be written: {reason}", where=str(path), hint=hint) from error

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return read_checkpoint(Path(path))


class _Summed:
    """A file that is written from its beginning to its end, and the checksum of what was written."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.digest = stream, hashlib.sha256()

    def write(self, part: Any) -> int:
        self.digest.update(part)
        return self._stream.write(part)

    def flush(self) -> None:
        self._stream.flush()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is run.

    Raises:
        UsageError: it is damaged, altered, of another version, or something else.
    """
    try:
        with path.open("rb") as stream:
            # Before torch reads anything, so that an altered file never reaches the unpickler.
            _check_seal(stream, path)
            stream.seek(0)
            identify(path)  # refuses what would take more to unpickle than its size explains
            checkpoint = torch.load(stream, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except CheckpointError as error:
        raise _unreadable(error.what, path) from error
    except Exception as error:  # for a file of another format torch may raise anything
        raise _unreadable(str(error).partition("\n")[0], path) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(KEY), dict):
        raise UsageError(
            "this is not a checkpoint of a fine-tuning", where=str(path), hint="delete it, or use another folder"
        )
    recorded = checkpoint[KEY].get("outline")
    if not isinstance(recorded, list) or not isinstance(checkpoint[KEY].get("identity"), dict):
        raise _unreadable("it does not say what it is of", path)
    # weights_only refuses code, and not data that was taken out: the list of all values does.
    present = set(_outline(checkpoint))
    lacking = [str(name) for name in recorded if name not in present]
    if lacking or not recorded:
        # The containers of what is missing are changed too; the longest name is the missing value itself.
        raise _unreadable(f"it lacks {max(lacking, key=len, default='everything')}", path)
    return checkpoint


def _check_seal(stream: BinaryIO, path: Path) -> None:
    """Check that every byte is as it was written."""
    size = path.stat().st_size - _SEAL_LENGTH
    digest = hashlib.sha256()
    while part := stream.read(min(_CHUNK, max(0, size - stream.tell()))):
        digest.update(part)
    seal = stream.read()
    if seal == _SEAL % digest.hexdigest().encode():
        return
    if seal.startswith(_SEAL.partition(b"%")[0]) and len(seal) == _SEAL_LENGTH:
        raise _unreadable("it was altered after it was written, for its checksum is another", path)
    raise _unreadable("it does not end in a checksum: it is cut off, or of another version", path)


def _unreadable(reason: str, path: Path) -> UsageError:
    return UsageError(f"the checkpoint cannot be read: {reason}", where=str(path), hint=_BEGIN_AGAIN)


# ---------------------------------------------------------------- what it is of, and all of it


def noted(checkpoint: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint holds under :data:`KEY`: what it is of, and the list of all that belongs to it."""
    return {"identity": dict(identity), "outline": list(_outline(checkpoint))}


def _outline(value: object, path: str = "") -> Iterator[str]:
    """Name every value of nested data, with the type and shape of tensors."""
    if isinstance(value, Mapping):
        parts = [(str(key), part) for key, part in value.items() if path or key != KEY]
    elif isinstance(value, list | tuple):
        parts = [(str(index), part) for index, part in enumerate(value)]
    else:
        kind = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        yield f"{path} ({kind})"
        return
    yield f"{path} ({len(parts)})"
    for name, part in parts:
        yield from _outline(part, f"{path}.{name}".strip("."))


def check_identity(checkpoint: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Check that a checkpoint is of this network, recipe and data.

    Raises:
        UsageError: it is of another; names what differs.
    """
    different = differences(checkpoint[KEY]["identity"], wanted)
    if different:
        more = f"; and {len(different) - _LISTED} more" if len(different) > _LISTED else ""
        raise UsageError(
            f"the checkpoint is of another run: {'; '.join(different[:_LISTED])}{more}",
            where=str(path),
            hint="give what it was begun with, use another folder, or delete it to begin again",
        )
