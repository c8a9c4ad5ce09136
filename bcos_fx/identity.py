"""What tells images and networks from others: digests that are kept with results, and compared before a run goes on."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, fx, nn

# Contents up to this many bytes are read whole, in part of a second; of larger ones this many images, evenly spread.
_WHOLE = 2**28
_SAMPLE = 1024
_ITEMS = 16  # of a data set, whose items may cost anything to read
_LONGEST = 60
# What Python prints an object as holds its address, which is another one in every process.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def digest_of(parts: Iterable[Any]) -> str:
    """Return the SHA-256 of a sequence of bytes, or of objects that support the buffer protocol."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def digest_of_data(value: object) -> str:
    """Return the SHA-256 of plain data."""
    return digest_of([json.dumps(value, sort_keys=True).encode()])


def counts(labels: Sequence[int], classes: Sequence[str] | None) -> dict[str, int]:
    """Return class name, or the label as text -> how many images it has, by label."""
    names = classes or ()
    numbers = sorted(Counter(labels).items())
    return {names[label] if 0 <= label < len(names) else str(label): number for label, number in numbers}


def sampled(sizes: Sequence[int], labels: Sequence[int]) -> list[int]:
    """Return which images stand for all: all, where their sizes in bytes add up to little.

    Of more there is a number that is spread evenly, with the first image of every class.
    """
    if sum(sizes) <= _WHOLE:
        return list(range(len(sizes)))
    spread = {round(place) for place in np.linspace(0, len(sizes) - 1, min(_SAMPLE, len(sizes)))}
    firsts = {label: index for index, label in reversed(list(enumerate(labels)))}
    return sorted(spread | set(firsts.values()))


def few(count: int) -> list[int]:
    """Return the numbers of a few items, spread evenly over ``count``."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(_ITEMS, count))})


def digest_of_items(walk: Callable[[], Iterable[Any]]) -> str | None:
    """Return a digest of items of a data set; None where they are others each time that they are read."""
    first, second = (digest_of(part for item in walk() for part in _encoded(item)) for _ in range(2))
    return first if first == second else None


def digest_of_tensors(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of named tensors: names, types, shapes and all values."""
    return digest_of(part for name, tensor in tensors for part in (name.encode(), *_encoded(tensor)))


def structure_of(module: nn.Module) -> str:
    """Return the SHA-256 of a network's structure: its layers and, for a graph, its nodes; not its values."""
    graph = getattr(module, "graph", None)
    nodes = [_node(node) for node in graph.nodes] if isinstance(graph, fx.Graph) else []
    return digest_of_data([_ADDRESS.sub("", repr(module)), nodes])


def values_of(module: nn.Module) -> str:
    """Return the SHA-256 of a network's parameters and buffers, those that are not saved with it too."""
    return digest_of_tensors([*module.named_parameters(), *module.named_buffers()])


def _node(node: fx.Node) -> str:
    target: Any = node.target
    if not isinstance(target, str):
        target = f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', target)}"
    return _ADDRESS.sub("", f"{node.op} {target} {node.args} {node.kwargs}")


def _encoded(value: object) -> Iterable[Any]:
    """Yield the bytes of a dataset's item; for a value that is not data, its type."""
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)} ".encode()
        if value.numel() and not value.is_meta:
            yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        yield f"{value.dtype} {value.shape} ".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Image.Image):
        yield f"{value.mode} {value.size} ".encode()
        yield value.tobytes()
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from (repr(name).encode(), *_encoded(part))
    elif isinstance(value, list | tuple):
        yield f"{len(value)} ".encode()
        for part in value:
            yield from _encoded(part)
    elif isinstance(value, str | bytes | int | float | np.generic | None):
        yield repr(value).encode()
    else:
        yield type(value).__qualname__.encode()


# ---------------------------------------------------------------- comparing


def differences(old: object, new: object, name: str = "") -> list[str]:
    """Return what plain data was and is, by name, in one sentence for each place where they differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        pairs = [(key, old.get(key, _absent), new.get(key, _absent)) for key in dict.fromkeys([*old, *new])]
        return [d for key, was, now in pairs for d in differences(was, now, f"{name}.{key}".strip("."))]
    return [] if old == new else [f"{name or 'all of it'} was {_short(old)} and is {_short(new)}"]


class _Absent:
    """Stands for a value that is not there."""


_absent = _Absent()


def _short(value: object) -> str:
    if value is _absent:
        return "absent"
    text = json.dumps(value, default=repr)
    return text if len(text) <= _LONGEST else f"{text[:12]}…{text[-5:]}"
