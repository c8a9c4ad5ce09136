"""Finding images in files: a folder per class, a folder, single files, ``.npy``, ``.npz``, webdataset shards.

Images themselves are not read here. Folders are not read with torchvision's ``ImageFolder`` (an extra), which opens
hidden folders' files, knows no labels by number or name, and decodes 16-bit images to white. Shards are read with
Python's own ``tarfile`` and not by the webdataset library: that one streams, and the cells of a grid are wanted in any
order. A list of where each image begins is enough for that.
"""

from __future__ import annotations

import dataclasses
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bcos_fx.budgets import ARRAY_BYTES, JSON_BYTES, parse_json
from bcos_fx.data.arrays import array_header, read_array
from bcos_fx.data.classes import class_named
from bcos_fx.data.decoding import SUFFIXES, note
from bcos_fx.data.sources import ArraySource, ImageFiles, ImageRecord, ImageSource
from bcos_fx.errors import BcosFxError, UsageError
from bcos_fx.escaping import amount, listed
from bcos_fx.files import nearest_path

_FORMS = (
    "give a folder with a folder per class, a folder of images, images, an .npy or .npz of them, or webdataset shards "
    "(.tar, or a folder of .tar)"
)
_ENDINGS = f"images end in {', '.join(SUFFIXES)}, or arrays in .npy"
_LARGEST_LABEL = 2**31


def open_source(
    data: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, classes: Sequence[str] | None = None
) -> ImageSource:
    """Find images, with labels where there are some; none is read yet.

    Args:
        data: a path, or several whose images follow each other without labels: a folder with a folder per class; a
            folder of images; an image; an ``.npy`` of one image or many; an ``.npz`` with ``images`` (N, ...), or with
            ``jpeg`` (the bytes of all files in one array) and ``offsets`` (n + 1), and in both cases ``labels`` (n)
            where they are known; a webdataset shard, or a folder of shards, whose samples have an image and, where it
            is known, a label (``.cls``, or ``label`` in ``.json``). Files in a folder may be arrays too (``.npy``, one
            image each), where there are no pictures.
        classes: names of the network's classes, in order. Folders are then found by class name.

    Raises:
        UsageError: there is nothing of the kind, a class has no image, or a label cannot be read.
    """
    if isinstance(data, str | os.PathLike):
        return _opened(Path(data), classes)
    sources = [_opened(Path(path), classes) for path in data]
    if len(sources) == 1:
        return sources[0]
    others = [str(path) for path, source in zip(data, sources, strict=True) if not isinstance(source, ImageFiles)]
    if others or not sources:
        raise UsageError(f"an array is read alone: {', '.join(others) or 'no path was given'}", hint=_FORMS)
    records = [
        dataclasses.replace(record, name=_name(record), label=None)
        for source in sources
        if isinstance(source, ImageFiles)
        for record in source.records
    ]
    return ImageFiles(records, "files")


def _name(record: ImageRecord) -> str:
    """Return the name of an image beside those of other sources: its path, where it is all of a file."""
    if record.size is not None:
        return record.name
    return f"{record.path}{record.name[record.name.rindex('[') :] if record.frame else ''}"


def _opened(path: Path, classes: Sequence[str] | None) -> ImageSource:
    if not path.exists():
        raise UsageError(f"there is no data at {path}", hint=nearest_path(path))
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        return _shards(shards, classes) if shards else _folder(path, classes)
    if path.suffix == ".tar":
        return _shards([path], classes)
    if path.suffix in (".npz", ".npy"):
        return _npz(path, classes) if path.suffix == ".npz" else _npy(path, classes)
    return ImageFiles(ImageRecord.all_in(path, path.name, None), "files", classes=classes)


# ---------------------------------------------------------------- folders


