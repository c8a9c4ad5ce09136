"""What a file is, found from its bytes; nothing in it is run, imported or unpickled."""

from __future__ import annotations

import errno
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bcos_fx.budgets import ARCHIVE_MEMBERS, ENTRIES, JSON_BYTES, held, parse_json
from bcos_fx.checkpoint.folders import INDEX, shards_of, weights_at
from bcos_fx.checkpoint.pickle_scan import PickleScan, scan_pickle
from bcos_fx.errors import CheckpointError
from bcos_fx.escaping import amount
from bcos_fx.files import kind_of_special, nearest_path

# torch.save's old format begins with this integer as a pickle of its own (torch.serialization).
_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)[2:]  # less the protocol's own two bytes
_LEGACY_HEADERS = 3  # magic number, protocol version, machine facts; then the object itself
_TENSOR_MAKERS = ("torch._utils._rebuild_", "torch.Tensor", "torch.nn.parameter.Parameter")
_DICTS = ("dict", "collections.OrderedDict", "collections.defaultdict")
# A protobuf that begins with a small ir_version and then a producer name, version or graph.
_ONNX_START = re.compile(rb"\x08[\x01-\x1f][\x12\x1a\x3a]")
_IMAGE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|BM....\0\0\0\0|P[1-6]\s+[\d#]|.{128}DICM",
    re.DOTALL,
)
_OF_HUB = "of the hub converted networks alone are read by name; for others: hf download USER/NAME --local-dir FOLDER"
_MAGIC_NUMBERS = (
    (b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file, as Keras writes"),
    (b"\x93NUMPY", "numpy", "a NumPy array"),
    (b"%PDF", "pdf", "a PDF document"),
    (b"GGUF", "gguf", "a GGUF language model"),
    (b"\x1f\x8b", "gzip", "a gzip archive"),
    (b"<!DOCTYPE html", "text", "a web page, such as a download's error page"),
    (b"<html", "text", "a web page, such as a download's error page"),
    (b"version https://git-lfs", "text", "a Git LFS pointer; the file itself was not fetched"),
)


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    ``kind`` is one of ``state-dict``, ``nested-checkpoint``, ``tensor``, ``pickled-module``,
    ``pickle``, ``torch-tar``, ``exported-program``, ``torchscript``, ``torch-package``,
    ``safetensors``, ``sharded``, ``bcos-fx``, ``onnx``, ``hdf5``, ``numpy``, ``gguf``, ``gzip``, ``zip``,
    ``image``, ``pdf``, ``text``, ``empty``, ``damaged`` and ``unknown``. ``summary`` is one sentence for people;
    ``details`` holds what was found on the way (``root``, ``keys``, ``names``, ``members``, ...).
    """

    kind: str
    summary: str
    details: Mapping[str, Any] = field(default_factory=dict)


def identify(path: str | os.PathLike[str]) -> FileKind:
    """Return what the file at ``path`` is, or that of the weights in a folder, executing nothing from it.

    Raises:
        CheckpointError: there is no such file, a directory has no weights, or it cannot be opened or exceeds a budget.
    """
    file = _existing_file(Path(path))
    try:
        return _identified(file)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=error.where or str(file), hint=error.hint) from error


def _identified(file: Path) -> FileKind:
    if file.name.endswith(INDEX):
        with readable(file):
            shards = shards_of(file)
        return FileKind(
            "sharded", f"an index of weights in {amount(len(shards), 'file')}", {"members": tuple(map(str, shards))}
        )
    with readable(file), file.open("rb") as stream:
        head = stream.read(512)
        stream.seek(0)
        if not head:
            return FileKind("empty", "an empty file")
        if head.startswith(b"PK"):
            return _identify_zip(file)
        # 0x80 is the opcode PROTO, then the protocol's number; pickles of protocol 0 and 1 have no such mark.
        if head[0] == 0x80 and head[1:2] <= b"\x05":
            return _identify_pickle(stream, headers=_LEGACY_HEADERS if _LEGACY_MAGIC in head[:32] else 0)
        for magic, kind, summary in _MAGIC_NUMBERS:
            if head.startswith(magic):
                return FileKind(kind, summary)
        if _IMAGE_START.match(head):
            return FileKind("image", "an image")
        return _identify_rest(stream, head, file)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the system's refusal to open or read ``path`` into a :class:`CheckpointError`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"the file cannot be read: {error.strerror or error}",
            where=str(path),
            hint="check that you may read it and that its disk is there",
        ) from error


def _existing_file(path: Path) -> Path:
    with readable(path):
        if path.is_file():
            return path
        if path.is_dir():
            return weights_at(path)
        if path.exists() and (special := kind_of_special(path.stat())) is not None:
            raise CheckpointError(f"this is {special}, not a file", where=str(path), hint="copy it to a file first")
        of_hub = path.parts[:1] and path.parts[0].startswith("hf:")
        hint = _OF_HUB if of_hub else nearest_path(path)
    raise CheckpointError("there is no such file", where=str(path), hint=hint)


def _identify_zip(path: Path) -> FileKind:
    try:
        with zipfile.ZipFile(path) as archive:
            return _identify_archive(archive)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        return _damaged(error)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _damaged(error)  # a member whose offset lies before the file's beginning


def _damaged(error: Exception) -> FileKind:
    return FileKind("damaged", "a zip archive that is cut off or damaged", {"reason": str(error)})


def _identify_archive(archive: zipfile.ZipFile) -> FileKind:
    members = tuple(archive.namelist())
    ARCHIVE_MEMBERS.check(len(members), "the archive", CheckpointError)
    inner = {name.partition("/")[2] for name in members}
    details: dict[str, Any] = {"members": members}
    # A data.pkl is looked for last: TorchScript's archives hold one as well.
    if "archive_format" in inner or "serialized_exported_program.json" in members or "models/model.json" in inner:
        return FileKind("exported-program", "a torch.export program (.pt2)", details)
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return FileKind("torchscript", "a TorchScript program", details)
    if ".data/extern_modules" in inner:
        return FileKind("torch-package", "a torch.package archive", details)
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        return FileKind("zip", "a zip archive that torch.save did not write", details)
    size = Path(archive.filename or "").stat().st_size
    # The sizes that the archive declares: a zip bomb is refused before anything is inflated.
    held(size).check(sum(info.file_size for info in archive.infolist()), "the archive", CheckpointError)
    with archive.open(pickles[0]) as stream:
        return _classify(scan_pickle(stream), {**details, "format": "torch.save zip"})


def _identify_pickle(stream: IO[bytes], *, headers: int) -> FileKind:
    try:
        for _ in range(headers):
            scan_pickle(stream)
        scan = scan_pickle(stream)
    except ValueError as error:
        return FileKind("damaged", "a pickle that is cut off or damaged", {"reason": str(error)})
    if headers:
        return _classify(scan, {"format": "torch.save legacy"})
    return FileKind("pickle", f"a Python pickle of {scan.root}, not written by torch.save", _content(scan))


def _content(scan: PickleScan) -> dict[str, Any]:
    return {"root": scan.root, "keys": tuple(key for key, _ in scan.items), "names": scan.names}


def _classify(scan: PickleScan, details: dict[str, Any]) -> FileKind:
    """Tell weights from nested weights from whole modules by what the pickle would build."""
    modules = [name for name in scan.names if name.startswith("torch.nn.modules.")]
    labels = [label for _, label in scan.items]
    details |= _content(scan)
    if scan.root.startswith(_TENSOR_MAKERS):
        return FileKind("tensor", "one bare tensor", details)
    if scan.root not in _DICTS and "." in scan.root:
        return FileKind("pickled-module", f"a pickled object of class {scan.root}", details)
    if modules:
        return FileKind("pickled-module", f"a dict with a pickled module inside ({modules[0]}, ...)", details)
    if scan.root not in _DICTS:
        return FileKind("pickle", f"a pickled {scan.root}, not a checkpoint", details)
    if any(label.startswith(_TENSOR_MAKERS) for label in labels) and not any(label in _DICTS for label in labels):
        return FileKind("state-dict", "a state dict", details)
    return FileKind("nested-checkpoint", "a dict with other things beside the weights", details)


def _identify_rest(stream: IO[bytes], head: bytes, path: Path) -> FileKind:
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= 2**40:
        return _identify_safetensors(stream, length)
    if path.suffix.lower() == ".onnx" or _ONNX_START.match(head):
        return FileKind("onnx", "an ONNX model")
    if head[257:262] == b"ustar":
        return FileKind("torch-tar", "a tar archive, torch.save's format before 2017")
    if all(byte >= 0x20 or byte in b"\t\r\n\f" for byte in head):
        return FileKind("text", "a text file")
    return FileKind("unknown", "not a format known here")


def _identify_safetensors(stream: IO[bytes], length: int) -> FileKind:
    size = stream.seek(0, os.SEEK_END)
    if 8 + length > size:
        return FileKind("damaged", "a safetensors file that is cut off", {"keys": (), "metadata": []})
    JSON_BYTES.check(length, "the safetensors header", CheckpointError)
    stream.seek(8)
    text = stream.read(length)
    try:
        header = parse_json(text, "the safetensors header", CheckpointError)
        ENTRIES.check(len(header), "the safetensors header", CheckpointError)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        metadata = header.get("__metadata__", {})
        whole = 8 + length + max(ends, default=0) <= size
        keys = tuple(name for name in header if name != "__metadata__")
        details = {"keys": keys, "metadata": sorted(metadata)}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        return FileKind("damaged", "a safetensors file whose header is damaged", {"reason": str(error)})
    if not whole:
        return FileKind("damaged", "a safetensors file that is cut off", details)
    if "bcos_fx" in metadata:
        return FileKind("bcos-fx", "a network converted by bcos_fx", details)
    return FileKind("safetensors", "a safetensors file of tensors", details)
