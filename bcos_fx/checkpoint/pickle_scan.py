"""What a pickle would build, found by reading its opcodes and never by running it.

A pickle is a program for a small stack machine. This file walks that program symbolically: instead
of importing a class and calling it, it pushes a :class:`Built` that carries only the class's name.
That is enough to name the root object, the keys of the outermost dict and every class that opening
the file would import, and nothing in the file gets a chance to run.

It also counts what unpickling would take, and refuses what exceeds a budget: a pickle of 146 bytes can nest a tuple of
itself so deep that hashing it as a key takes minutes, and one of 60 bytes can ask for a terabyte of zeros.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any, cast

from bcos_fx.budgets import PICKLE_ALLOCATED, PICKLE_BYTES, PICKLE_HASHING, PICKLE_STEPS
from bcos_fx.errors import CheckpointError

_MARK = object()
_CALLS = frozenset({"REDUCE", "NEWOBJ", "NEWOBJ_EX"})
_MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_MEMO_READS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_COLLECTIONS = {"EMPTY_LIST": "list", "LIST": "list", "EMPTY_SET": "set", "FROZENSET": "frozenset"}
_SHOWN = 200
# The largest integer whose hash is its value. Larger ones can be chosen to collide, which makes a dict quadratic.
_LARGEST_KEY = 2**61 - 2
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(eq=False)
class Built:
    """One symbolic object: its type's dotted name and, for dict-like ones, its items."""

    label: str
    items: list[tuple[Any, Any]] = field(default_factory=list)
    weight: int = 1


class _Tuple(tuple[Any, ...]):
    """A tuple with its weight: how many parts hashing it visits, those that repeat counted each time."""

    weight: int

    @classmethod
    def of(cls, parts: list[Any]) -> _Tuple:
        built = cls(parts)
        # Beyond the budget the exact number does not matter, and it can have millions of digits.
        built.weight = min(1 + sum(map(_weight, parts)), PICKLE_HASHING.limit + 1)
        return built


def _weight(value: object) -> int:
    return value.weight if isinstance(value, Built | _Tuple) else 1


@dataclass(frozen=True)
class PickleScan:
    """What one pickle holds: ``root`` names the outermost object's type.

    ``items`` pairs the outermost dict's keys with the type names of their values, in file order;
    ``names`` are all the classes and functions that unpickling would import, in file order.
    """

    root: str
    items: tuple[tuple[str, str], ...]
    names: tuple[str, ...]


