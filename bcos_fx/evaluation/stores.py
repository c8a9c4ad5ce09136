"""Reading where the images of a folder, an ``.npz`` file or of webdataset shards lie, without reading the images.

Shards are read with Python's own ``tarfile`` and not by the webdataset library: that one streams, and the cells of a
grid are wanted in any order. A list of where each image begins is enough for that.
"""

from __future__ import annotations

import math
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bcos_fx.budgets import ARRAY_BYTES, JSON_BYTES, parse_json
from bcos_fx.data.decoding import SUFFIXES
from bcos_fx.errors import BcosFxError, UsageError, nearest
from bcos_fx.evaluation.sources import Files, Place
from bcos_fx.explanation.targets import named

_FORMS = (
    "give a folder with a folder per class, an .npz of JPEG bytes, or webdataset shards (.tar, or a folder of .tar)"
)
_LARGEST_LABEL = 2**31


def open_source(path: str | os.PathLike[str], *, classes: Sequence[str] | None = None) -> Files:
    """Find labelled images; none is read yet.

    Args:
        path: a folder with a folder per class; an ``.npz`` with ``jpeg`` (all files' bytes in one array), ``offsets``
            (n + 1) and ``labels`` (n); a webdataset shard, or a folder of shards, whose samples have an image and a
            label (``.cls``, or ``label`` in ``.json``).
        classes: names of the network's classes, in order. Folders are then found by class name.

    Raises:
        UsageError: there is nothing of the kind, or labels cannot be told.
    """
    place = Path(path)
    if not place.exists():
        near = [item.name for item in place.parent.iterdir()] if place.parent.is_dir() else []
        raise UsageError(f"there is no data at {place}", hint=nearest(place.name, near[:200]) if near else _FORMS)
    if place.is_dir():
        shards = sorted(place.glob("*.tar"))
        return _shards(shards, classes) if shards else _folder(place, classes)
    if place.suffix == ".npz":
        return _npz(place, classes)
    if place.suffix == ".tar":
        return _shards([place], classes)
    raise UsageError(f"{place.name} is no data that can be read", where=str(place), hint=_FORMS)


def unlabelled(folder: Path) -> list[Path]:
    """Return the image files of a folder that has nothing to tell their classes; none where it is something else."""
    if not folder.is_dir():
        return []
    items = sorted(item for item in folder.iterdir() if not item.name.startswith("."))
    if any(item.is_dir() or item.suffix == ".tar" for item in items):
        return []
    return [item for item in items if item.suffix.lower() in SUFFIXES and item.is_file()]


# ---------------------------------------------------------------- a folder per class


