"""The safetensors container: named tensors and one text in a file that holds no code.

Layout: eight bytes with the length of a JSON header (little-endian), the header, the bytes of the tensors without
gaps (https://huggingface.co/docs/safetensors, "Format"). Written and read here, and not with the library of that
name, because it keeps a second copy of all tensors while it writes, and from bytes in memory it returns no metadata.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bcos_fx.budgets import ENTRIES, JSON_BYTES, parse_json
from bcos_fx.errors import ArtifactError

KEY = "bcos_fx"
"""The metadata key that marks a file as one of ours."""

DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""Names of the dtypes in a file."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_HEADER_LIMIT = 100_000_000
_SIZE_LIMIT = 2**63


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: dtype as in :data:`DTYPES`, first and last byte counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Digest:
    """SHA-256 over a text and tensors: their names, dtypes, shapes and bytes."""

    def __init__(self, text: str) -> None:
        self._hash = hashlib.sha256(text.encode())

    def add(self, entry: TensorEntry, content: memoryview) -> None:
        """Take in one tensor."""
        self._hash.update(json.dumps([entry.name, entry.dtype, entry.shape, len(content)]).encode())
        self._hash.update(content)

    def hex(self) -> str:
        """Return the digest as 64 hexadecimal digits."""
        return self._hash.hexdigest()


def lay_out_tensors(tensors: Mapping[str, Tensor]) -> list[TensorEntry]:
    """Return where each tensor goes: wide dtypes first, so that every tensor is aligned, then by name.

    Raises:
        ArtifactError: a tensor's dtype has no place in the file format.
    """
    entries, begin = [], 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])):
        if tensor.dtype not in _NAMES:
            known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _NAMES))
            raise ArtifactError(f"a {tensor.dtype} tensor cannot be stored", where=name, hint=f"store one of {known}")
        end = begin + tensor.numel() * tensor.element_size()
        entries.append(TensorEntry(name, _NAMES[tensor.dtype], tuple(tensor.shape), begin, end))
        begin = end
    return entries


def content_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, without copying them."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def write(stream: BinaryIO, text: str, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors on the CPU and a text that :data:`KEY` marks."""
    entries = lay_out_tensors(tensors)
    header: dict[str, Any] = {_METADATA: {KEY: text}}
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [entry.begin, entry.end]}
    encoded = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    stream.write(struct.pack("<Q", len(encoded)))
    stream.write(encoded)
    for entry in entries:
        stream.write(content_of(tensors[entry.name]))


