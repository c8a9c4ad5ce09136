"""Mutations of artifacts that know the format: any field may change, and the checksum fits again."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tests.artifact.making import closed, opened, tampered

Path = tuple[Any, ...]

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    4096,
    2**31,
    2**62,
    2**63,
    -(2**63),
    10**30,
    0.0,
    -0.0,
    0.5,
    1e-300,
    1e300,
    True,
    False,
]
TEXTS = [
    "", "x", "input", "output", "node", "self", "root", "forward", "__class__", "__globals__", "\uff46orward", "\u00b5",
    "a.b", "..", "../x", "/dev/null", "\x1b[31m", "\u202eabc", "\ud800", "\x00", "a" * 5000, "relu", "conv",
    "getattr", "nn.Conv2d", "bcos.BcosConv2d", "torch.load", "operator.pow", "eval", "refuse", "float32", "cpu", "meta",
    "cuda:99",
]  # fmt: skip
TAGS = ["tuple", "dict", "size", "slice", "dtype", "device", "float", "node", "ellipsis", "memory_format", "Report"]
DTYPES = ["F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E5M2", "Q4", ""]


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where anything stands in a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def made(random_: random.Random, depth: int = 0) -> Any:
    """Some value that a field might hold."""
    kind = random_.randrange(8 if depth < 3 else 4)
    if kind <= 1:
        return random_.choice(NUMBERS)
    if kind == 2:
        return random_.choice(TEXTS)
    if kind == 3:
        return None
    items = [made(random_, depth + 1) for _ in range(random_.randrange(4))]
    if kind == 4:
        return items
    if kind == 5:
        return {random_.choice(TAGS): items}
    if kind == 6:
        return {random_.choice(TAGS): made(random_, depth + 1)}
    return {random_.choice(TEXTS): item for item in items}


def _nudged(random_: random.Random, value: Any) -> Any:
    """A value of the same type, near or far."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return random_.choice([value + 1, value - 1, -value, value * 2, value * 10**6, 0, *NUMBERS])
    if isinstance(value, str):
        position = random_.randrange(len(value) + 1)
        return random_.choice([value[:position], value + random_.choice(TEXTS), value[::-1], value.upper(), value * 2])
    return made(random_)


def mutated(data: bytes, seed: int) -> bytes:
    """Change a few fields of an artifact's description, or its container, by a seed."""
    random_ = random.Random(seed)
    if random_.random() < 0.15:
        return _container(data, random_)

    def change(document: Any) -> None:
        for _ in range(random_.choice([1, 1, 1, 2, 3])):
            _field(document, random_)

    return tampered(data, change)


def _field(document: Any, random_: random.Random) -> None:
    # A section first: the record has far more fields than the graph, and would have nearly all mutations.
    section = random_.choice(["nodes", "nodes", "modules", "modules", "record", "record", None])
    found = [path for path in places(document) if path and (section is None or path[0] == section)]
    if not found:
        return
    path = random_.choice(found)
    parent, key = at(document, path[:-1]), path[-1]
    _CHANGES[random_.randrange(len(_CHANGES))](random_, document, parent, key)


def _replace(random_: random.Random, document: Any, parent: Any, key: Any) -> None:
    parent[key] = made(random_)


def _nudge(random_: random.Random, document: Any, parent: Any, key: Any) -> None:
    parent[key] = _nudged(random_, parent[key])


def _borrow(random_: random.Random, document: Any, parent: Any, key: Any) -> None:
    """Put what stands elsewhere under the same key, or anywhere, here."""
    alike = [path for path in places(document) if path and (path[-1] == key or random_.random() < 0.02)]
    parent[key] = copy.deepcopy(at(document, random_.choice(alike)))


def _delete(random_: random.Random, document: Any, parent: Any, key: Any) -> None:
    del parent[key]


def _repeat(random_: random.Random, document: Any, parent: Any, key: Any) -> None:
    if isinstance(parent, list):
        parent.insert(random_.randrange(len(parent) + 1), copy.deepcopy(parent[key]))
    else:
        parent[random_.choice(TEXTS)] = copy.deepcopy(parent[key])


def _shuffle(random_: random.Random, document: Any, parent: Any, key: Any) -> None:
    if isinstance(parent[key], list):
        random_.shuffle(parent[key])
    else:
        _nudge(random_, document, parent, key)


_CHANGES: list[Callable[[random.Random, Any, Any, Any], None]] = [
    _replace, _nudge, _nudge, _borrow, _borrow, _delete, _repeat, _shuffle,
]  # fmt: skip


def _container(data: bytes, random_: random.Random) -> bytes:
    """Change the tensors' entries in the header, the text as a whole, or single bytes."""
    kind = random_.randrange(4)
    if kind == 0:
        broken = bytearray(data)
        broken[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        return bytes(broken)
    if kind == 1:
        return data[: random_.randrange(len(data))]
    header, document, content = opened(data)
    if kind == 2:
        name = random_.choice([name for name in header if name != "__metadata__"])
        entry = header[name]
        field = random_.choice(list(entry))
        entry[field] = random_.choice([random_.choice(DTYPES), made(random_), _nudged(random_, entry[field])])
        return closed(header, content)
    text = json.dumps(document)
    position = random_.randrange(len(text))
    header["__metadata__"]["bcos_fx"] = text[:position] + random_.choice(TEXTS) + text[position + 1 :]
    return closed(header, content)