def _folder(root: Path, classes: Sequence[str] | None) -> Files:
    folders = sorted(item for item in root.iterdir() if item.is_dir() and not item.name.startswith("."))
    if not folders:
        missing = "folders" if unlabelled(root) else "images"
        raise UsageError(
            f"there are no {missing} in {root}", hint="put the images of each class in a folder of its own"
        )
    labels, counted = _labels([folder.name for folder in folders], classes)
    places = [
        Place(str(file.relative_to(root)), label, file, 0, file.stat().st_size)
        for folder, label in zip(folders, labels, strict=True)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    if not places:
        raise UsageError(f"there are no images in {root}", hint=f"images end in {', '.join(SUFFIXES)}")
    names = tuple(classes) if classes is not None else None
    if names is None and counted:
        names = tuple(folder.name for folder in folders)
    return Files(places, "folder", classes=names, sorted_classes=len(folders) if counted else None)


def _labels(folders: list[str], classes: Sequence[str] | None) -> tuple[list[int], bool]:
    """Class indices of folders, and whether they are no more than places in the order of names."""
    if all(name.isdecimal() for name in folders):
        return [int(name) for name in folders], False
    if classes is None:
        return list(range(len(folders))), True
    try:
        return [int(named(name, classes)) for name in folders], False
    except BcosFxError as error:
        raise UsageError(f"a folder is named after no class: {error.what}", hint=error.hint) from error


# ---------------------------------------------------------------- npz


def _npz(path: Path, classes: Sequence[str] | None) -> Files:
    try:
        with zipfile.ZipFile(path) as archive:
            start, size = _stored_bytes(archive, path)
            offsets, labels = (_array(archive, name, path) for name in ("offsets", "labels"))
            known = classes if classes is not None else _names(archive, path)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise UsageError(f"the file cannot be read: {error}", where=str(path), hint=_FORMS) from error
    if offsets.ndim != 1 or labels.shape != (len(offsets) - 1,) or not len(labels):
        raise UsageError(
            f"offsets {offsets.shape} and labels {labels.shape} do not belong together",
            where=str(path),
            hint="for n images there are n + 1 offsets and n labels",
        )
    steps = offsets.astype(np.int64)
    if offsets.dtype.kind not in "iu" or labels.dtype.kind not in "iu" or (np.diff(steps) < 0).any():
        raise UsageError("offsets and labels are whole numbers, and offsets rise", where=str(path), hint=_FORMS)
    if steps[0] < 0 or steps[-1] > size:
        raise UsageError(f"the last image ends at byte {steps[-1]} of {size}", where=str(path), hint="write it again")
    bounds = steps.tolist()
    places = [
        Place(f"image {n}", int(label), path, start + bounds[n], bounds[n + 1] - bounds[n])
        for n, label in enumerate(labels.tolist())
    ]
    return Files(places, "npz", classes=None if known is None else tuple(known))


def _stored_bytes(archive: zipfile.ZipFile, path: Path) -> tuple[int, int]:
    """Where in the file the bytes of all images begin, and how many there are."""
    info = _member(archive, "jpeg", path)
    if info.compress_type != zipfile.ZIP_STORED:
        raise UsageError(
            "the images are compressed once more, so none can be read without all before it",
            where=str(path),
            hint="write the file with numpy.savez, not savez_compressed: JPEG does not get smaller",
        )
    with archive.open(info) as member:
        shape, dtype = _header(member)
        header = member.tell()
    if dtype != np.uint8 or len(shape) != 1:
        raise UsageError(f"jpeg is {dtype} of shape {shape}, not one row of bytes", where=str(path), hint=_FORMS)
    with path.open("rb") as stream:  # a member's own header is as long as its two last fields say
        stream.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra + header, shape[0]


def _header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype


def _check_array(member: Any, name: str, path: Path) -> None:
    """Check that an array is no larger than its header may claim: numpy allocates it before it reads."""
    shape, dtype = _header(member)
    ARRAY_BYTES.check(math.prod(shape) * dtype.itemsize, f"the array {name!r}", UsageError, str(path))


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(f"{name}.npy")
    except KeyError:
        held = ", ".join(sorted(item.removesuffix(".npy") for item in archive.namelist()))
        raise UsageError(f"there is no array {name!r}, only {held}", where=str(path), hint=_FORMS) from None


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray[Any, Any]:
    info = _member(archive, name, path)
    ARRAY_BYTES.check(info.file_size, f"the array {name!r}", UsageError, str(path))
    with archive.open(info) as member:
        _check_array(member, name, path)
    with archive.open(info) as member:
        found: np.ndarray[Any, Any] = np.lib.format.read_array(member, allow_pickle=False)
    return found


def _names(archive: zipfile.ZipFile, path: Path) -> list[str] | None:
    for name in ("classes", "names"):
        if f"{name}.npy" in archive.namelist():
            return [str(text) for text in _array(archive, name, path).tolist()]
    return None


# ---------------------------------------------------------------- webdataset shards


def _shards(paths: Sequence[Path], classes: Sequence[str] | None) -> Files:
    places: list[Place] = []
    for path in paths:
        try:
            with tarfile.open(path, "r:") as archive, path.open("rb") as stream:
                places += _samples(path, archive, stream)
        except (tarfile.TarError, OSError, EOFError) as error:
            hint = "shards are plain .tar files: unpack compressed ones, and fetch cut ones again"
            raise UsageError(f"the shard cannot be read: {error}", where=str(path), hint=hint) from error
    if not places:
        raise UsageError("the shards hold no images", where=str(paths[0]), hint=f"images end in {', '.join(SUFFIXES)}")
    return Files(places, "shards", classes=None if classes is None else tuple(classes))


def _samples(path: Path, archive: tarfile.TarFile, stream: BinaryIO) -> Iterator[Place]:
    """The images of a shard. Files that follow each other with one name up to the first dot are one sample."""
    key, parts = "", dict[str, tarfile.TarInfo]()
    for member in archive:
        if not member.isreg():
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        here = f"{folder}/{stem}" if folder else stem
        if here != key:
            yield from _sample(path, key, parts, stream)
            key, parts = here, {}
        parts[ending.lower()] = member
    yield from _sample(path, key, parts, stream)


def _sample(path: Path, key: str, parts: dict[str, tarfile.TarInfo], stream: BinaryIO) -> Iterator[Place]:
    image = next((member for ending, member in parts.items() if f".{ending}" in SUFFIXES), None)
    if image is None:
        return
    yield Place(f"{path.name}/{key}", _label(path, key, parts, stream), path, image.offset_data, image.size)


def _label(path: Path, key: str, parts: dict[str, tarfile.TarInfo], stream: BinaryIO) -> int:
    try:
        if "cls" in parts:
            label = int(_content(parts["cls"], stream))
        else:
            label = parse_json(_content(parts["json"], stream), f"the label of {key!r}", UsageError, str(path))["label"]
        if isinstance(label, bool) or not isinstance(label, int) or abs(label) > _LARGEST_LABEL:
            raise ValueError(f"{label!r} is no class index")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"the sample {key!r} has no label that can be read",
            where=str(path),
            hint="each sample needs a file .cls with the class index, or a .json with a key label",
        ) from error
    return label


def _content(member: tarfile.TarInfo, stream: BinaryIO) -> bytes:
    JSON_BYTES.check(member.size, f"the label {member.name!r}", UsageError)
    stream.seek(member.offset_data)
    return stream.read(member.size)