def _folder(root: Path, classes: Sequence[str] | None) -> ImageSource:
    items = sorted(item for item in root.iterdir() if not item.name.startswith("."))
    folders = {item: _files(item) for item in items if item.is_dir()}
    loose = _pictures(items)
    if not any(folders.values()):
        if not loose:
            raise UsageError(f"there are no images in {root}", hint=_ENDINGS)
        return ImageFiles([each for file in loose for each in ImageRecord.all_in(file, file.name, None)], "folder")
    # An empty folder would be counted as a class, and shift the labels of those after it.
    empty = [repr(folder.name) for folder, files in folders.items() if not files]
    if empty:
        raise UsageError(
            f"there are no images of {listed(empty, 5)} in {root}",
            hint=f"give every class an image, or remove its folder; {_ENDINGS}",
        )
    if loose:
        number = amount(len(loose), "image")
        note(f"left out: {number} beside the folders of classes in {root}, {loose[0].name} for one")
    labels, counted = _labels([folder.name for folder in folders], classes)
    records = [
        record
        for files, label in zip(folders.values(), labels, strict=True)
        for file in files
        for record in ImageRecord.all_in(file, str(file.relative_to(root)), label)
    ]
    names = [folder.name for folder in folders] if classes is None and counted else classes
    return ImageFiles(records, "folder", classes=names, sorted_classes=len(folders) if counted else None)


def _files(folder: Path) -> list[Path]:
    """List the images of a class, including those in its subfolders."""
    return _pictures(sorted(folder.rglob("*")))


def _pictures(items: Sequence[Path]) -> list[Path]:
    """Return the pictures among files, or the arrays if there are no pictures."""
    files = [item for item in items if item.suffix.lower() in (*SUFFIXES, ".npy") and item.is_file()]
    return [file for file in files if file.suffix.lower() != ".npy"] or files


def _labels(folders: list[str], classes: Sequence[str] | None) -> tuple[list[int], bool]:
    """Return the class indices of folders, and whether they are no more than places in the order of names."""
    if all(name.isdecimal() for name in folders):
        return [int(name) for name in folders], False
    if classes is None:
        return list(range(len(folders))), True
    try:
        return [class_named(name, classes) for name in folders], False
    except BcosFxError as error:
        raise UsageError(f"a folder is named after no class: {error.what}", hint=error.hint) from error


# ---------------------------------------------------------------- arrays


def _npy(path: Path, classes: Sequence[str] | None) -> ImageSource:
    try:
        with path.open("rb") as stream:
            shape, dtype = array_header(stream)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        if len(shape) != 4:
            return ImageFiles([ImageRecord(path.name, None, path)], "files", classes=classes)
        return ArraySource(np.load(path, mmap_mode="r", allow_pickle=False), name=str(path), classes=classes)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"the array cannot be read: {error}", where=str(path), hint=_FORMS) from error


def _npz(path: Path, classes: Sequence[str] | None) -> ImageSource:
    try:
        with zipfile.ZipFile(path) as archive:
            held = {name.removesuffix(".npy") for name in archive.namelist()}
            labels = _array(archive, "labels", path) if "labels" in held else None
            names = next((_array(archive, name, path) for name in ("classes", "names") if name in held), None)
            known = classes if classes is not None or names is None else [str(text) for text in names.tolist()]
            if "images" in held:
                return ArraySource(_array(archive, "images", path), labels, name=str(path), classes=known)
            start, size = _stored_bytes(archive, path)
            offsets = _array(archive, "offsets", path)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise UsageError(f"the file cannot be read: {error}", where=str(path), hint=_FORMS) from error
    bounds = _bounds(offsets, labels, size, path)
    numbers = [None] * (len(bounds) - 1) if labels is None else labels.tolist()
    records = [
        ImageRecord(f"image {n}", label, path, start + bounds[n], bounds[n + 1] - bounds[n])
        for n, label in enumerate(numbers)
    ]
    return ImageFiles(records, "npz", classes=known)


def _bounds(offsets: np.ndarray[Any, Any], labels: np.ndarray[Any, Any] | None, size: int, path: Path) -> list[int]:
    """Return where each image begins and the last one ends, after checking that they lie within the bytes of all."""
    if offsets.ndim != 1 or len(offsets) < 2 or (labels is not None and labels.shape != (len(offsets) - 1,)):
        raise UsageError(
            f"offsets {offsets.shape} and labels {None if labels is None else labels.shape} do not belong together",
            where=str(path),
            hint="for n images there are n + 1 offsets and n labels, or no labels",
        )
    steps = offsets.astype(np.int64)
    kinds = offsets.dtype.kind + ("" if labels is None else labels.dtype.kind)
    if not set(kinds) <= set("iu") or (np.diff(steps) < 0).any():
        raise UsageError("offsets and labels are integers, and offsets rise", where=str(path), hint=_FORMS)
    if steps[0] < 0 or steps[-1] > size:
        raise UsageError(f"the last image ends at byte {steps[-1]} of {size}", where=str(path), hint="write it again")
    bounds: list[int] = steps.tolist()
    return bounds


