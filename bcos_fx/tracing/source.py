"""Which line of the user's code is running."""

from __future__ import annotations

import linecache
import os
import sys
from dataclasses import dataclass

import torch

_TORCH = os.path.dirname(torch.__file__) + os.sep
_LAYERS = os.path.join(_TORCH, "nn", "modules") + os.sep
_TRACING = os.path.dirname(__file__) + os.sep
_ENTRY = os.path.join(_TRACING, "tracer.py")


@dataclass(frozen=True)
class Source:
    """A line of code: base name of its file, its number from 1, its text without the indentation."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.text else f"{self.file}:{self.line}"


def current_source() -> Source:
    """Find the innermost running line that is neither PyTorch's nor the tracer's.

    A model made of PyTorch's own containers has no such line; then it is the innermost line of a container.
    """
    frame = sys._getframe(1)
    container: Source | None = None
    while frame is not None and frame.f_code.co_filename != _ENTRY:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _TRACING)):
            return _at(name, frame.f_lineno)
        if container is None and name.startswith(_LAYERS) and not name.endswith("modules/module.py"):
            container = _at(name, frame.f_lineno)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return container or Source("the module itself", 0, "")


def _at(filename: str, line: int) -> Source:
    return Source(os.path.basename(filename), line, linecache.getline(filename, line).strip())
