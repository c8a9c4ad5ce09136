"""DICOM files (.dcm) as pictures of 8 bits. Imports pydicom, an extra, where one is read.

The range of the values is the one that the file states: its window (PS3.3, C.11.2.1.2, linear), or all of the stored
bits of unsigned values that are not rescaled. Where neither holds the image is refused, as any image is whose range is
not known.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from bcos_fx.budgets import PIXELS
from bcos_fx.errors import BcosFxError
from bcos_fx.lazy import library

_DEFLATED = b"1.2.840.10008.1.2.1.99"  # compressed as a whole: what it unpacks to is known only afterwards


def is_dicom(stream: BinaryIO) -> bool:
    """Return whether a stream begins as DICOM files do; it is at its beginning afterwards."""
    head = stream.read(132)
    stream.seek(0)
    return head[128:] == b"DICM"


def frame_count(stream: BinaryIO) -> int:
    """Return how many images a DICOM file holds.

    Raises:
        MissingExtraError: pydicom is not installed.
    """
    return int(getattr(_dataset(stream, ValueError, pixels=False), "NumberOfFrames", 1) or 1)


def dicom_picture(stream: BinaryIO, frame: int, error: type[BcosFxError]) -> Image.Image:
    """Return one image of a DICOM file, in mode ``L`` or ``RGB``.

    Raises:
        BcosFxError: of the class ``error``: it holds no image, or values of no known range.
        MissingExtraError: pydicom is not installed.
    """
    dataset = _dataset(stream, error)
    try:
        PIXELS.check(int(dataset.Rows) * int(dataset.Columns), "the image", error)
        kind = str(dataset.PhotometricInterpretation)
        values = library("pydicom.pixels", "dicom", "reading DICOM files").pixel_array(dataset, index=frame)
        if values.ndim == 3:
            return Image.fromarray(_bytes(values / (2 ** int(dataset.BitsStored) - 1)))
        if kind not in ("MONOCHROME1", "MONOCHROME2"):
            raise error(f"the image is stored as {kind}, which is not read", hint="store it as MONOCHROME2 or RGB")
        shares = _shares(dataset, values.astype(np.float64), error)
    except (AttributeError, ArithmeticError, EOFError, LookupError, RuntimeError, TypeError, ValueError) as reason:
        raise error(f"the DICOM image cannot be read: {reason}") from reason
    return Image.fromarray(_bytes(1 - shares if kind == "MONOCHROME1" else shares))


def _dataset(stream: BinaryIO, error: type[Exception], *, pixels: bool = True) -> Any:
    pydicom = library("pydicom", "dicom", "reading DICOM files")
    if _DEFLATED in stream.read(2048):
        raise error("the DICOM file is compressed as a whole")
    stream.seek(0)
    return pydicom.dcmread(stream, stop_before_pixels=not pixels)


def _shares(dataset: Any, values: np.ndarray[Any, Any], error: type[BcosFxError]) -> np.ndarray[Any, Any]:
    """Return gray values as shares in [0, 1] of the range that the file states."""
    slope, intercept = float(getattr(dataset, "RescaleSlope", 1)), float(getattr(dataset, "RescaleIntercept", 0))
    center, width = (np.atleast_1d(getattr(dataset, name, np.nan))[0] for name in ("WindowCenter", "WindowWidth"))
    if np.isfinite(float(center)) and float(width) > 1:
        shown = (values * slope + intercept - (float(center) - 0.5)) / (float(width) - 1) + 0.5
        clipped: np.ndarray[Any, Any] = shown.clip(0, 1)
        return clipped
    if (slope, intercept) != (1, 0) or int(dataset.PixelRepresentation):
        raise error("no window says which values of the DICOM image are black and white", hint="store it with a window")
    shares: np.ndarray[Any, Any] = values / (2 ** int(dataset.BitsStored) - 1)
    return shares


def _bytes(shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (shares.clip(0, 1) * 255 + 0.5).astype(np.uint8)
