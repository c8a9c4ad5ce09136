"""Images of every mode and format against known pixels; files that are not images, or would start another program."""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms

from bcos_fx.data import decoding
from bcos_fx.data.datasets import source_of
from bcos_fx.data.decoding import Unreadable, decoded_picture, read_content
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.data.stores import open_source
from bcos_fx.training.data import Samples

SIDE = 8
# A gradient with both ends, and a colour that differs in every channel.
GREY = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE)
COLOUR = np.stack([GREY, 1 - GREY, np.roll(GREY, 3, 1)], 2)
Known = tuple[Image.Image, np.ndarray[Any, Any]]


def bytes_of(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.round(shares * 255).astype(np.uint8)


def grey(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.repeat(shares[..., None], 3, 2)


def one_bit() -> Known:
    bits = GREY > 0.5
    return Image.fromarray(bits), grey(bits.astype(float))


def eight_bit() -> Known:
    return Image.fromarray(bytes_of(GREY)), grey(GREY)


def sixteen_bit() -> Known:
    return Image.fromarray((GREY * 65535).astype(np.uint16)), grey(GREY)


def floating() -> Known:
    return Image.fromarray(GREY.astype(np.float32)), grey(GREY)


def thirty_two_bit() -> Known:
    return Image.fromarray((GREY * (2**31 - 1)).astype(np.int32)), grey(GREY)


def rgb() -> Known:
    return Image.fromarray(bytes_of(COLOUR)), COLOUR


def palette() -> Known:
    indices = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    image = Image.fromarray(indices)
    image.putpalette(bytes_of(COLOUR).reshape(-1).tobytes())  # which makes it mode P
    return image, COLOUR


def palette_and_transparency() -> Known:
    image, colors = palette()
    image.info["transparency"] = 10
    shown = colors.copy().reshape(-1, 3)
    shown[10] = 1
    return image, shown.reshape(SIDE, SIDE, 3)


def grey_and_alpha() -> Known:
    alpha = np.roll(GREY, 5, 0)
    image = Image.fromarray(np.stack([bytes_of(GREY), bytes_of(alpha)], 2), "LA")
    return image, grey(GREY * alpha + 1 - alpha)


def rgb_and_alpha() -> Known:
    alpha = np.roll(GREY, 5, 0)
    image = Image.fromarray(np.concatenate([bytes_of(COLOUR), bytes_of(alpha)[..., None]], 2), "RGBA")
    return image, COLOUR * alpha[..., None] + 1 - alpha[..., None]


def cmyk() -> Known:
    inks = np.concatenate([1 - COLOUR, np.zeros((SIDE, SIDE, 1))], 2)
    return Image.fromarray(bytes_of(inks), "CMYK"), COLOUR


def ycbcr() -> Known:
    # Full-range BT.601, as JPEG has it.
    y = COLOUR @ np.array([0.299, 0.587, 0.114])
    cb, cr = (COLOUR[..., 2] - y) / 1.772 + 0.5, (COLOUR[..., 0] - y) / 1.402 + 0.5
    return Image.fromarray(bytes_of(np.stack([y, cb, cr], 2).clip(0, 1)), "YCbCr"), COLOUR


MATRIX: dict[str, tuple[Callable[[], Known], tuple[str, ...]]] = {
    "1": (one_bit, ("PNG", "TIFF", "BMP", "PPM", "GIF")),
    "L": (eight_bit, ("PNG", "TIFF", "BMP", "PPM", "JPEG", "WEBP", "GIF")),
    "I;16": (sixteen_bit, ("PNG", "TIFF", "PPM")),
    "I": (thirty_two_bit, ("TIFF",)),
    "F": (floating, ("TIFF",)),
    "P": (palette, ("PNG", "TIFF", "GIF", "BMP")),
    "P and transparency": (palette_and_transparency, ("PNG", "GIF")),
    "LA": (grey_and_alpha, ("PNG", "TIFF", "WEBP")),
    "RGB": (rgb, ("PNG", "TIFF", "BMP", "PPM", "JPEG", "WEBP")),
    "RGBA": (rgb_and_alpha, ("PNG", "TIFF", "WEBP")),
    "CMYK": (cmyk, ("TIFF", "JPEG")),
    "YCbCr": (ycbcr, ("TIFF", "JPEG")),
}
CELLS = [(mode, form) for mode, (_, forms) in MATRIX.items() for form in forms]


def stored(image: Image.Image, form: str, **options: Any) -> io.BytesIO:
    lossless = {"WEBP": {"lossless": True, "exact": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    stream = io.BytesIO()
    if "transparency" in image.info:
        options["transparency"] = image.info["transparency"]
    image.save(stream, form, **lossless.get(form, {}), **options)
    stream.seek(0)
    return stream


def shares(image: Image.Image) -> np.ndarray[Any, Any]:
    return np.asarray(image, dtype=float) / 255


@pytest.mark.parametrize(("mode", "form"), CELLS)
def test_known_pixels(mode: str, form: str) -> None:
    image, wanted = MATRIX[mode][0]()
    if (mode, form) == ("YCbCr", "TIFF") and int(PIL.__version__.split(".")[0]) < 13:
        with pytest.raises(Unreadable):  # Pillow itself reads none before 13
            decoded_picture(stored(image, form), "RGB")
        return
    found = decoded_picture(stored(image, form), "RGB")
    assert found.mode == "RGB"
    # JPEG loses a little even at its best; 8 bits lose half a step, and composing and YCbCr one or two.
    steps = 16 if form == "JPEG" else 3 if mode == "YCbCr" else 1.5
    assert np.abs(shares(found) - wanted).max() <= steps / 255
    as_grey = shares(decoded_picture(stored(image, form), "L"))
    assert np.abs(as_grey - wanted @ np.array([0.299, 0.587, 0.114])).max() <= (steps + 1) / 255


def _tiff(
    values: np.ndarray[Any, Any], bits: int, sample_format: int = 1, photometric: int = 1, order: str = "<"
) -> io.BytesIO:
    """An uncompressed single-channel TIFF of one strip, written by hand."""
    data = values.tobytes()
    tags = [
        (256, 3, values.shape[1]),
        (257, 3, values.shape[0]),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 0),
        (277, 3, 1),
        (278, 3, values.shape[0]),
        (279, 4, len(data)),
        (339, 3, sample_format),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    body = struct.pack(f"{order}H", len(tags))
    for tag, kind, value in tags:
        number = start if tag == 273 else value
        packed = struct.pack(f"{order}H2x", number) if kind == 3 else struct.pack(f"{order}I", number)
        body += struct.pack(f"{order}HHI", tag, kind, 1) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return io.BytesIO(head + body + bytes(4) + data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [0, 1], ids=["white is zero", "black is zero"])
def test_tiffs_of_16_bits_in_both_orders_and_polarities(photometric: int, order: str) -> None:
    values = (GREY * 65535).astype(f"{order}u2")
    if (photometric, order) == (0, ">"):
        with pytest.raises(Unreadable):  # Pillow opens no such file; it must not be shown inverted
            decoded_picture(_tiff(values, 16, photometric=0, order=order), "L")
        return
    found = shares(decoded_picture(_tiff(values, 16, photometric=photometric, order=order), "L"))
    assert np.abs(found - (GREY if photometric else 1 - GREY)).max() <= 1 / 255


def test_a_signed_tiff_is_scaled_to_its_own_range_and_negative_values_are_refused() -> None:
    values = (GREY * 32767).astype("<i2")
    assert np.abs(shares(decoded_picture(_tiff(values, 16, 2), "L")) - GREY).max() <= 1 / 255
    with pytest.raises(Unreadable, match="negative"):
        decoded_picture(_tiff(values - 5, 16, 2), "L")


def test_an_unsigned_tiff_of_32_bits() -> None:
    values = (GREY * (2**32 - 1)).astype("<u4")
    assert np.abs(shares(decoded_picture(_tiff(values, 32), "L")) - GREY).max() <= 1 / 255


def test_a_signed_tiff_of_8_bits_is_refused() -> None:
    with pytest.raises(Unreadable, match="signed 8-bit"):
        decoded_picture(_tiff(bytes_of(GREY) // 2, 8, 2), "L")


@pytest.mark.parametrize(("bits", "key"), [(1, 1), (2, 1), (2, 3), (4, 9), (8, 130), (16, 40_000)])
def test_the_gray_that_is_transparent_is_seen_as_white(bits: int, key: int) -> None:
    values = [0, key]
    width = 8 // bits if bits < 8 else 2
    row = sum(value << (width - 1 - place) * bits for place, value in enumerate(values)).to_bytes(
        width * bits // 8, "big"
    )
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, bits, 0, 0, 0, 0)),
        (b"tRNS", struct.pack(">H", key)),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    stream = io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    np.testing.assert_array_equal(np.asarray(decoded_picture(stream, "L")), [[0, 255]])


def test_a_tiff_of_12_bits() -> None:
    values = np.round(GREY * 4095).astype(np.uint32).reshape(-1, 2)
    packed = np.stack([values[:, 0] >> 4, (values[:, 0] & 15) << 4 | values[:, 1] >> 8, values[:, 1] & 255], 1)
    stream = _tiff(packed.astype(np.uint8).reshape(SIDE, SIDE * 3 // 2), 12).getvalue()
    stream = stream.replace(struct.pack("<HHIH", 256, 3, 1, SIDE * 3 // 2), struct.pack("<HHIH", 256, 3, 1, SIDE))
    assert np.abs(shares(decoded_picture(io.BytesIO(stream), "L")) - GREY).max() <= 1 / 255


@pytest.mark.parametrize(
    ("values", "bits", "sample_format", "message"),
    [
        (GREY * 255, 32, 3, r"from 0 to 255.*\[0, 1\]"),
        (GREY - 0.5, 32, 3, r"from -0.5 to 0.5"),
        (np.where(GREY > 0.5, np.nan, 0), 32, 3, "NaN"),
        (GREY * 65535, 32, 1, "range is not known"),
        (GREY * 255, 32, 1, "range is not known"),
    ],
)
def test_values_without_a_known_range_are_refused(
    values: np.ndarray[Any, Any], bits: int, sample_format: int, message: str
) -> None:
    kind = "<f4" if sample_format == 3 else "<u4"
    with pytest.raises(Unreadable, match=message) as caught:
        decoded_picture(_tiff(values.astype(kind), bits, sample_format), "RGB")
    assert "8 or 16 bits" in str(caught.value.hint)


def test_pictures_of_a_data_set_are_refused_alike() -> None:
    for values in (GREY.astype(np.float32) * 255, (GREY * 60_000).astype(np.int32)):
        with pytest.raises(Unreadable):
            source_of([(Image.fromarray(values), 0)]).read(0, Preprocessing(3, SIDE, SIDE))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_the_camera_is_applied(orientation: int, form: str) -> None:
    wide = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    wide[: SIDE // 2, :SIDE] = 255  # white where the scene's upper left is
    # Turned as the camera stores it: the inverse of what the orientation asks for, by the EXIF standard's table.
    camera = {
        1: wide,
        2: wide[:, ::-1],
        3: wide[::-1, ::-1],
        4: wide[::-1],
        5: wide.transpose(1, 0, 2),
        6: np.rot90(wide, 1),
        7: wide[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(wide, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded_picture(stored(Image.fromarray(np.ascontiguousarray(camera)), form, exif=exif), "RGB")
    assert found.size == (2 * SIDE, SIDE)
    assert np.abs(np.asarray(found, int) - wide).max() <= 8


def _cmyk_profile() -> bytes | None:
    """A CMYK profile of the machine, where there is one: Pillow carries none."""
    folders = ("/usr/share/color/icc", "/usr/share/ghostscript")
    found = [p for folder in folders for p in Path(folder).rglob("*cmyk*.icc")]
    return found[0].read_bytes() if found else None


def test_cmyk_goes_through_its_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = cmyk()
    asked = []

    class Profile:
        def __init__(self, stream: Any) -> None:
            self.content = stream if isinstance(stream, str) else stream.read()

    def build(source: Any, target: Any, given: str, made: str) -> str:
        asked.append((source.content, target.content, given, made))
        return "transform"

    # No CMYK profile is free to ship, so lcms itself is left out.
    monkeypatch.setattr(ImageCms, "ImageCmsProfile", Profile)
    monkeypatch.setattr(ImageCms, "createProfile", Profile)
    monkeypatch.setattr(ImageCms, "buildTransform", build)
    monkeypatch.setattr(ImageCms, "applyTransform", lambda picture, _: Image.new("RGB", picture.size, (1, 2, 3)))
    found = decoded_picture(stored(image, "TIFF", icc_profile=b"the profile"), "RGB")
    assert asked == [(b"the profile", "sRGB", "CMYK", "RGB")]
    assert found.getpixel((0, 0)) == (1, 2, 3)


def test_cmyk_with_a_real_profile() -> None:
    profile = _cmyk_profile()
    if profile is None:
        pytest.skip("this machine has no CMYK profile")
    paper = Image.new("CMYK", (SIDE, SIDE), (0, 0, 0, 0))
    found = np.asarray(decoded_picture(stored(paper, "JPEG", icc_profile=profile), "RGB"))
    assert found.min() > 230


def test_cmyk_whose_profile_is_broken_is_refused() -> None:
    with pytest.raises(Unreadable, match="CMYK"):
        decoded_picture(stored(cmyk()[0], "TIFF", icc_profile=b"no profile"), "RGB")


def _lab(color: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """CIE Lab under D50 of an sRGB colour (IEC 61966-2-1, Bradford's adaptation as ICC profiles have it)."""
    share = np.array(color) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
    x, y, z = np.cbrt(to_xyz @ linear / np.array([0.96420, 1, 0.82491]))  # none of the colours is near black
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("color", [(200, 60, 90), (60, 160, 70), (90, 100, 220), (255, 255, 255), (128, 128, 128)])
def test_lab(color: tuple[int, ...]) -> None:
    lightness, a, b = np.round(_lab(color))
    image = Image.new("LAB", (SIDE, SIDE))
    image.paste((round(lightness * 2.55), int(a) + 128, int(b) + 128), (0, 0, SIDE, SIDE))
    found = decoded_picture(stored(image, "TIFF"), "RGB").getpixel((0, 0))
    # Lab in 8 bits: half a step of a or b is up to 3 of sRGB here, where a channel is far below the others.
    assert np.abs(np.subtract(found, color)).max() <= 6, (found, color)


def test_hidden_colours_are_not_shown_and_that_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    decoding.note.cache_clear()
    hidden = stored(Image.new("RGBA", (SIDE, SIDE), (255, 0, 0, 0)), "PNG")
    with caplog.at_level(logging.WARNING, "bcos_fx"):
        for _ in range(3):
            hidden.seek(0)
            assert decoded_picture(hidden, "RGB").getpixel((3, 3)) == (255, 255, 255)
    assert [record.getMessage() for record in caplog.records] == [
        "note: images with transparent parts are seen on white"
    ]


# ---------------------------------------------------------------- what is not an image

_EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def _eps(path: Path) -> None:
    path.write_bytes(_EPS)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _bomb(path: Path) -> None:
    """A PNG of few bytes that claims 12,000 × 12,000 pixels."""
    whole = bytearray(stored(Image.new("L", (8, 8)), "PNG").getvalue())
    whole[16:24] = struct.pack(">II", 12_000, 12_000)
    whole[29:33] = struct.pack(">I", zlib.crc32(whole[12:29]))
    path.write_bytes(whole)


def _huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(5 * 2**30)


BAD = (_eps, _fifo, _device, _bomb, _huge)


@pytest.mark.parametrize("maker", BAD, ids=lambda maker: maker.__name__)
def test_what_is_no_image_is_refused(
    maker: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*words: Any, **_: Any) -> None:
        raise AssertionError(f"a program was started: {words}")

    monkeypatch.setattr("subprocess.Popen.__init__", started)
    path = tmp_path / "photo.png"
    maker(path)
    with pytest.raises(Unreadable):
        decoded_picture(io.BytesIO(read_content(path)), "RGB")
    with pytest.raises(Unreadable) as caught:
        open_source(path).read(0, Preprocessing(3, SIDE, SIDE))
    assert str(path) in str(caught.value)


def test_no_other_file_of_the_package_opens_images(root: Path) -> None:
    package = root / "bcos_fx"
    opening = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "Image.open(" in path.read_text() or 'convert("RGB")' in path.read_text()
    }
    assert opening == {"data/decoding.py"}


def test_all_readers_see_the_same_pixels(tmp_path: Path) -> None:
    """Explaining, evaluating and training: one decoder."""
    image, wanted = sixteen_bit()
    (tmp_path / "0").mkdir()
    path = tmp_path / "0" / "a.png"
    image.save(path)
    preprocessing = Preprocessing(3, SIDE, SIDE)
    found = [
        open_source(tmp_path).read(0, preprocessing).image,
        open_source(path).read(0, preprocessing).image,
        Samples(source_of(tmp_path), preprocessing, "none", 0)[0, 0][0],
    ]
    for pixels in found:
        assert np.abs(pixels.permute(1, 2, 0).numpy() - wanted).max() <= 1.5 / 255


def test_damaged_files_are_refused_and_never_end_raw() -> None:
    """Every image of the matrix, cut short and with bytes changed."""
    generator = np.random.default_rng(0)
    for mode, form in CELLS:
        whole = stored(MATRIX[mode][0]()[0], form).getvalue()
        for _ in range(25):
            content = bytearray(whole)
            for place in generator.integers(0, len(whole), 3):
                content[place] = generator.integers(256)
            try:
                decoded_picture(io.BytesIO(bytes(content[: generator.integers(1, len(whole) + 1)])), "RGB")
            except Unreadable:
                pass
