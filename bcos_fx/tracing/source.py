"""Which line of the user's code is running."""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import CodeType, FrameType

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_LAYERS = os.path.join(_TORCH, "nn", "modules") + os.sep
_TRACING = os.path.dirname(__file__) + os.sep
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_ENTRY = os.path.join(_TRACING, "tracer.py")


@dataclass(frozen=True)
class SourceLine:
    """A line of code: base name of its file, its number from 1, its text without the indentation."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.text}" if self.text else place


_ATTRIBUTED: ContextVar[SourceLine | None] = ContextVar("the line that a call came from", default=None)


@contextlib.contextmanager
def attribute_to(source: SourceLine | None) -> Iterator[None]:
    """While this lasts, calls come from this line, whatever is running; None changes nothing."""
    token = _ATTRIBUTED.set(source)
    try:
        yield
    finally:
        _ATTRIBUTED.reset(token)


def is_torchs(filename: str) -> bool:
    """Return whether a file is PyTorch's own."""
    return filename.startswith(_TORCH)


def current_source() -> SourceLine:
    """Find the innermost running line that is neither PyTorch's nor the tracer's.

    A model made of PyTorch's own containers has no such line; then it is the innermost line of a container.
    """
    attributed = _ATTRIBUTED.get()
    if attributed is not None:
        return attributed
    container: SourceLine | None = None
    for frame in _frames():
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _TRACING)):
            return _at(name, frame.f_lineno)
        if container is None and name.startswith(_LAYERS) and not name.endswith("modules/module.py"):
            container = _at(name, frame.f_lineno)
    return container or SourceLine("the module itself", 0, "")


def _frames() -> Iterator[FrameType]:
    """Yield what runs in this thread, from the inside outwards, as far as the beginning of the trace."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _ENTRY:
        yield frame
        frame = frame.f_back


def error_source(error: BaseException) -> SourceLine | None:
    """Find the innermost line, neither PyTorch's nor our own, of those that an error came through."""
    innermost = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _PACKAGE)) and name != contextlib.__file__:
            innermost = _at(name, line)
    return innermost


def autograd_forwards(kind: type = torch.autograd.Function) -> frozenset[CodeType]:
    """Return the code of every ``forward`` that a subclass of ``torch.autograd.Function`` has."""
    forward = getattr(kind.__dict__.get("forward"), "__func__", None)
    codes = set() if forward is None else {forward.__code__}
    return frozenset(codes.union(*map(autograd_forwards, type.__subclasses__(kind))))


def is_running(codes: frozenset[CodeType]) -> bool:
    """Return whether one of these pieces of code is running in this thread, since the trace began."""
    return any(frame.f_code in codes for frame in _frames())


def _at(filename: str, line: int) -> SourceLine:
    return SourceLine(os.path.basename(filename), line, linecache.getline(filename, line).strip())
