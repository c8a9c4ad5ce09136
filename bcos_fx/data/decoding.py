"""The one decoder of photographs: any stored image to 8 bits per channel, RGB or gray.

Every mode has one stated range, and an image whose range is not known is refused: Pillow's own conversion shows 16-bit
gray as white and floating point as black. Transparent images are seen on white, the orientation of a camera is
applied, CMYK goes through its own color profile, and Lab through lcms's. The color profiles of RGB images are not
applied, as training pipelines do not.

Only the formats named here are opened. Pillow decides by content and not by name, and one of its formats starts another
program (Ghostscript, for EPS).
"""

from __future__ import annotations

import functools
import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from bcos_fx.budgets import IMAGE_BYTES, PIXELS
from bcos_fx.data.dicom import dicom_picture, frame_count, is_dicom
from bcos_fx.errors import BcosFxError
from bcos_fx.escaping import shown_in_a_line
from bcos_fx.files import kind_of_special

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Pillow's names of the formats that are opened."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif", ".dcm")
"""How the names of images end; what a file is, its content decides."""

BROKEN = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises on purpose for files that are not an image that it can read."""

# What its plugins also raise where a file is damaged in a way that they did not foresee.
_DAMAGED = (*BROKEN, ArithmeticError, EOFError, LookupError, RuntimeError, TypeError, struct.error, zlib.error)

_ANIMATED = ("GIF", "WEBP", "PNG")
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_KIND, _TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES = 254, 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2
# How far apart the grays of 2 and 4 bits are in 8 bits.
_PACKED_GRAYS = {"L;2": 85, "L;4": 17}
_SINGLE_HINT = "store it with 8 or 16 bits per channel"


class Unreadable(BcosFxError):
    """One image of many cannot be read; the others can."""


def read_content(path: Path, offset: int = 0, size: int | None = None) -> bytes:
    """Read the bytes of one image.

    Raises:
        Unreadable: it is not a regular file, too large, or cannot be read.
    """
    try:
        status = path.stat()
        special = kind_of_special(status)
        if special is not None:
            raise Unreadable(f"this is {special}, not an image", where=str(path), hint="name a file")
        length = status.st_size - offset if size is None else size
        IMAGE_BYTES.check(length, "the image", Unreadable, str(path))
        with path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(length)
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error.strerror}", where=str(path)) from error


def frames_of(path: Path) -> list[int]:
    """Return which images a file holds: pages of a TIFF but for thumbnails, frames of a DICOM file, one of others."""
    if path.suffix.lower() not in (".tif", ".tiff", ".dcm"):
        return [0]
    try:
        with warnings.catch_warnings(), path.open("rb") as stream:
            warnings.simplefilter("ignore")
            if is_dicom(stream):
                return list(range(frame_count(stream)))
            with Image.open(stream, formats=("TIFF",)) as opened:
                pages = list(range(getattr(opened, "n_frames", 1)))
                return [page for page in pages if not page or _is_page(opened, page)]
    except _DAMAGED:  # reported where it is read
        return [0]


def _is_page(opened: Image.Image, page: int) -> bool:
    opened.seek(page)
    return not int(_tag(opened, _TIFF_KIND) or 0) & 1


def decoded_picture(stream: BinaryIO, mode: str, frame: int = 0) -> Image.Image:
    """Decode one image file in mode ``L`` or ``RGB``, upright.

    Args:
        stream: the file.
        mode: of the picture.
        frame: which of :func:`frames_of`.

    Raises:
        Unreadable: the stream holds no image of a known format, or its values have no known range.
        MissingExtraError: it is a DICOM file, and pydicom is not installed.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes that the budget below decides about, and of metadata that is not read here.
            warnings.simplefilter("ignore")
            if is_dicom(stream):
                return in_mode(dicom_picture(stream, frame, Unreadable), mode)
            with Image.open(stream, formats=FORMATS) as opened:
                if frame:
                    opened.seek(frame)
                elif opened.format in _ANIMATED and _moves(opened):
                    note("of an animation (GIF, WebP, PNG) the first picture is taken, and the others are not")
                PIXELS.check(opened.width * opened.height, "the image", Unreadable)
                packed = _PACKED_GRAYS.get(str(opened.tile[0][3])) if opened.tile else None
                opened.load()
                if packed is not None and isinstance(opened.info.get("transparency"), int):
                    opened.info["transparency"] *= packed  # Pillow spreads the grays, and not the one that is clear
                return _upright(in_mode(opened, mode), opened)
    except Unreadable:
        raise
    except _DAMAGED as error:
        # Pillow names the stream by its place in memory, and the same run has to give the same results.
        known = ", ".join(FORMATS)
        reason = f"no image of a known kind ({known})" if isinstance(error, UnidentifiedImageError) else error
        raise Unreadable(f"the image cannot be read: {reason}") from error


