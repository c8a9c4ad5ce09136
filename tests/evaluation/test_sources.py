"""Labelled images from wherever they come: the same pictures, labels and names; and what is wrong with them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler

from bcos_fx.data.decoding import Unreadable
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import open_source
from bcos_fx.evaluation.datasets import source_of
from bcos_fx.evaluation.decoding import Frame
from bcos_fx.evaluation.sources import Source
from bcos_fx.evaluation.stores import unlabelled

FRAME = Frame(3, 8, 8)
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


class Pairs(Dataset[Any]):
    """A data set of somebody's own."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


class Stream(IterableDataset[Any]):
    """The same, one after another and without a length."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


def pairs() -> list[Any]:
    return list(zip(tensors(), LABELS, strict=True))


def dicts() -> list[Any]:
    return [{"image": image, "label": torch.tensor(label)} for image, label in pairs()]


SOURCES: dict[str, Callable[[Path], Source]] = {
    "folder": lambda root: open_source(make_folder(root / "data")),
    "folder of names": lambda root: open_source(
        make_folder(root / "data", ("cat", "dog", "owl")), classes=["cat, kitty", "dog", "owl", "pig"]
    ),
    "npz": lambda root: open_source(make_npz(root / "data.npz")),
    "shards": lambda root: open_source(make_shards(root / "data")),
    "json shards": lambda root: open_source(
        make_shards(root / "data", label=lambda n: ("json", json.dumps({"label": n}).encode()))
    ),
    "data set": lambda root: source_of(Pairs(pairs())),
    "data set of pictures": lambda root: source_of(Pairs(list(zip(pictures(), LABELS, strict=True)))),
    "data set of dicts": lambda root: source_of(Pairs(dicts())),
    "loader": lambda root: source_of(DataLoader(Pairs(pairs()), batch_size=4, shuffle=True, drop_last=True)),
    "loader of dicts": lambda root: source_of(DataLoader(Pairs(dicts()), batch_size=2)),
    "stream": lambda root: source_of(Stream(pairs())),
    "loader of a stream": lambda root: source_of(DataLoader(Stream(pairs()), batch_size=4)),
    "loader of a stream of dicts": lambda root: source_of(DataLoader(Stream(dicts()), batch_size=4)),
    "loader of single items": lambda root: source_of(DataLoader(Stream(pairs()), batch_size=None)),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_images_in_any_order(kind: str, tmp_path: Path) -> None:
    source = SOURCES[kind](tmp_path)
    assert len(source) == len(LABELS)
    source.prepare([5, 0, 3], FRAME)
    for index in (0, 1, 2, 3, 4, 5, 3, 0, 5):
        image, label = source.read(index, FRAME)
        assert label == LABELS[index]
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, tensors()[index] / 255)
    assert len({source.name(index) for index in range(6)}) == 6
    json.dumps(source.identity())
    assert source.identity() == source.identity()


def test_the_identity_tells_other_images_apart(tmp_path: Path) -> None:
    first, same = open_source(make_folder(tmp_path / "a")), open_source(make_folder(tmp_path / "b"))
    assert first.identity() == same.identity()
    (tmp_path / "b" / "2" / "3.png").rename(tmp_path / "b" / "1" / "3.png")
    assert open_source(tmp_path / "b").identity() != first.identity()


def test_class_names_come_with_the_images(tmp_path: Path) -> None:
    assert open_source(make_npz(tmp_path / "a.npz")).class_name(1) == "dog"
    assert open_source(make_folder(tmp_path / "b", ("x", "y", "z"))).classes == ("x", "y", "z")
    assert open_source(make_shards(tmp_path / "c")).class_name(1) == "class 1"


def test_folders_that_are_counted_have_to_be_as_many_as_the_classes(tmp_path: Path) -> None:
    source = open_source(make_folder(tmp_path / "b", ("x", "y", "z")))
    source.check_classes(3)
    with pytest.raises(UsageError, match="3 folders of classes, and the network has 1000"):
        source.check_classes(1000)
    open_source(make_folder(tmp_path / "c")).check_classes(1000)
    named = open_source(tmp_path / "b", classes=["z", "w", "y", "x"])
    named.check_classes(4)
    assert [place.label for place in named.places] == [3, 3, 2, 0, 0, 0]


# ---------------------------------------------------------------- sizes


def test_other_sizes_are_resized_and_cropped_and_the_own_size_is_left_alone() -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    source = source_of(Pairs([(wide, 0), (pictures()[0], 1)]))
    assert source.read(0, FRAME).image.shape == (3, 8, 8)
    assert torch.equal(source.read(1, FRAME).image, tensors()[0] / 255)
    assert source.read(1, Frame(1, 8, 8)).image.shape == (1, 8, 8)
    assert "8x8 pixels as they are" in str(FRAME)


@pytest.mark.parametrize("whole", [False, True])
def test_images_are_prepared_as_the_publications_do(whole: bool) -> None:
    """Classifiers: the short side to 256, linear, and 224 of it; CLIP and its benchmark: to 224, cubic, all of it."""
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    side, how = (224, Image.Resampling.BICUBIC) if whole else (256, Image.Resampling.BILINEAR)
    resized = photograph.resize((round(500 * side / 300), side), how)
    left, top = (resized.width - 224) // 2, (side - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    found = source_of(Pairs([(photograph, 0)])).read(0, Frame(3, 224, 224, whole=whole)).image
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))
    assert ("bicubic" in str(Frame(3, 224, 224, whole=whole))) == whole


def test_cells_of_rescaled_grids_are_whole_images_made_smaller(tmp_path: Path) -> None:
    flat = Image.new("RGB", (8, 8), (10, 20, 30))
    frame = Frame(3, 8, 8, shrunk=2)
    for item in (flat, torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1).expand(3, 8, 8)):
        image = source_of(Pairs([(item, 0)])).read(0, frame).image
        torch.testing.assert_close(image, torch.tensor([10, 20, 30]).view(3, 1, 1).expand(3, 4, 4) / 255)


# ---------------------------------------------------------------- bad input


def test_unreadable_images_are_told_one_by_one(tmp_path: Path) -> None:
    make_folder(tmp_path / "a")
    (tmp_path / "a" / "1" / "2.png").write_bytes(b"no picture")
    (tmp_path / "a" / "2" / "3.png").write_bytes(b"")
    source = open_source(tmp_path / "a")
    (tmp_path / "a" / "0" / "0.png").unlink()
    for index in (0, 2, 3):
        with pytest.raises(Unreadable):
            source.read(index, FRAME)
    with pytest.raises(Unreadable, match="OSError: broken"):
        source_of(Pairs([OSError("broken")])).read(0, FRAME)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ((torch.rand(3, 8, 9), 0), r"shape \(3, 8, 9\), and the network takes \(3, 8, 8\)"),
        ((torch.randn(3, 8, 8) * 3, 0), r"in \[0, 1\]"),
        ((torch.full((3, 8, 8), torch.nan), 0), r"in \[0, 1\]"),
        ((torch.zeros(3, 8, 8, dtype=torch.int64), 0), "int64"),
        (("a path", 0), "is a str"),
        ((torch.rand(3, 8, 8),), "is a tuple"),
        ({"pixels": 0}, "keys pixels"),
        ((torch.rand(3, 8, 8), "cat"), "label 'cat'"),
        ((torch.rand(3, 8, 8), torch.rand(2)), r"label of shape \(2,\)"),
    ],
)
def test_items_that_are_no_labelled_image_are_refused(item: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        source_of(Pairs([item])).read(0, FRAME)


def test_what_is_no_data_set_is_refused() -> None:
    with pytest.raises(UsageError, match="no labelled images: int"):
        source_of(5)
    with pytest.raises(UsageError, match="no data at"):
        source_of("nowhere/at all")
    sampler = SubsetRandomSampler([0, 1])
    with pytest.raises(UsageError, match="SubsetRandomSampler"):
        source_of(DataLoader(Pairs(pairs()), sampler=sampler))
    assert len(source_of(Subset(Pairs(pairs()), [0, 1]))) == 2


def test_a_stream_that_changes_is_noticed() -> None:
    stream = Stream(pairs())
    source = source_of(stream)
    assert len(source) == 6
    stream.items = stream.items[:3]
    with pytest.raises(UsageError, match="ended after 3 images, and had 6"):
        source.read(5, FRAME)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": np.array([0, 1])}, "do not belong together"),
        ({"labels": None}, "no array 'labels', only classes, jpeg, offsets"),
        ({"offsets": np.arange(7)[::-1].copy()}, "offsets rise"),
        ({"offsets": np.arange(7) * 10**6}, "ends at byte 6000000"),
        ({"labels": np.array([object()] * 6)}, "cannot be read"),
        ({"jpeg": np.zeros((2, 2))}, "not one row of bytes"),
    ],
)
def test_a_wrong_npz_is_told_what_is_wrong(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        open_source(make_npz(tmp_path / "data.npz", **changed))


def test_images_have_no_labels_where_no_folder_tells_them(tmp_path: Path) -> None:
    make_folder(tmp_path / "classes")
    first = tmp_path / "classes" / "0"
    (first / ".thumbnails").mkdir()
    assert unlabelled(first) == sorted(first.glob("*.png"))
    (tmp_path / "classes" / "cover.png").write_bytes(next(first.glob("*.png")).read_bytes())
    assert unlabelled(tmp_path / "classes") == []  # an image that lies about takes no class its label
    assert unlabelled(tmp_path / "nothing") == []


def test_files_that_are_something_else(tmp_path: Path) -> None:
    make_folder(tmp_path / "pictures")
    np.savez_compressed(tmp_path / "small.npz", jpeg=np.zeros(9, np.uint8), offsets=np.arange(2), labels=np.zeros(1))
    (tmp_path / "cut.npz").write_bytes(make_npz(tmp_path / "a.npz").read_bytes()[:200])
    (tmp_path / "cut.tar").write_bytes(b"x" * 600)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare" / "0").mkdir(parents=True)
    for name, said in (
        ("picture", "did you mean 'pictures'"),
        ("small.npz", "numpy.savez, not savez_compressed"),
        ("cut.npz", "cannot be read"),
        ("cut.tar", "cannot be read"),
        ("empty", "no images in"),
        ("pictures/0", "no folders"),
        ("bare", "no images in"),
        ("pictures/0/0.png", "no data that can be read"),
    ):
        with pytest.raises(UsageError, match=said):
            open_source(tmp_path / name)
    with pytest.raises(UsageError, match="named after no class"):
        open_source(make_folder(tmp_path / "named", ("x", "y", "z")), classes=["cat", "dog", "owl"])


@pytest.mark.parametrize("label", [("cls", b"cat"), ("json", b"{}"), ("json", b"[" * 9999), ("text", b"0")])
def test_shards_without_labels_are_refused(label: tuple[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no label that can be read"):
        open_source(make_shards(tmp_path / "shards", label=lambda n: label))


def test_real_data_is_read_in_place(data_dir: Path) -> None:
    source = open_source(data_dir / "imagenet_samples.npz")
    image, label = source.read(499, Frame(3, 224, 224))
    assert (len(source), label) == (500, 998)
    assert image.shape == (3, 224, 224)
    assert 0.1 < float(image.mean()) < 0.9
