"""Which line of the user's code is running."""

from __future__ import annotations

import contextlib
import linecache
import os
import sys
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
def attributed_to(source: SourceLine | None) -> Iterator[None]:
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
    given = _ATTRIBUTED.get()
    if given is not None:
        return given
    frame = sys._getframe(1)
    container: SourceLine | None = None
    while frame is not None and frame.f_code.co_filename != _ENTRY:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _TRACING)):
            return _at(name, frame.f_lineno)
        if container is None and name.startswith(_LAYERS) and not name.endswith("modules/module.py"):
            container = _at(name, frame.f_lineno)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return container or SourceLine("the module itself", 0, "")


def error_source(error: BaseException) -> SourceLine | None:
    """Find the innermost line, neither PyTorch's nor our own, of those that an error came through."""
    found, trace = None, error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if not name.startswith((_TORCH, _PACKAGE)) and name != contextlib.__file__:
            found = _at(name, trace.tb_lineno)
        trace = trace.tb_next
    return found


def autograd_forwards(kind: type = torch.autograd.Function) -> frozenset[CodeType]:
    """Return the code of every ``forward`` that a subclass of ``torch.autograd.Function`` has."""
    own = getattr(kind.__dict__.get("forward"), "__func__", None)
    found = {own.__code__} if own is not None else set()
    return frozenset(found.union(*map(autograd_forwards, type.__subclasses__(kind))))


def is_running(codes: frozenset[CodeType]) -> bool:
    """Return whether one of these pieces of code is running in this thread, since the trace began."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _ENTRY:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False


def _at(filename: str, line: int) -> SourceLine:
    return SourceLine(os.path.basename(filename), line, linecache.getline(filename, line).strip())
