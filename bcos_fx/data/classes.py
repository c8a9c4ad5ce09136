"""Class names: read from a file, and found by a word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bcos_fx.budgets import TEXT_BYTES, parse_json, read_text
from bcos_fx.errors import BcosFxError, UsageError, nearest
from bcos_fx.escaping import amount
from bcos_fx.files import nearest_path

_FORMS = 'one name a line, a JSON list of names, or a JSON object {"index": "name"}'


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the names of classes, in the order of the outputs.

    Args:
        path: a text file with one name per line, a JSON list, or a JSON object from index to name.

    Raises:
        UsageError: the file cannot be read, holds something else, or leaves a class without a name.
    """
    try:
        # some editors begin a file with a byte order mark
        text = read_text(path, TEXT_BYTES, "the file of class names", UsageError, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = nearest_path(path) if isinstance(error, FileNotFoundError) else f"give {_FORMS}"
        raise UsageError(f"the class names cannot be read: {reason}", where=str(path), hint=hint) from error
    names = _from_json(text, path) if text.lstrip()[:1] in ("[", "{") else _from_lines(text, path)
    if not names:
        raise UsageError("the file holds no class names", where=str(path), hint=f"give {_FORMS}")
    return tuple(names)


def check_class_count(names: Sequence[str], outputs: int | None, error: type[BcosFxError] = UsageError) -> None:
    """Check that there is a name for each of a network's classes.

    Args:
        names: of the classes.
        outputs: how many classes the network has; None: it has none.
        error: what is raised.

    Raises:
        BcosFxError: of the type ``error``: there are more or fewer.
    """
    if len(names) != outputs:
        outputs_text = "no scores of classes" if outputs is None else f"{amount(outputs, 'class')}"
        raise error(f"{len(names)} class names are given for {outputs_text}", hint="name every class, in order")


def _from_lines(text: str, path: Path) -> list[str]:
    lines = text.splitlines()
    # Editors end a file with an empty line; one between names would shift all classes after it.
    while lines and not lines[-1].strip():
        lines.pop()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UsageError("a class has no name", where=f"{path}:{number}", hint="name every class, one a line")
    return [line.strip() for line in lines]


def _from_json(text: str, path: Path) -> list[str]:
    try:
        content: Any = parse_json(text, "the file of class names", UsageError, str(path))
    except json.JSONDecodeError as error:
        raise UsageError(
            f"the class names are no JSON: {error.msg}", where=f"{path}:{error.lineno}", hint=f"give {_FORMS}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(
            "the class names are no JSON that can be read: a number too long, or lists too deep",
            where=str(path),
            hint=f"give {_FORMS}",
        ) from error
    if isinstance(content, dict):
        content = _by_index(content, path)
    for place, name in enumerate(content):
        if not isinstance(name, str):
            raise UsageError(f"class {place} is {name!r}, not a name", where=str(path), hint=f"give {_FORMS}")
    return list(content)


def _by_index(by_index: dict[str, Any], path: Path) -> list[Any]:
    """Return the names in order; torchvision's own index files hold [id, name] for each class."""
    wanted = [str(place) for place in range(len(by_index))]
    missing = [place for place in wanted if place not in by_index]
    if missing:
        raise UsageError(
            f"{len(by_index)} names are given, and class {missing[0]} is not among them",
            where=str(path),
            hint="number the classes from 0, without gaps",
        )
    names = [by_index[place] for place in wanted]
    return [name[-1] if isinstance(name, list) and name else name for name in names]


def class_named(word: str, names: Sequence[str] | None, others: Sequence[str] = ()) -> int:
    """Return the index of the class that a word names.

    Args:
        word: a name.
        names: of the classes, in order; None where they are not known.
        others: words that mean something else there, of which the nearest may be proposed.

    Raises:
        UsageError: no class has the name or several have it, or no names are known.
    """
    indices = classes_named(word, names)
    if len(indices) == 1:
        return indices[0]
    if indices:
        several = ", ".join(f"{i} ({(names or ())[i]})" for i in indices[:5])
        raise UsageError(f"{amount(len(indices), 'class')} are named {word!r}: {several}", hint="give the index")
    if not names:
        raise UsageError(
            f"the target {word!r} is a name, and no class names are known",
            hint="give class names (names=, or --classes)",
        )
    every = [part.strip() for name in names for part in name.split(",")]
    raise UsageError(f"no class is named {word!r}", hint=nearest(word, [*every, *others]))


def classes_named(word: str, names: Sequence[str] | None) -> list[int]:
    """Return the indices of classes of a name: the whole of it, or one of several between commas; in any case."""
    wanted = word.strip().lower()
    return [
        index
        for index, name in enumerate(names or ())
        if wanted == name.lower() or wanted in (part.strip().lower() for part in name.split(","))
    ]
