"""Which networks: names, patterns of names, and lists of both."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from pathlib import Path

from bcos_fx.budgets import TEXT_BYTES, read_text
from bcos_fx.checkpoint import architecture_names
from bcos_fx.errors import UsageError


def select(asked: Sequence[str]) -> list[str]:
    """Return the names of networks that are asked for, each once, in order.

    Args:
        asked: names (``timm:resnet18``), patterns of a library's names (``torchvision:resnet*``), or paths of text
            files with one of these on a line; ``#`` begins a comment.

    Raises:
        UsageError: a pattern fits nothing, a file cannot be read or names nothing, or nothing is asked for.
        MissingExtraError: a pattern is one of a library that is not installed.
    """
    names = list(dict.fromkeys(name for item in asked for name in _expanded(item)))
    if not names:
        raise UsageError("no network is named", hint="give a name such as timm:resnet18, or a pattern")
    return names


def _expanded(item: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    path = Path(item)
    if item in above:
        raise UsageError(f"the list {item} contains itself", where=above[-1], hint="take that line out")
    if path.suffix == ".txt":
        try:
            lines = read_text(path, TEXT_BYTES, "the file of names", UsageError).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the list cannot be read: {error}", where=item) from error
        for line in lines:
            name = line.partition("#")[0].strip()
            if name:
                yield from _expanded(name, (*above, item))
        return
    source, _, pattern = item.partition(":")
    if not set(pattern) & set("*?["):
        yield item
        return
    found = fnmatch.filter(architecture_names(source), pattern)
    if not found:
        raise UsageError(f"no network of {source} is called like {pattern!r}", where=item)
    yield from (f"{source}:{name}" for name in found)
