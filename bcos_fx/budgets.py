"""How much of a file is read before it is refused: the one place for these limits.

A small file can describe something huge: compressed zeros, a view of one number as billions, a tuple of tuples that
doubles at each level. Each limit below is far above what honest files need, and keeps reading linear in the file's
size, so that no limit on seconds is needed: what is within all of them is read in seconds, and within 1 GiB beside the
tensors themselves.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bcos_fx.errors import BcosFxError

_MIB = 2**20


@dataclass(frozen=True)
class Budget:
    """A limit.

    Attributes:
        limit: the largest amount that is accepted.
        unit: what is counted, in the plural.
        hint: what to do about a file that exceeds it.
    """

    limit: int
    unit: str
    hint: str

    def check(self, amount: int, label: str, error: type[BcosFxError], where: str | None = None) -> None:
        """Check an amount.

        Raises:
            BcosFxError: of the type ``error``, where it exceeds the limit.
        """
        if amount > self.limit:
            counted = f"{amount:,}" if amount < 10**18 else "more than 10^18"
            raise error(
                f"{label} has {counted} {self.unit}, and at most {self.limit:,} are read", where=where, hint=self.hint
            )


_DATA_ONLY = "save only the state_dict, without histories and other objects"

PICKLE_BYTES = Budget(256 * _MIB, "bytes of pickle beside its tensors", _DATA_ONLY)
PICKLE_STEPS = Budget(2_000_000, "steps", _DATA_ONLY)
PICKLE_HASHING = Budget(10_000_000, "parts of keys, counted as often as they are used", _DATA_ONLY)
PICKLE_ALLOCATED = Budget(64 * _MIB, "numbers that its objects are made to hold without a value", _DATA_ONLY)
ARCHIVE_MEMBERS = Budget(200_000, "members", "split the file")
ENTRIES = Budget(200_000, "entries", "split the file")
JSON_BYTES = Budget(32 * _MIB, "bytes of JSON", "look at what wrote the file: this is not a header of a network")
JSON_VALUES = Budget(2_000_000, "values in its JSON", "look at what wrote the file: this is not a header of a network")
TOML_BYTES = Budget(_MIB, "bytes of TOML", "split the rules into several files")
TOML_DOTS = Budget(20, "dots in one key", "write tables with [headers]")
TEXT_BYTES = Budget(16 * _MIB, "bytes of text", "give one name a line, and only names")

_NO_NETWORK = "no network that bcos_fx wrote is like this"

VALUE_DEPTH = Budget(32, "levels of containers", _NO_NETWORK)
PATH_PARTS = Budget(64, "levels of modules", _NO_NETWORK)
PLACES = Budget(100_000, "places of modules, shared ones counted at each", _NO_NETWORK)
EXAMPLE_NUMBERS = Budget(2**28, "numbers", "convert the original again with a smaller example")
VALUE_NUMBERS = Budget(2**26, "numbers", _NO_NETWORK)
VALUE_GROWTH = 64
"""A value of a network may hold :data:`VALUE_NUMBERS`, or this many times all parameters or the largest input."""
IMAGE_BYTES = Budget(256 * _MIB, "bytes", "store the image smaller")
PIXELS = Budget(100_000_000, "pixels", "store the image smaller: the network sees no more than its own size")
ARRAY_BYTES = Budget(256 * _MIB, "bytes in one array", "split the file")

_ALWAYS_HELD = 256 * _MIB
_TIMES_THE_FILE = 8


def held(size: int) -> Budget:
    """Return the limit on the bytes that the tensors of a file of ``size`` bytes may hold when they are written out.

    A file may be compressed, share tensors between names, or hold views that repeat numbers, but within reason.
    """
    return Budget(
        max(_ALWAYS_HELD, _TIMES_THE_FILE * size),
        f"bytes in its tensors when they are written out (the file itself has {size:,})",
        "save the tensors as they are: contiguous, not expanded, in a file that is not compressed",
    )


def read_text(path: Path, budget: Budget, label: str, error: type[BcosFxError], encoding: str = "utf-8") -> str:
    """Read a text file.

    Raises:
        BcosFxError: of the type ``error``, where it exceeds the budget.
        OSError, UnicodeDecodeError: it cannot be read.
    """
    budget.check(path.stat().st_size, label, error, str(path))
    with path.open("rb") as stream:
        # A file can grow after its size was asked for, and what is not a regular file has none.
        content = stream.read(budget.limit + 1)
    budget.check(len(content), label, error, str(path))
    return content.decode(encoding)


def check_safetensors_header(path: Path, error: type[BcosFxError]) -> None:
    """Check the length of a safetensors file's header, before a library reads it.

    Raises:
        BcosFxError: of the type ``error``, where it exceeds the budget.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length <= path.stat().st_size:  # otherwise it is not such a header
        JSON_BYTES.check(length, "the safetensors header", error, str(path))


def parse_json(
    text: str | bytes, label: str, error: type[BcosFxError], where: str | None = None, **options: Any
) -> Any:
    """Parse JSON; ``options`` are those of :func:`json.loads`.

    Raises:
        BcosFxError: of the type ``error``, where it exceeds a budget.
        ValueError, RecursionError: it is not JSON, or nested too deep.
    """
    JSON_BYTES.check(len(text), label, error, where)
    # Each value but the first follows one of these characters, so counting them bounds the memory of what is parsed.
    counts = map(text.count, "[{,") if isinstance(text, str) else map(text.count, b"[{,")
    JSON_VALUES.check(sum(counts), label, error, where)
    return json.loads(text, **options)
