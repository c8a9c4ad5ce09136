"""TOML tables that know the file and line of each key, and refuse unknown keys.

``tomllib`` keeps no positions, so a second, much simpler reading of the text notes where each key
stands. It only has to find keys; what they mean stays with ``tomllib``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bcos_fx.budgets import TOML_BYTES, TOML_DOTS, read_text
from bcos_fx.errors import RuleError, nearest
from bcos_fx.files import nearest_path

Key = tuple[str | int, ...]
T = TypeVar("T")
_MISSING = object()
_HEADER = re.compile(r"^\s*(\[\[|\[)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")
_QUOTED = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'")
_BETWEEN_KEYS = re.compile(r"[=,{}\[\]]")
_ASSIGNMENT = re.compile(r"^\s*([A-Za-z0-9_\-.\"']+)\s*=")
_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    list: "a list",
    dict: "a table",
}


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _resolve_arrays(parts: tuple[str, ...], counts: Mapping[Key, int]) -> Key:
    """Turn ``rule.match.conv`` into ``rule, 3, match, conv`` below the fourth ``[[rule]]``."""
    key: Key = ()
    for part in parts:
        key = (*key, part)
        if key in counts:
            # A header below an array of tables speaks of its last element, as in TOML.
            key = (*key, counts[key] - 1)
    return key


def _key_lines(text: str) -> dict[Key, int]:
    lines: dict[Key, int] = {(): 1}
    counts: dict[Key, int] = {}
    here: Key = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            parts = _parts(header[2])
            if header[1] == "[[":
                key = (*_resolve_arrays(parts[:-1], counts), parts[-1])
                counts[key] = counts.get(key, 0) + 1
            here = _resolve_arrays(parts, counts)
            lines[here] = number
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault((*here, *_parts(assignment[1])), number)
    return lines


class Table:
    """One table of a TOML document.

    Each accessor marks its key as known; :meth:`finish` raises for the keys that are left.
    """

    def __init__(self, data: Mapping[str, Any], *, path: Path, lines: Mapping[Key, int], key: Key = ()) -> None:
        self._data, self._path, self._lines, self._key = data, path, lines, key
        self._asked: set[str] = set()

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def keys(self) -> list[str]:
        """Return the keys in file order."""
        return list(self._data)

    def known(self, name: str) -> None:
        """Say that a key is known, whether or not it is there."""
        self._asked.add(name)

    def line(self, name: str | None = None) -> int:
        """Return the line of a key, or of the table itself."""
        key = self._key if name is None else (*self._key, name)
        # A key of an inline table has no line of its own: then that of the table around it.
        while key not in self._lines:
            key = key[:-1]
        return self._lines[key]

    def where(self, name: str | None = None) -> str:
        """Return ``file:line`` of a key, or of the table itself."""
        return f"{self._path}:{self.line(name)}"

    def error(self, what: str, name: str | None = None, hint: str | None = None) -> RuleError:
        """Return an error that points at a key of this table."""
        return RuleError(what, where=self.where(name), hint=hint)

    def _get(self, name: str, kinds: type | tuple[type, ...], default: object) -> Any:
        self._asked.add(name)
        value = self._data.get(name, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                near = difflib.get_close_matches(name, map(str, self._data), n=1)
                hint = f"{near[0]!r} is there: write {name!r} in its place, if that is what it means" if near else None
                raise self.error(f"the key {name!r} is missing", near[0] if near else None, hint)
            return default
        accepted = kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            wanted = " or ".join(_NAMES[kind] for kind in accepted)
            raise self.error(f"{name!r} must be {wanted}, not {value!r}", name)
        return value

    def text(self, name: str, default: object = _MISSING) -> Any:
        """Return a string."""
        return self._get(name, str, default)

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean."""
        return bool(self._get(name, bool, default))

    def integer(self, name: str, default: object = _MISSING) -> Any:
        """Return an integer."""
        return self._get(name, int, default)

    def number(self, name: str, default: object = _MISSING) -> Any:
        """Return a number, whole or not, as a float."""
        value = self._get(name, (int, float), default)
        return float(value) if isinstance(value, int | float) else value

    def choice(self, name: str, known: Iterable[str], default: object = _MISSING) -> str:
        """Return a string that must be one of the known words."""
        value = self._get(name, str, default)
        words = list(known)
        if value not in words:
            raise self.error(f"{value!r} is not a known {name}", name, nearest(value, words))
        return str(value)

    def strings(self, name: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return a list of strings; a single string counts as a list of one."""
        value = self._get(name, (list, str), list(default))
        items = [value] if isinstance(value, str) else value
        if not all(isinstance(item, str) for item in items):
            raise self.error(f"{name!r} must hold texts only", name)
        return tuple(items)

    def mapping(self, name: str) -> dict[str, Any]:
        """Return a table as a plain dictionary whose keys the caller checks."""
        return dict(self._get(name, dict, {}))

    def table(self, name: str) -> Table:
        """Return a table below this one."""
        return Table(self._get(name, dict, {}), path=self._path, lines=self._lines, key=(*self._key, name))

    def tables(self, name: str) -> list[Table]:
        """Return the tables of an array."""
        items = self._get(name, list, [])
        return [
            Table(item, path=self._path, lines=self._lines, key=(*self._key, name, index))
            for index, item in enumerate(items)
        ]

    def finish(self) -> None:
        """Raise for a key that no accessor asked for.

        Raises:
            RuleError: names the key, its line and the nearest known one.
        """
        for name in self._data:
            if name not in self._asked:
                raise self.error(f"unknown key {name!r}", name, nearest(name, self._asked))


def read_toml(path: Path) -> Table:
    """Read a TOML file.

    Raises:
        RuleError: the file is missing, unreadable or no TOML.
    """
    try:
        text = read_text(path, TOML_BYTES, "the rule file", RuleError)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = nearest_path(path, "*.toml") if isinstance(error, FileNotFoundError) else None
        raise RuleError(f"the rule file cannot be read: {reason}", where=str(path), hint=hint) from error
    try:
        # Keys of very many parts are refused: tomllib takes the square of their number, and no rule needs them.
        for number, line in enumerate(text.splitlines(), start=1):
            if line.count(".") > TOML_DOTS.limit:
                bare = _QUOTED.sub("", line).partition("#")[0]
                most = max((part.count(".") for part in _BETWEEN_KEYS.split(bare)), default=0)
                TOML_DOTS.check(most, "the rule file", RuleError, f"{path}:{number}")
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise RuleError(f"the rule file is not valid TOML: {error}", where=str(path)) from error
    return Table(data, path=path, lines=_key_lines(text))
