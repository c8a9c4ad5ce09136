"""The same six pictures of three classes, stored in every way that is read."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LABELS = [0, 0, 1, 2, 2, 2]


def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in LABELS]


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def tensors() -> list[Tensor]:
    return [torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in pictures()]


def make_folder(root: Path, names: tuple[str, ...] = ("0", "1", "2")) -> Path:
    for n, (picture, label) in enumerate(zip(pictures(), LABELS, strict=True)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        (root / names[label] / f"{n}.png").write_bytes(encoded(picture))
    return root


def make_npz(path: Path, **changed: Any) -> Path:
    files = [encoded(picture) for picture in pictures()]
    arrays: dict[str, Any] = {
        "jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.array(LABELS),
        "classes": np.array(["cat", "dog", "owl"]),
    }
    arrays |= changed
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def make_shards(root: Path, *, label: Callable[[int], tuple[str, bytes]] = lambda n: ("cls", str(n).encode())) -> Path:
    root.mkdir(exist_ok=True)
    for shard in range(2):
        with tarfile.open(root / f"{shard:03}.tar", "w") as archive:
            for n in range(3 * shard, 3 * shard + 3):
                for ending, content in (label(LABELS[n]), ("png", encoded(pictures()[n])), ("txt", b"more")):
                    info = tarfile.TarInfo(f"train/{n:04}.{ending}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return root


def stacked() -> np.ndarray[Any, Any]:
    """(N, H, W, 3) bytes."""
    return np.stack([np.asarray(picture) for picture in pictures()])


def make_arrays(root: Path, names: tuple[str, ...] = ("0", "1", "2")) -> Path:
    """A folder per class of one array a file, channels first."""
    for n, (values, label) in enumerate(zip(stacked(), LABELS, strict=True)):
        (root / names[label]).mkdir(parents=True, exist_ok=True)
        np.save(root / names[label] / f"{n}.npy", values.transpose(2, 0, 1))
    return root


def make_flat(root: Path) -> Path:
    """A folder of pictures without classes, in the order of the others."""
    root.mkdir(parents=True, exist_ok=True)
    for n, picture in enumerate(pictures()):
        (root / f"{n}.png").write_bytes(encoded(picture))
    return root


def make_array(path: Path, values: np.ndarray[Any, Any]) -> Path:
    np.save(path, values)
    return path


def make_npz_of_arrays(path: Path, **changed: Any) -> Path:
    arrays: dict[str, Any] = {"images": stacked().transpose(0, 3, 1, 2), "labels": np.array(LABELS)} | changed
    np.savez_compressed(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


UNLABELLED: dict[str, Callable[[Path], Path]] = {
    "folder of images": lambda root: make_flat(root / "flat"),
    "array": lambda root: make_array(root / "many.npy", stacked()),
    "array of floats": lambda root: make_array(root / "many.npy", stacked().transpose(0, 3, 1, 2) / np.float32(255)),
    "npz without labels": lambda root: make_npz(root / "bare.npz", labels=None, classes=None),
    "npz of arrays without labels": lambda root: make_npz_of_arrays(root / "bare.npz", labels=None),
    "shards without labels": lambda root: make_shards(root / "bare", label=lambda n: ("text", b"")),
}
LABELLED: dict[str, Callable[[Path], Path]] = {
    "folder of classes": lambda root: make_folder(root / "data"),
    "folder of named classes": lambda root: make_folder(root / "data", ("cat", "dog", "owl")),
    "folder of arrays": lambda root: make_arrays(root / "data"),
    "npz": lambda root: make_npz(root / "data.npz"),
    "npz of arrays": lambda root: make_npz_of_arrays(root / "data.npz"),
    "shards": lambda root: make_shards(root / "data"),
    "shard": lambda root: next(make_shards(root / "shards").glob("000.tar")),
}