class Container:
    """An open file, its header read and checked; reads tensors one at a time, in the order of the file.

    Args:
        stream: open for reading, and seekable; it must stay open.

    Attributes:
        text: what :data:`KEY` marks.
        entries: the tensors, in the order of their bytes.
        size: of the file, in bytes.

    Raises:
        ArtifactError: it is not a safetensors file, it is cut off, or bcos_fx did not write it.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = stream.seek(0, 2)
        header = self._header()
        metadata = header.pop(_METADATA, {})
        text = metadata.get(KEY) if isinstance(metadata, dict) else None
        if not isinstance(text, str):
            raise ArtifactError(
                "this is a safetensors file, but none that bcos_fx wrote",
                hint="if it holds a model's weights, convert it first: bcos-fx convert FILE --arch ...",
            )
        self.text = text
        ENTRIES.check(len(header), "the file's header", ArtifactError)
        entries = [_entry(name, value) for name, value in header.items()]
        self.entries = tuple(sorted(entries, key=lambda entry: (entry.begin, entry.end, entry.name)))
        self._check_layout()

    def _header(self) -> dict[str, Any]:
        self._stream.seek(0)
        start = self._stream.read(8)
        length = int.from_bytes(start, "little")
        if not start:
            raise ArtifactError("the file is empty", hint="copy or save it again")
        # The format's own limit on headers: what begins with a larger number is something else.
        if len(start) < 8 or length > _HEADER_LIMIT or self._stream.read(1) != b"{":
            raise ArtifactError(
                "this is not a safetensors file", hint="if it is a checkpoint, convert it first with bcos_fx.bcosify"
            )
        self._data = 8 + length
        if self._data > self.size:
            raise cut_off_error(self._data, self.size)
        JSON_BYTES.check(length, "the file's header", ArtifactError)
        self._stream.seek(8)
        header = parse(self._stream.read(length))
        if not isinstance(header, dict):
            raise ArtifactError("the file's header is damaged: it is not a JSON object", hint="copy or save it again")
        return header

    def _check_layout(self) -> None:
        expected = 0
        for entry in self.entries:
            if entry.begin != expected:
                raise ArtifactError("the tensors in the file overlap or leave gaps", where=f"tensor {entry.name!r}")
            expected = entry.end
        if self._data + expected > self.size:
            raise cut_off_error(self._data + expected, self.size)
        if self._data + expected < self.size:
            raise ArtifactError(f"{self.size - self._data - expected} bytes too many follow the tensors in the file")

    def tensors(self, digest: Digest) -> Iterator[tuple[TensorEntry, Tensor]]:
        """Read the tensors one by one, adding each to the digest."""
        self._stream.seek(self._data)
        for entry in self.entries:
            tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="cpu")
            content = content_of(tensor)
            # BinaryIO does not declare readinto, which fills the tensor without a copy; files and BytesIO have it.
            if self._stream.readinto(content) != len(content):  # type: ignore[attr-defined]
                raise cut_off_error(self._data + entry.end, self.size)
            digest.add(entry, content)
            yield entry, tensor


def cut_off_error(expected: int, size: int) -> ArtifactError:
    """Return the error for a file that ends early."""
    return ArtifactError(
        f"the file is cut off: it has {size} bytes and should have at least {expected}", hint="copy or save it again"
    )


def parse(text: str | bytes) -> Any:
    """Read strict JSON: no NaN, no key twice, no nesting or number beyond reason.

    Raises:
        ArtifactError: it is not strict JSON, or exceeds a budget.
    """
    try:
        options: dict[str, Any] = {"object_pairs_hook": _once, "parse_constant": _refuse_constant}
        value = parse_json(text, "the file's header", ArtifactError, **options)
        # JSON can spell halves of surrogate pairs ("\ud800"), which no file or terminal can hold: encoding fails.
        if "\\ud" in text.lower() if isinstance(text, str) else b"\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"the file's header is damaged: {error}", hint="copy or save it again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Which of two equal keys counts differs between readers of JSON, so that a file could say two things.
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return content


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _entry(name: str, value: object) -> TensorEntry:
    keys = {"dtype", "shape", "data_offsets"}
    if not isinstance(value, dict) or set(value) != keys or value["dtype"] not in list(DTYPES):
        raise ArtifactError("the file's header is damaged: a tensor has no dtype or place", where=f"tensor {name!r}")
    shape, offsets = value["shape"], value["data_offsets"]
    if not (_naturals(shape) and _naturals(offsets) and len(offsets) == 2):
        raise ArtifactError("the file's header is damaged: a shape or place is not a number", where=f"tensor {name!r}")
    width = DTYPES[value["dtype"]].itemsize
    # torch multiplies the dimensions of an empty tensor too, for its strides.
    if math.prod(max(side, 1) for side in shape) * width >= _SIZE_LIMIT:
        raise ArtifactError("a tensor is larger than any memory", where=f"tensor {name!r}")
    # With the check of the layout this bounds what is allocated by the size of the file itself.
    if offsets[1] - offsets[0] != math.prod(shape) * width:
        raise ArtifactError(f"a tensor's place does not fit its shape {tuple(shape)}", where=f"tensor {name!r}")
    return TensorEntry(name, value["dtype"], tuple(shape), *offsets)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