def _moves(opened: Image.Image) -> bool:
    """Whether a file holds more than one picture; what is wrong with the second is no reason to leave the first out."""
    try:
        return bool(getattr(opened, "is_animated", False))
    except _DAMAGED:
        return False


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Return a picture in mode ``L`` or ``RGB``: its values scaled from their range, seen on white.

    Raises:
        Unreadable: its values have no known range.
    """
    if image.mode in ("L", "RGB") and _tag(image, _TIFF_SAMPLES) == _SIGNED:
        raise Unreadable("the image holds signed 8-bit integers, which have no known range", hint=_SINGLE_HINT)
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image if image.mode == mode else image.convert(mode)
    return _as_gray_or_rgb(image).convert(mode)


def _as_gray_or_rgb(image: Image.Image) -> Image.Image:
    """Return a picture in ``L`` or ``RGB``."""
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return _on_white(image)
    if image.mode == "CMYK":
        profile = image.info.get("icc_profile")
        return _through_profiles(image, "CMYK", profile) if profile else image.convert("RGB")
    if image.mode == "LAB":
        return _through_profiles(image, "LAB", None)
    if image.mode not in ("1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV"):
        raise Unreadable(f"the image has the mode {image.mode}, which is not known", hint="store it as RGB")
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    whole = image.convert("RGBA")
    if whole.getchannel("A").getextrema() != (255, 255):
        note("images with transparent parts are seen on white")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


def _scaled(image: Image.Image) -> Image.Image:
    """Return single-channel pictures of more than 8 bits in ``L``."""
    values = np.asarray(image)
    shares = _shares_of_float(values) if image.mode == "F" else _shares_of_integers(image, values)
    if _tag(image, _TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shares = 1 - shares
    key = image.info.get("transparency")
    if isinstance(key, int):
        shares = np.where(values == key, 1.0, shares)
    return Image.fromarray((shares * 255 + 0.5).astype(np.uint8))


def _shares_of_float(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if not np.isfinite(values).all():
        raise Unreadable("the image holds NaN or infinity", hint=_SINGLE_HINT)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise Unreadable(
            f"the image holds floating-point values from {low:.4g} to {high:.4g}, and they are taken in [0, 1]",
            hint=f"scale it to [0, 1], or {_SINGLE_HINT}",
        )
    return values.astype(np.float64)


def _shares_of_integers(image: Image.Image, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return integers as shares of the largest that their format can hold."""
    bits = _bits(image)
    signed = _tag(image, _TIFF_SAMPLES) == _SIGNED
    if bits == 32 and not signed:
        values = values.astype(np.int64) & 0xFFFFFFFF
    elif int(values.min()) < 0:
        raise Unreadable("the image holds negative values, which have no known range", hint=_SINGLE_HINT)
    largest = 2 ** (bits - signed) - 1
    high = int(values.max())
    # Few programs use all of 32 bits: values that leave the upper byte empty are of another, unknown range.
    if bits == 32 and 0 < high < largest >> 8:
        raise Unreadable(
            f"the image holds 32-bit integers, and none is above {high:,} of {largest:,}: their range is not known",
            hint=_SINGLE_HINT,
        )
    shares: np.ndarray[Any, Any] = values.astype(np.float64) / largest
    return shares


def _bits(image: Image.Image) -> int:
    tag = _tag(image, _TIFF_BITS)
    if tag is not None:
        return int(tag)
    # PNG and PPM hold at most 16 bits, whichever of its modes Pillow shows them in.
    return 16 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else 32


def _tag(image: Image.Image, number: int) -> Any:
    """Return a TIFF tag's first value, or None if the tag is absent."""
    value = getattr(image, "tag_v2", {}).get(number)
    return value[0] if isinstance(value, tuple) and value else value


def _through_profiles(image: Image.Image, mode: str, profile: bytes | None) -> Image.Image:
    try:
        from PIL import ImageCms

        profile_in = ImageCms.createProfile("LAB") if profile is None else ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(profile_in, ImageCms.createProfile("sRGB"), mode, "RGB")
        converted = ImageCms.applyTransform(image, transform)
    except (ImportError, OSError, ValueError, TypeError, ImageCms.PyCMSError) as error:
        raise Unreadable(
            f"the colors of the image ({mode}) cannot be converted: {error}", hint="store it as RGB"
        ) from error
    assert converted is not None  # which only a transform in place returns
    return converted


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Turn a picture as its camera was held."""
    try:
        turned = _UPRIGHT.get(opened.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:  # what is wrong with the metadata of a sound image is no reason to leave it out
        return image
    return image if turned is None else image.transpose(turned)


@functools.cache
def note(text: str) -> None:
    """Log a note for the user, once, without what a terminal would obey: names of files may be in it."""
    logging.getLogger("bcos_fx").warning("note: %s", shown_in_a_line(text))
