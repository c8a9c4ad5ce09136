"""What a pickle would build, found by reading its opcodes and never by running it.

A pickle is a program for a small stack machine. This file walks that program symbolically: instead
of importing a class and calling it, it pushes a :class:`Built` that carries only the class's name.
That is enough to name the root object, the keys of the outermost dict and every class that opening
the file would import, and nothing in the file gets a chance to run.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import IO, Any

_MARK = object()
_CALLS = frozenset({"REDUCE", "NEWOBJ", "NEWOBJ_EX"})
_MEMO_WRITES = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_MEMO_READS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_COLLECTIONS = {"EMPTY_LIST": "list", "LIST": "list", "EMPTY_SET": "set", "FROZENSET": "frozenset"}
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(eq=False)
class Built:
    """One symbolic object: its type's dotted name and, for dict-like ones, its items."""

    label: str
    items: list[tuple[Any, Any]] = field(default_factory=list)


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

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        name = opcode.name
        if name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ"):
            self._name(name, argument)
        elif name in _CALLS:
            callee = self._pop(2 if name != "NEWOBJ_EX" else 3)[0]
            self.stack.append(Built(_label(callee)))
        elif name in _MEMO_WRITES:
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.stack[-1]
        elif name in _MEMO_READS:
            self.stack.append(self.memo[int(argument)])
        elif name == "BINPERSID":
            self.stack.append(_persistent(self._pop(1)[0]))
        elif name == "TUPLE" or name in _TUPLE_SIZES:
            self.stack.append(tuple(self._pop_to_mark() if name == "TUPLE" else self._pop(_TUPLE_SIZES[name])))
        elif "DICT" in name or name.startswith("SETITEM"):
            self._dict(name)
        else:
            self._generic(opcode, argument)

    def _dict(self, name: str) -> None:
        """Make a dict (``EMPTY_DICT``, ``DICT``) or store into the one on the stack."""
        above = [] if name == "EMPTY_DICT" else self._pop(2) if name == "SETITEM" else self._pop_to_mark()
        if name in ("EMPTY_DICT", "DICT"):
            self.stack.append(Built("dict"))
        target = self.stack[-1]
        if isinstance(target, Built):
            target.items += zip(above[::2], above[1::2], strict=True)

    def _name(self, name: str, argument: Any) -> None:
        if name == "STACK_GLOBAL":
            dotted = ".".join(str(part) for part in self._pop(2))
        elif name == "OBJ":
            dotted = _label(self._pop_to_mark()[0])
        else:
            if name == "INST":
                self._pop_to_mark()
            dotted = str(argument).replace(" ", ".")
        self.names[dotted] = None
        self.stack.append(Built(dotted))

    def _generic(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Apply an opcode by its documented stack effect: pops, then anonymous pushes."""
        if opcode.name == "MARK":
            self.stack.append(_MARK)
            return
        if pickletools.markobject in opcode.stack_before:
            self._pop_to_mark()
            pops = opcode.stack_before.index(pickletools.markobject)
        else:
            pops = len(opcode.stack_before)
        popped = self._pop(pops)
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
    """
    machine = _Machine()
    root: Any = None
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                root = machine.stack[-1]
            else:
                machine.step(opcode, argument)
    except (IndexError, KeyError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a well-formed pickle: {type(error).__name__}") from error
    items = root.items if isinstance(root, Built) else []
    return PickleScan(
        root=_label(root),
        items=tuple((str(key), _label(value)) for key, value in items),
        names=tuple(machine.names),
    )


def _persistent(identity: Any) -> Any:
    """What a persistent id stands for: torch's old format wraps a module's class in one; the rest are storages."""
    if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
        return identity[1]
    return Built("storage")


def _label(value: Any) -> str:
    """The type name of a symbolic value; plain numbers and strings are their own type's."""
    return value.label if isinstance(value, Built) else type(value).__name__
