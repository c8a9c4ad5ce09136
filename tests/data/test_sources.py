"""Labelled images from wherever they come: the same pictures, labels and names; and what is wrong with them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler

from bcos_fx.data.datasets import source_of
from bcos_fx.data.decoding import Unreadable
from bcos_fx.data.preprocessing import CLIP, Preprocessing
from bcos_fx.data.sources import ImageFiles, ImageSource
from bcos_fx.data.stores import open_source
from bcos_fx.errors import UsageError
from tests.data.making import LABELS, make_folder, make_npz, make_shards, pictures, tensors

AS_STORED = Preprocessing(3, 8, 8)


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


SOURCES: dict[str, Callable[[Path], ImageSource]] = {
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
    source.prepare([5, 0, 3])
    for index in (0, 1, 2, 3, 4, 5, 3, 0, 5):
        image, label = source.read(index, AS_STORED)
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
    assert named.labels == [3, 3, 2, 0, 0, 0]


# ---------------------------------------------------------------- sizes


def test_other_sizes_are_resized_and_cropped_and_the_own_size_is_left_alone() -> None:
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    source = source_of(Pairs([(wide, 0), (pictures()[0], 1)]))
    assert source.read(0, AS_STORED).image.shape == (3, 8, 8)
    assert torch.equal(source.read(1, AS_STORED).image, tensors()[0] / 255)
    assert source.read(1, Preprocessing(1, 8, 8)).image.shape == (1, 8, 8)
    assert "8x8 pixels as they are" in str(AS_STORED)


@pytest.mark.parametrize("options", [{}, CLIP], ids=["classifiers", "CLIP"])
def test_images_are_prepared_as_the_publications_do(options: dict[str, Any]) -> None:
    """Classifiers: the short side to 256, linear, and 224 of it; CLIP and its benchmark: to 224, cubic, all of it."""
    photograph = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8))
    side, how = (224, Image.Resampling.BICUBIC) if options else (256, Image.Resampling.BILINEAR)
    resized = photograph.resize((500 * side // 300, side), how)
    left, top = round((resized.width - 224) / 2), (side - 224) // 2
    expected = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    found = source_of(Pairs([(photograph, 0)])).read(0, Preprocessing(3, 224, 224, **options)).image
    assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1))
    assert ("bicubic" in str(Preprocessing(3, 224, 224, **options))) == bool(options)


@pytest.mark.vision
@settings(max_examples=60, deadline=None)
@given(
    st.integers(20, 130),
    st.integers(20, 130),
    st.integers(16, 48),
    st.sampled_from([(0.875, None), (1.0, None), (224 / 232, 232 / 224), (0.95, None)]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_pixels_are_those_of_torchvision(
    width: int, height: int, side: int, crop: tuple[float, float | None], interpolation: str
) -> None:
    """Any size of picture and network against Resize and CenterCrop, with timm's size for a share of the crop."""
    from torchvision.transforms import v2

    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    share, ratio = crop
    short = math.floor(side / share) if ratio is None else math.floor(round(side * ratio, 6))
    steps = v2.Compose([v2.Resize(short, v2.InterpolationMode(interpolation)), v2.CenterCrop(side)])
    wanted = torch.from_numpy(np.asarray(steps(picture)).copy()).permute(2, 0, 1) / 255
    found = Preprocessing(3, side, side, interpolation=interpolation, crop_pct=share)(picture)
    if (width, height) == (side, side):
        wanted = torch.from_numpy(pixels).permute(2, 0, 1) / 255  # a picture of the network's size is left alone
    assert torch.equal(found, wanted)


