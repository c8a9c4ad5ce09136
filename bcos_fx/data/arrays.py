"""NumPy arrays as images: read within a budget, and brought to (C, H, W) where their shape leaves no choice."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bcos_fx.budgets import ARRAY_BYTES
from bcos_fx.data.decoding import Unreadable
from bcos_fx.errors import BcosFxError

ARRAY_MAGIC = b"\x93NUMPY"
"""What a file of one array (.npy) begins with."""
_CHANNELS = (1, 3)
_LAYOUT = "store (H, W), (H, W, 3) or (3, H, W)"


def array_header(stream: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of the array that a stream begins with; the stream is behind the header afterwards.

    Raises:
        ValueError: it begins with no array.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def read_array(stream: Any, name: str, error: type[BcosFxError], where: str | None = None) -> np.ndarray[Any, Any]:
    """Read an array of plain numbers or texts; nothing in it is executed.

    Raises:
        BcosFxError: of the class ``error``: the stream holds none, it holds Python objects, or it is too large.
    """
    try:
        start = stream.tell()
        shape, dtype = array_header(stream)
        # numpy allocates what the header claims before it reads.
        ARRAY_BYTES.check(math.prod(shape) * dtype.itemsize, f"the array {name!r}", error, where)
        stream.seek(start)
        array: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError) as reason:
        raise error(f"the array {name!r} cannot be read: {reason}", where=where, hint="write it with numpy.save") from (
            reason
        )
    return array


def image_of_array(values: np.ndarray[Any, Any], *, sample: bool = False) -> Tensor:
    """Return an array as a tensor (C, H, W).

    Args:
        values: (H, W), (H, W, 1 or 3) or (1 or 3, H, W).
        sample: other shapes stand for samples that are not images, and are taken as they are.

    Raises:
        Unreadable: the shape is another one or leaves open where the channels are, or no numbers are held.
    """
    if values.dtype.kind not in "biuf":
        hint = "store bytes (uint8), or numbers in [0, 1]"
        raise Unreadable(f"the array holds {values.dtype} values, which are not an image's", hint=hint)
    shape = values.shape
    if values.ndim == 3 and shape[0] in _CHANNELS and shape[2] in _CHANNELS:
        raise Unreadable(f"the array has the shape {shape}: which dimension holds the channels is open", hint=_LAYOUT)
    if values.ndim == 3 and shape[2] in _CHANNELS:
        values = np.moveaxis(values, 2, 0)
    elif not sample and values.ndim == 2:
        values = values[None]
    elif not sample and not (values.ndim == 3 and shape[0] in _CHANNELS):
        hint = _LAYOUT + "; a file of many, (N, 3, H, W), is named alone and not with its folder"
        raise Unreadable(f"the array has the shape {shape}, which is not that of one image", hint=hint)
    # A file that is mapped into memory cannot be written to, and torch takes the byte order of the machine.
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("=")))