class _Machine:
    """The symbolic stack machine; one method per family of opcodes that matters here."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, None] = {}
        self._hashed = self._allocated = 0

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        # Opcodes that name, call, memorize, hash or hold others are followed; of all others the documented stack effect
        # is enough, so that opcodes of later protocols are read as well.
        if name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ"):
            self._name(name, argument)
        elif name in _CALLS:
            callee, *arguments = self._pop(2 if name != "NEWOBJ_EX" else 3)
            self._call(_label(callee), arguments)
        elif name in _MEMO_WRITES:
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.stack[-1]
        elif name in _MEMO_READS:
            self.stack.append(self.memo[int(argument)])
        elif name == "BINPERSID":
            self._hash(identity := self._pop(1)[0])
            self.stack.append(_persistent(identity))
        elif name == "TUPLE" or name in _TUPLE_SIZES:
            self.stack.append(_Tuple.of(self._pop_to_mark() if name == "TUPLE" else self._pop(_TUPLE_SIZES[name])))
        elif "DICT" in name or name.startswith("SETITEM"):
            self._dict(name)
        else:
            self._generic(opcode, argument)

    def _hash(self, *values: Any) -> None:
        """Count what hashing these values takes."""
        self._count_hashing(values)
        if any(type(value) is int and abs(value) > _LARGEST_KEY for value in values):
            raise CheckpointError("a key in the pickle is an integer beyond 2^61", hint=PICKLE_HASHING.hint)

    def _count_hashing(self, values: Iterable[Any]) -> None:
        self._hashed += sum(map(_weight, values))
        PICKLE_HASHING.check(self._hashed, "the pickle", CheckpointError)

    def _call(self, label: str, arguments: list[Any]) -> None:
        """Stand for the result of a call, which may hash its arguments, or allocate as many numbers as they say."""
        self._count_hashing(arguments)
        # These allocate as much as their arguments say, without a byte of it in the file.
        if label == "builtins.bytearray" or (label.startswith("torch.") and label.endswith(("Tensor", "Storage"))):
            sizes = [size for given in arguments if isinstance(given, tuple) for size in _integers(given)]
            self._allocated += math.prod(sizes) if sizes else 0
            PICKLE_ALLOCATED.check(self._allocated, "the pickle", CheckpointError)
        self.stack.append(Built(label))

    def _dict(self, name: str) -> None:
        """Make a dict (``EMPTY_DICT``, ``DICT``) or store into the one on the stack."""
        above = [] if name == "EMPTY_DICT" else self._pop(2) if name == "SETITEM" else self._pop_to_mark()
        if name in ("EMPTY_DICT", "DICT"):
            self.stack.append(Built("dict"))
        target = self.stack[-1]
        self._hash(*above[::2])
        if isinstance(target, Built):
            target.items += zip(above[::2], above[1::2], strict=True)
            _grow(target, above)

    def _name(self, name: str, argument: object) -> None:
        if name == "STACK_GLOBAL":
            dotted = ".".join(_format_key(part) for part in self._pop(2))
        elif name == "OBJ":
            dotted = _label(self._pop_to_mark()[0])
        else:
            if name == "INST":
                self._pop_to_mark()
            dotted = str(argument).replace(" ", ".")
        self.names[dotted] = None
        self.stack.append(Built(dotted))

    def _generic(self, opcode: pickletools.OpcodeInfo, argument: object) -> None:
        """Apply an opcode by its documented stack effect: pops, then anonymous pushes."""
        if opcode.name == "MARK":
            self.stack.append(_MARK)
            return
        if pickletools.markobject in opcode.stack_before:
            above = self._pop_to_mark()
            pops = opcode.stack_before.index(pickletools.markobject)
        else:
            above, pops = [], len(opcode.stack_before)
        popped = self._pop(pops)
        if opcode.name in ("ADDITEMS", "FROZENSET"):
            self._hash(*above)
        if opcode.name in ("APPEND", "APPENDS", "ADDITEMS", "BUILD") and isinstance(popped[0], Built):
            _grow(popped[0], [*above, *popped[1:]])
        keeps_object = opcode.name in ("BUILD", "APPEND", "APPENDS", "ADDITEMS")
        pushed = Built(_COLLECTIONS[opcode.name]) if opcode.name in _COLLECTIONS else argument
        for _ in opcode.stack_after:
            self.stack.append(popped[0] if keeps_object else pushed)

    def _pop(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise IndexError("the pickle's stack is empty")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def _pop_to_mark(self) -> list[Any]:
        above: list[Any] = []
        while (value := self.stack.pop()) is not _MARK:
            above.append(value)
        return above[::-1]


def scan_pickle(stream: IO[bytes]) -> PickleScan:
    """Read one pickle from ``stream`` symbolically and leave the stream just after it.

    Raises:
        ValueError: the bytes are not a whole, well-formed pickle.
        CheckpointError: opening it would take too much.
    """
    machine = _Machine()
    root: Any = None
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", _BoundedStream(stream)))):
            PICKLE_STEPS.check(steps, "the pickle", CheckpointError)
            if opcode.name == "STOP":
                root = machine.stack[-1]
            else:
                machine.step(opcode, argument)
    except (IndexError, KeyError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a well-formed pickle: {type(error).__name__}") from error
    items = root.items if isinstance(root, Built) else []
    return PickleScan(
        root=_label(root),
        items=tuple((_format_key(key), _label(value)) for key, value in items),
        names=tuple(machine.names),
    )


class _BoundedStream:
    """A stream from which no more is read than a pickle may have."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._left = stream, PICKLE_BYTES.limit

    def _count(self, size: int) -> None:
        self._left -= size
        PICKLE_BYTES.check(PICKLE_BYTES.limit - self._left, "the pickle", CheckpointError)

    def read(self, size: int) -> bytes:
        # What was read counts, not what a damaged opcode asks for: a small file is damaged, and not too large.
        data = self._stream.read(min(size, self._left + 1))
        self._count(len(data))
        return data

    def readline(self) -> bytes:
        line = self._stream.readline(self._left + 1)
        self._count(len(line))
        return line


def _grow(target: Built, parts: list[Any]) -> None:
    target.weight = min(target.weight + sum(map(_weight, parts)), PICKLE_HASHING.limit + 1)


def _integers(sizes: tuple[Any, ...]) -> list[int]:
    """Return the integers among arguments and in tuples among them; booleans are left out."""
    flat = [part for size in sizes for part in (size if isinstance(size, tuple) else (size,))]
    return [size for size in flat if type(size) is int]


def _format_key(key: object) -> str:
    """Format a key as text: a short string or a number in full, of anything else only the type."""
    if isinstance(key, str):
        return key if len(key) <= _SHOWN else f"{key[:_SHOWN]}…"
    if isinstance(key, bool | float | None) or (isinstance(key, int) and abs(key) <= _LARGEST_KEY):
        return str(key)
    return f"<{_label(key)}>"


def _persistent(identity: object) -> Any:
    """Resolve a persistent id: torch's old format wraps a module's class in one; the others are storages."""
    if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
        return identity[1]
    return Built("storage")


def _label(value: object) -> str:
    """Return the type name of a symbolic value, or of a plain number or string."""
    if isinstance(value, Built):
        return value.label
    return "tuple" if isinstance(value, _Tuple) else type(value).__name__