def _stored_bytes(archive: zipfile.ZipFile, path: Path) -> tuple[int, int]:
    """Return where in the file the bytes of all images begin, and how many there are."""
    info = _member(archive, "jpeg", path)
    if info.compress_type != zipfile.ZIP_STORED:
        raise UsageError(
            "the images are compressed once more, so none can be read without all before it",
            where=str(path),
            hint="write the file with numpy.savez, not savez_compressed: JPEG does not get smaller",
        )
    with archive.open(info) as member:
        shape, dtype = array_header(member)
        header = member.tell()
    if dtype != np.uint8 or len(shape) != 1:
        raise UsageError(f"jpeg is {dtype} of shape {shape}, not one row of bytes", where=str(path), hint=_FORMS)
    with path.open("rb") as stream:  # a member's own header is as long as its two last fields say
        stream.seek(info.header_offset + 26)
        name, extra = (int.from_bytes(stream.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name + extra + header, shape[0]


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(f"{name}.npy")
    except KeyError:
        held = ", ".join(sorted(item.removesuffix(".npy") for item in archive.namelist()))
        wanted = f"an .npz holds images, or jpeg and offsets; and labels: {_FORMS}"
        raise UsageError(f"there is no array {name!r}, only {held}", where=str(path), hint=wanted) from None


def _array(archive: zipfile.ZipFile, name: str, path: Path) -> np.ndarray[Any, Any]:
    info = _member(archive, name, path)
    ARRAY_BYTES.check(info.file_size, f"the array {name!r}", UsageError, str(path))
    with archive.open(info) as member:
        return read_array(member, name, UsageError, str(path))


# ---------------------------------------------------------------- webdataset shards


def _shards(paths: Sequence[Path], classes: Sequence[str] | None) -> ImageSource:
    records: list[ImageRecord] = []
    for path in paths:
        try:
            with tarfile.open(path, "r:") as archive, path.open("rb") as stream:
                records += _samples(path, archive, stream)
        except (tarfile.TarError, OSError, EOFError) as error:
            hint = "shards are plain .tar files: unpack compressed ones, and fetch cut ones again"
            raise UsageError(f"the shard cannot be read: {error}", where=str(path), hint=hint) from error
    if not records:
        raise UsageError("the shards hold no images", where=str(paths[0]), hint=_ENDINGS)
    return ImageFiles(records, "shards", classes=classes)


def _samples(path: Path, archive: tarfile.TarFile, stream: BinaryIO) -> Iterator[ImageRecord]:
    """Yield the images of a shard. Consecutive files with one name up to the first dot are one sample."""
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


def _sample(path: Path, key: str, parts: dict[str, tarfile.TarInfo], stream: BinaryIO) -> Iterator[ImageRecord]:
    endings = [*(ending for ending in parts if f".{ending}" in SUFFIXES), *(e for e in parts if e == "npy")]
    if endings:
        image = parts[endings[0]]
        yield ImageRecord(f"{path.name}/{key}", _label(path, key, parts, stream), path, image.offset_data, image.size)


def _label(path: Path, key: str, parts: dict[str, tarfile.TarInfo], stream: BinaryIO) -> int | None:
    """Read the label of a sample; None if it has no file that could hold one."""
    try:
        if "cls" in parts:
            label = int(_read_member(parts["cls"], stream))
        elif "json" in parts:
            label = parse_json(_read_member(parts["json"], stream), f"the label of {key!r}", UsageError, str(path))[
                "label"
            ]
        else:
            return None
        if isinstance(label, bool) or not isinstance(label, int) or abs(label) > _LARGEST_LABEL:
            raise ValueError(f"{label!r} is not a class index")
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"the sample {key!r} has no label that can be read",
            where=str(path),
            hint="give it a file .cls with the class index or a .json with a key label, or neither",
        ) from error
    return label


def _read_member(member: tarfile.TarInfo, stream: BinaryIO) -> bytes:
    JSON_BYTES.check(member.size, f"the label {member.name!r}", UsageError)
    stream.seek(member.offset_data)
    return stream.read(member.size)
