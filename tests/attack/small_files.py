"""Small files that describe something huge, each made by a function of (path)."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Maker = Callable[[Path], None]
_DOUBLINGS = 40


def _archive(path: Path, data: bytes, **storages: bytes) -> None:
    """A file as torch.save writes it, of this pickle and these storages."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
        for name, content in storages.items():
            archive.writestr(f"a/data/{name.strip('_')}", content)


def _nested_tuple(use: bytes) -> bytes:
    """A pickle in which a tuple that doubles at each level is used as ``use`` says: it stands on top of the stack."""
    content = b"\x80\x02)q\x000"
    for number in range(_DOUBLINGS):
        content += b"h%ch%c\x86q%c0" % (number, number, number + 1)
    return content + use.replace(b"TUPLE", b"h%c" % _DOUBLINGS) + b"."


def tuple_as_key(path: Path) -> None:
    _archive(path, _nested_tuple(b"}TUPLEK\x01s"))


def tuple_as_key_legacy(path: Path) -> None:
    headers = b"".join(pickle.dumps(v, protocol=2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes(headers + _nested_tuple(b"}TUPLEK\x01s") + pickle.dumps([], protocol=2))


def tuple_as_key_plain(path: Path) -> None:
    path.write_bytes(_nested_tuple(b"}TUPLEK\x01s"))


def tuple_in_a_set(path: Path) -> None:
    _archive(path, _nested_tuple(b"cbuiltins\nset\n]TUPLEa\x85R"))


def tuple_as_storage_key(path: Path) -> None:
    _archive(path, _nested_tuple(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nTUPLEX\x03\x00\x00\x00cpuK\x01tQ"))


def tuple_as_global(path: Path) -> None:
    path.write_bytes(b"\x80\x04" + _nested_tuple(b"TUPLETUPLE\x93")[2:])


def keys_of_one_hash(path: Path) -> None:
    """Integers that all have the hash 0, so that a dict of them takes the square of their number."""
    keys = b"".join(
        b"\x8a\x0a" + ((2**61 - 1) * n).to_bytes(10, "little", signed=True) + b"K\x01" for n in range(60_000)
    )
    _archive(path, b"\x80\x02}(" + keys + b"u.")


def many_steps(path: Path) -> None:
    _archive(path, b"\x80\x02" + b"]0" * (120 * 2**20) + b"].")


def bytearray_of_nothing(path: Path) -> None:
    _archive(
        path, b"\x80\x02}X\x01\x00\x00\x00acbuiltins\nbytearray\n\x8a\x05" + (2**36).to_bytes(5, "little") + b"\x85Rs."
    )


def tensor_of_nothing(path: Path) -> None:
    _archive(path, b"\x80\x02}X\x08\x00\x00\x00a.weightctorch\nFloatTensor\nJ\x00\x00\x00\x70\x85Rs.")


def expanded(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(3_000_000_000)}, path)


def expanded_beyond_memory(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1).expand(10**13)}, path)


def expanded_many_times(path: Path) -> None:
    one = torch.zeros(1)
    torch.save({f"fc{n}.weight": one.expand(2**20, 1 + n) for n in range(100)}, path)


def deflated(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(64)}, path)
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                data = data.replace(b"K@", b"J\x00\x00\x00\x10")
            if not name.endswith("data/0"):
                new.writestr(name, data)
            else:
                with new.open(name, "w", force_zip64=True) as stream:
                    for _ in range(1024):
                        stream.write(bytes(2**20))


def many_members(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(210_000):
            archive.writestr(f"a/{number}", b"")


def sparse_pickle(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(b"\x80\x04\x8e" + (5 * 2**30).to_bytes(8, "little"))
        stream.truncate(5 * 2**30 + 100)


def contains_itself(path: Path) -> None:
    held: dict[str, Any] = {}
    held["model"] = held
    torch.save(held, path)


def contains_itself_in_many_ways(path: Path) -> None:
    held: dict[str, Any] = {}
    held |= dict.fromkeys(("model", "net", "state_dict", "network", "module", "weights", "params", "ema"), held)
    torch.save(held, path)


def deep_lists(path: Path) -> None:
    _archive(path, b"\x80\x02" + b"](" * 400_000 + b"e" * 400_000 + b".")


def _safetensors(path: Path, header: bytes, size: int = 0) -> None:
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)


def long_header(path: Path) -> None:
    entry = b'"%08d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
    _safetensors(path, b"{" + b"".join(entry % n for n in range(1_700_000))[:-1] + b"}")


def header_of_empty_objects(path: Path) -> None:
    _safetensors(path, b'{"__metadata__":{"bcos_fx":[' + b'{"":0},' * 4_000_000 + b"0]}}")


def artifact_text_of_empty_objects(path: Path) -> None:
    text = '{"format":1,"modules":[' + '{"":0},' * 4_000_000 + "0]}"
    _safetensors(path, json.dumps({"__metadata__": {"bcos_fx": text}}).encode())


MAKERS: tuple[Maker, ...] = (
    tuple_as_key,
    tuple_as_key_legacy,
    tuple_as_key_plain,
    tuple_in_a_set,
    tuple_as_storage_key,
    tuple_as_global,
    keys_of_one_hash,
    many_steps,
    bytearray_of_nothing,
    tensor_of_nothing,
    expanded,
    expanded_beyond_memory,
    expanded_many_times,
    deflated,
    many_members,
    sparse_pickle,
    contains_itself,
    contains_itself_in_many_ways,
    deep_lists,
    long_header,
    header_of_empty_objects,
    artifact_text_of_empty_objects,
)

# Whose contents are no weights, which is what the error says.
HARMLESS = (tuple_as_global, keys_of_one_hash, contains_itself, contains_itself_in_many_ways, deep_lists)