def test_cells_of_rescaled_grids_are_whole_images_made_smaller(tmp_path: Path) -> None:
    flat = Image.new("RGB", (8, 8), (10, 20, 30))
    frame = Preprocessing(3, 8, 8, shrunk=2)
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
            source.read(index, AS_STORED)
    with pytest.raises(Unreadable, match="OSError: broken"):
        source_of(Pairs([OSError("broken")])).read(0, AS_STORED)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ((torch.rand(3, 8, 9), 0), r"shape \(3, 8, 9\), and the network takes \(3, 8, 8\)"),
        ((torch.randn(3, 8, 8) * 3, 0), r"in \[0, 1\]"),
        ((torch.full((3, 8, 8), torch.nan), 0), r"in \[0, 1\]"),
        ((torch.zeros(3, 8, 8, dtype=torch.int64), 0), "int64"),
        (("a path", 0), "is a str"),
        ({"pixels": 0}, "keys pixels"),
        ((torch.rand(3, 8, 8), "cat"), "label 'cat'"),
    ],
)
def test_items_that_are_no_labelled_image_are_refused(item: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        source_of(Pairs([item])).read(0, AS_STORED)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ((torch.rand(3, 8, 8),), "item 0 of Pairs has no label"),
        (torch.rand(3, 8, 8), "item 0 of Pairs has no label"),
        ((torch.rand(3, 8, 8), torch.rand(2)), r"label of shape \(2,\)"),
        ((torch.rand(3, 8, 8), 0.5), "float32"),
        ((torch.rand(3, 8, 8), 4), "the label 4 is not one of the network's 3 classes"),
    ],
)
def test_a_label_that_is_no_class_index_is_refused_where_one_is_needed(item: Any, said: str) -> None:
    source = source_of(Pairs([item]))
    with pytest.raises(UsageError, match=said):
        source.class_index(source.read(0, AS_STORED).label, 0, 3)


def test_what_is_no_data_set_is_refused() -> None:
    with pytest.raises(UsageError, match="images cannot be taken from a int"):
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
        source.read(5, AS_STORED)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": np.array([0, 1])}, "do not belong together"),
        ({"jpeg": None}, "no array 'jpeg', only classes, labels, offsets"),
        ({"offsets": np.arange(7)[::-1].copy()}, "offsets rise"),
        ({"offsets": np.arange(7) * 10**6}, "ends at byte 6000000"),
        ({"labels": np.array([object()] * 6)}, "cannot be read"),
        ({"jpeg": np.zeros((2, 2))}, "not one row of bytes"),
    ],
)
def test_a_wrong_npz_is_told_what_is_wrong(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        open_source(make_npz(tmp_path / "data.npz", **changed))


def test_images_have_no_labels_where_no_folder_tells_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_folder(tmp_path / "classes")
    first = tmp_path / "classes" / "0"
    (first / ".thumbnails").mkdir()
    bare = open_source(first)
    assert isinstance(bare, ImageFiles)
    assert [record.path for record in bare.records] == sorted(first.glob("*.png"))
    with pytest.raises(UsageError, match="the images have no labels"):
        bare.check_labeled()
    (tmp_path / "classes" / "cover.png").write_bytes(next(first.glob("*.png")).read_bytes())
    assert open_source(tmp_path / "classes").labels == LABELS  # an image beside the folders takes no class its label
    assert "1 image beside the folders of classes" in caplog.text


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
        ("bare", "no images in"),
    ):
        with pytest.raises(UsageError, match=said):
            open_source(tmp_path / name)
    with pytest.raises(UsageError, match="named after no class"):
        open_source(make_folder(tmp_path / "named", ("x", "y", "z")), classes=["cat", "dog", "owl"])


@pytest.mark.parametrize("label", [("cls", b"cat"), ("json", b"{}"), ("json", b"[" * 9999)])
def test_shards_without_labels_are_refused(label: tuple[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no label that can be read"):
        open_source(make_shards(tmp_path / "shards", label=lambda n: label))


def test_real_data_is_read_in_place(data_dir: Path) -> None:
    source = open_source(data_dir / "imagenet_samples.npz")
    image, label = source.read(499, Preprocessing(3, 224, 224))
    assert (len(source), label) == (500, 998)
    assert image.shape == (3, 224, 224)
    assert 0.1 < float(image.mean()) < 0.9
