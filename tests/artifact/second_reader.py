"""A second reader of the file format, written from docs/format.md alone: it imports nothing of bcos_fx.

It checks the container, the checksum and the grammar, and returns what a program would build a network from.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from typing import Any

WIDTHS = {"BF16": 2, "BOOL": 1, "F16": 2, "F32": 4, "F64": 8, "F8_E4M3": 1, "F8_E5M2": 1}
WIDTHS |= {"I16": 2, "I32": 4, "I64": 8, "I8": 1, "U8": 1}
CONTAINERS = {"tuple", "size", "dict", "slice", "complex"}
WORDS = {"float", "dtype", "memory_format", "device", "layout"}
KINDS = {"placeholder", "get_attr", "call_module", "call_function", "call_method", "output"}
META = {"was", "source", "text", "module_path", "module_type", "origin", "type", "rules", "shape", "dtype", "value"}
META |= {"training_argument", "training_value"}


def read(data: bytes) -> dict[str, Any]:
    """Return the document of a file with ``tensors`` (key -> header entry); ValueError if it breaks the grammar."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    (text,) = header.pop("__metadata__").values()
    document = json.loads(text)
    tensors = sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0]))
    _check_tensors(tensors, len(data) - 8 - length)
    _check_sum(document, tensors, data[8 + length :])
    own = {"ops"} if document["format"] == 3 or (document["format"] == 4 and "ops" in document) else set()
    _expect(
        set(document) == {"format", "versions", "sha256", "modules", "nodes", "record"} | own, "keys of the document"
    )
    _expect(document["format"] in (1, 2, 3, 4), "format")
    paths = _check_modules(document["modules"], header)
    _check_nodes(document["nodes"], paths)
    _check_value(document["record"], set())
    return document | {"tensors": header}


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)


def _check_tensors(tensors: list[Any], size: int) -> None:
    end = 0
    for _, entry in tensors:
        _expect(entry["data_offsets"][0] == end, "no gaps")
        end = entry["data_offsets"][1]
        _expect(end - entry["data_offsets"][0] == math.prod(entry["shape"]) * WIDTHS[entry["dtype"]], "size")
    _expect(end == size, "the whole file")


def _check_sum(document: dict[str, Any], tensors: list[Any], content: bytes) -> None:
    sealed = {key: value for key, value in document.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(sealed, sort_keys=True, separators=(",", ":")).encode())
    for key, entry in tensors:
        begin, end = entry["data_offsets"]
        digest.update(json.dumps([key, entry["dtype"], entry["shape"], end - begin]).encode())
        digest.update(content[begin:end])
    _expect(digest.hexdigest() == document["sha256"], "checksum")


def _check_modules(modules: list[Any], tensors: dict[str, Any]) -> set[str]:
    paths: set[str] = set()
    for module in modules:
        path = module["path"]
        _expect(path.rpartition(".")[0] in paths or not paths, "parents first")
        _expect(path not in paths, "once")
        if "same" in module:
            _expect(set(module) == {"path", "same"} and module["same"] in paths, "same as an earlier one")
        else:
            _expect(set(module) == {"path", "class", "options", "training", "parameters", "buffers"}, "keys")
            for name, value in module["options"]:
                _expect(isinstance(name, str), "options")
                _check_value(value, set())
            for tensor in (*module["parameters"], *module["buffers"]):
                _expect(tensor["key"] is None or tensor["key"] in tensors, "a tensor of the file")
                paths.add(f"{path}.{tensor['name']}" if path else tensor["name"])
        paths.add(path)
    return paths


def _check_nodes(nodes: list[Any], paths: set[str]) -> None:
    known: set[str] = set()
    for node in nodes:
        _expect(set(node) == {"name", "kind", "op", "target", "args", "kwargs", "meta"}, "keys of a node")
        _expect(node["kind"] in KINDS and node["name"].isidentifier() and node["name"] not in known, "name, kind")
        if node["kind"] in ("call_module", "get_attr"):
            _expect(node["target"] in paths or _below_shared(node["target"], paths), "a path of the file")
        for value in (*node["args"], *(value for _, value in node["kwargs"])):
            _check_value(value, known)
        _expect(set(node["meta"]) <= META, "meta")
        for value in node["meta"].values():
            _check_value(value, set())
        known.add(node["name"])
    _expect([node["kind"] for node in nodes].count("output") == 1 and nodes[-1]["kind"] == "output", "one output")


def _below_shared(path: str, paths: set[str]) -> bool:
    """A path below a module that is the same as another: its parts are not listed again."""
    return any(path.startswith(f"{above}.") for above in paths if above)


def _check_value(value: Any, nodes: set[str], depth: int = 0) -> None:
    _expect(depth <= 32, "depth")
    if isinstance(value, list):
        for item in value:
            _check_value(item, nodes, depth + 1)
    elif isinstance(value, dict):
        ((tag, content),) = value.items()
        if tag == "node":
            _expect(content in nodes, "an earlier node")
        elif tag in CONTAINERS:
            _check_value(content, nodes, depth + 1)
        elif tag[0].isupper():
            for item in content.values():
                _check_value(item, nodes, depth + 1)
        else:
            _expect(tag in WORDS or (tag == "ellipsis" and content is None), "tag")
