"""Files that hold several images, and DICOM: read by the one decoder, wherever images are read."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcos_fx.data.decoding import decoded_picture, note
from bcos_fx.data.stores import open_source
from bcos_fx.errors import BcosFxError, MissingExtraError

PAGES = [np.full((6, 8), value, np.uint8) for value in (10, 90, 200)]


def stack(path: Path, **options: Any) -> Path:
    first, *others = [Image.fromarray(page) for page in PAGES]
    first.save(path, save_all=True, append_images=others, **options)
    return path


def values(source: Any) -> list[int]:
    return [int(np.asarray(source.load(index).image).flat[0]) for index in range(len(source))]


def test_each_page_of_a_tiff_is_an_image(tmp_path: Path) -> None:
    path = stack(tmp_path / "stack.tif")
    source = open_source(path)
    assert values(source) == [10, 90, 200]
    assert [source.name(index) for index in range(3)] == ["stack.tif[0]", "stack.tif[1]", "stack.tif[2]"]
    assert "[2]" in source.where(2)
    Image.fromarray(PAGES[1]).save(tmp_path / "one.tif")
    both = open_source([path, tmp_path / "one.tif"])
    assert values(both) == [10, 90, 200, 90]
    assert len({both.name(index) for index in range(4)}) == 4
    for label in "01":
        (tmp_path / "folder" / label).mkdir(parents=True)
        stack(tmp_path / "folder" / label / "a.tiff")
    folder = open_source(tmp_path / "folder")
    assert values(folder) == [10, 90, 200] * 2
    assert folder.labels == [0, 0, 0, 1, 1, 1]


def test_a_thumbnail_in_a_tiff_is_no_image(tmp_path: Path) -> None:
    for kind, count in ((0, 2), (1, 1)):
        small = Image.fromarray(PAGES[1][:2, :2])
        small.encoderinfo = {"tiffinfo": {254: kind}}
        Image.fromarray(PAGES[0]).save(tmp_path / "photo.tif", save_all=True, append_images=[small])
        assert len(open_source(tmp_path / "photo.tif")) == count


def dicom(path: Path, pixels: np.ndarray[Any, Any], **tags: Any) -> Path:
    pydicom = pytest.importorskip("pydicom", reason="the extra dicom is not installed")
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = tags.pop("syntax", "1.2.840.10008.1.2.1")
    made = pydicom.Dataset()
    made.file_meta = meta
    several = pixels.ndim == 3
    made.Rows, made.Columns = pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * pixels.itemsize
    made.HighBit, made.PixelRepresentation = made.BitsStored - 1, int(pixels.dtype.kind == "i")
    if several:
        made.NumberOfFrames = len(pixels)
    for name, value in tags.items():
        setattr(made, name, value)
    made.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize(
    ("pixel", "tags", "gray"),
    [
        (np.uint8(90), {}, 90),
        (np.uint8(90), {"PhotometricInterpretation": "MONOCHROME1"}, 165),
        (np.uint16(32768), {}, 128),
        (np.uint16(2048), {"BitsStored": 12, "HighBit": 11}, 128),
        (np.int16(40), {"WindowCenter": 40.5, "WindowWidth": 401}, 128),
        (np.int16(-900), {"WindowCenter": [40, 300], "WindowWidth": [400, 1500]}, 0),
        (
            np.uint16(1064),
            {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40.5, "WindowWidth": 401},
            128,
        ),
    ],
)
def test_a_dicom_image_has_the_range_that_it_states(tmp_path: Path, pixel: Any, tags: Any, gray: int) -> None:
    source = open_source(dicom(tmp_path / "a.dcm", np.full((6, 8), pixel), **tags))
    assert values(source) == [gray]
    assert source.load(0).image.size == (8, 6)


def test_each_frame_of_a_dicom_file_is_an_image(tmp_path: Path) -> None:
    assert values(open_source(dicom(tmp_path / "a.dcm", np.stack(PAGES)))) == [10, 90, 200]


@pytest.mark.parametrize(
    ("tags", "why"),
    [
        ({"RescaleSlope": 2, "RescaleIntercept": 0}, "no window"),
        ({"Rows": 600}, "cannot be read"),
        ({"Rows": 60000, "Columns": 60000}, "pixels"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
    ],
)
def test_a_dicom_image_of_no_known_range_is_refused(tmp_path: Path, tags: Any, why: str) -> None:
    source = open_source(dicom(tmp_path / "a.dcm", PAGES[1], **tags))
    with pytest.raises(BcosFxError, match=why):
        source.load(0)


def test_without_pydicom_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + bytes(50))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match="pydicom") as found:
        open_source(tmp_path / "a.dcm").load(0)
    assert "[dicom]" in str(found.value)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_taken_by_its_first_picture_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    first, second = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    first.save(tmp_path / "moves", format=form, save_all=True, append_images=[second])
    first.save(tmp_path / "still", format=form)
    for name, noted in (("still", False), ("moves", True)):
        note.cache_clear()
        caplog.clear()
        assert decoded_picture(io.BytesIO((tmp_path / name).read_bytes()), "RGB").getpixel((4, 4))[0] > 200
        assert ("the first picture is taken" in caplog.text) == noted
