"""Writing explanations to files, whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from bcos_fx.errors import UsageError
from bcos_fx.explanation.render.figure import MOST_ROWS, figure, require_matplotlib
from bcos_fx.explanation.render.html import cards, page
from bcos_fx.explanation.render.style import Style
from bcos_fx.explanation.result import Result
from bcos_fx.files import check_target, replacing

_FIGURES = (".png", ".pdf", ".svg")
_KEY = "explanation"


def save(explanation: Result, path: Path, style: Style | None = None) -> Path:
    """Write an explanation in the form that the suffix names; see :meth:`bcos_fx.explanation.Explanation.save`."""
    contents = writer(path, style)(explanation)
    with replacing(path, "the explanation") as stream:
        stream.write(contents)
    return path


class Collector:
    """Gathers explanations for one file, keeping no more of them than the file needs.

    Args:
        path: of the file.
        style: of a figure.
        overwrite: replace a file that is there.

    Raises:
        UsageError: no such form is known, it has no style, or the path cannot be written to.
        MissingExtraError: it is a figure, and matplotlib is not installed.
    """

    def __init__(self, path: Path, style: Style | None = None, *, overwrite: bool = True) -> None:
        writer(path, style)
        check_target(path, overwrite=overwrite)
        self._style = style
        self._path, self._suffix = path, path.suffix.lower()
        self._cards: list[str] = []
        self._explanations: list[Result] = []

    def add(self, explanation: Result, labels: Sequence[str]) -> None:
        """Take in some samples; ``labels`` is what each is called."""
        if self._suffix == ".html":
            self._cards += cards(explanation, labels, overlay=self._style is not None and self._style.overlay)
        elif self._suffix not in _FIGURES or sum(map(len, self._explanations)) < MOST_ROWS:
            self._explanations.append(explanation)

    def close(self) -> None:
        """Write the file."""
        if self._suffix == ".html":
            with replacing(self._path, "the explanation") as stream:
                stream.write(_text(page(self._cards)))
        else:
            save(Result.joined(self._explanations), self._path, self._style)


def writer(path: Path, style: Style | None = None) -> Callable[[Result], bytes]:
    """Return what makes the contents of a file with this suffix.

    Raises:
        UsageError: no such form is known, or a style is given for another form than a figure.
        MissingExtraError: it is a figure, and matplotlib is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in _FIGURES:
        require_matplotlib()
        return lambda explanation: _figure(explanation, suffix[1:], style)
    overlay = style is not None and style.overlay
    forms: dict[str, Callable[[Result], bytes]] = {
        ".html": lambda explanation: _text(page(cards(explanation, overlay=overlay))),
        ".safetensors": lambda explanation: safetensors_bytes(_tensors(explanation), {_KEY: _facts(explanation)}),
        ".npz": _npz,
    }
    if suffix not in forms:
        raise UsageError(
            f"an explanation cannot be written as {suffix or 'a file without suffix'}",
            where=str(path),
            hint=f"end the name in one of {', '.join((*_FIGURES, *forms))}",
        )
    if style is not None and style != Style(overlay=overlay and suffix == ".html"):
        raise UsageError(
            f"a {suffix} file has no panels, colors or fonts to choose", hint=f"write a figure: {', '.join(_FIGURES)}"
        )
    return forms[suffix]


def _figure(explanation: Result, form: str, style: Style | None) -> bytes:
    buffer = io.BytesIO()
    figure(explanation, style=style).savefig(buffer, format=form, dpi=110)
    return buffer.getvalue()


def _text(document: str) -> bytes:
    """Encode as UTF-8; bytes of a file's name that are not text become question marks."""
    return document.encode("utf-8", errors="replace")


def _tensors(explanation: Result) -> dict[str, Tensor]:
    names = ("inputs", "encoded", "weights", "output", "contributions", "residual", "prediction", "scores", "target")
    fields = {name: getattr(explanation, name) for name in names}
    constants = {f"constants.{source}": values for source, values in explanation.constants.items()}
    # Cloned: safetensors refuses tensors that share memory, as inputs and encoded may.
    return {name: t.detach().cpu().contiguous().clone() for name, t in (fields | constants).items() if t is not None}


def _facts(explanation: Result) -> str:
    names = ("where", "names", "notes") if explanation.tokens is None else ("where", "names", "notes", "tokens")
    facts = {name: getattr(explanation, name) for name in (*names, "channel_axis", "axes", "labels")}
    verdict = {"complete": explanation.complete, "verdict": explanation.verdict}
    # Readers of files know the colors by this former name.
    return json.dumps(facts | verdict | {"colours": explanation.colors}, sort_keys=True)


def _npz(explanation: Result) -> bytes:
    buffer = io.BytesIO()
    tensors = _tensors(explanation)
    # numpy has no bfloat16; float32 holds each of its numbers exactly
    arrays = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}
    np.savez_compressed(buffer, allow_pickle=False, facts=np.array(_facts(explanation)), **arrays)
    return buffer.getvalue()
