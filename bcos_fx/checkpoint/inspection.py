"""What is in a file, as a table, with nothing in it run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from bcos_fx.checkpoint.architecture import guess_architecture
from bcos_fx.checkpoint.folders import weights_at
from bcos_fx.checkpoint.identify import FileKind, identify
from bcos_fx.checkpoint.published import guess_published
from bcos_fx.checkpoint.reading import StateDict, count_nonfinite, load_object, load_safetensors, load_tensors
from bcos_fx.errors import CheckpointError
from bcos_fx.escaping import listed

_SHOWN_MEMBERS = 20


@dataclass(frozen=True)
class TensorRow:
    """One tensor of a file: its name, shape, dtype, and how many of its values are NaN or infinite."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    nonfinite: int


@dataclass(frozen=True)
class Inspection:
    """What is found in a file without running it.

    ``size`` is in bytes; ``problem`` says why the tensors could not be listed, where they could not;
    ``arch`` is the ``--arch`` that fits, where a torchvision network was recognized.
    """

    path: str
    size: int
    kind: str
    summary: str
    facts: tuple[tuple[str, str], ...]
    tensors: tuple[TensorRow, ...] = ()
    unwrapped: tuple[str, ...] = ()
    arch: str | None = None
    problem: str | None = None

    @property
    def elements(self) -> int:
        """The number of values in all tensors, buffers included."""
        return sum(row.elements for row in self.tensors)

    @property
    def nonfinite(self) -> int:
        """The number of NaN and infinite values in all tensors."""
        return sum(row.nonfinite for row in self.tensors)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Label and value of every line of the head, before the table of tensors."""
        yield "file", self.path
        yield "size", f"{self.size:,} bytes"
        yield "kind", f"{self.kind}: {self.summary}"
        yield from self.facts
        for wrapper in self.unwrapped:
            yield "unwrapped", wrapper
        if self.tensors:
            yield (
                "tensors",
                f"{len(self.tensors)} with {self.elements:,} values, {self.nonfinite:,} of them NaN or infinite",
            )
            if self.kind != "bcos-fx":
                yield "arch", self.arch or "not recognized: name the factory that built it, as FILE.py:FACTORY"
        if self.problem:
            yield "problem", self.problem

    def to_text(self) -> str:
        """Format the header and the table of tensors as plain text."""
        head = [f"{label:<10} {value}" for label, value in self.rows()]
        width = max((len(row.name) for row in self.tensors), default=0)
        table = [
            f"  {row.name:<{width}}  {row.dtype:<9} {row.shape}"
            + (f"  {row.nonfinite} not finite" if row.nonfinite else "")
            for row in self.tensors
        ]
        return "\n".join(head + table)

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as plain values, ready for JSON."""
        return asdict(self) | {
            "elements": self.elements,
            "nonfinite": self.nonfinite,
            "facts": [list(f) for f in self.facts],
        }


def inspect(path: str | os.PathLike[str], *, key: str | None = None) -> Inspection:
    """Look into any file: its kind, what it would import, its members, its tensors. Nothing in it is run.

    Raises:
        CheckpointError: the file is not there or cannot be opened.
    """
    kind = identify(path)
    path = weights_at(Path(path))
    state, problem = _state(path, kind, key)
    rows: tuple[TensorRow, ...] = ()
    if state is not None:
        try:
            counts = count_nonfinite(state)
            rows = tuple(_row(name, tensor, counts[name]) for name, tensor in state.tensors.items())
        except CheckpointError as error:
            state, problem = None, error.what
    published = guess_published(state) if state is not None and kind.kind != "bcos-fx" else None
    arch = guess_architecture(state.tensors) if state is not None and kind.kind != "bcos-fx" else None
    facts = tuple(_facts(kind))
    if published is not None:
        facts += (("layout", f"a B-cos network, as {published[0]} saves it: converted as it is, at B = 2"),)
        arch = published[1]
    return Inspection(
        path=str(path),
        size=Path(path).stat().st_size,
        kind=kind.kind,
        summary=kind.summary,
        facts=facts,
        tensors=rows,
        unwrapped=state.unwrapped if state else (),
        arch=arch,
        problem=problem,
    )


def _state(path: str | os.PathLike[str], kind: FileKind, key: str | None) -> tuple[StateDict | None, str | None]:
    try:
        if kind.kind == "bcos-fx":
            return StateDict(load_safetensors(Path(path)), str(path)), None
        if kind.kind in ("state-dict", "nested-checkpoint", "safetensors", "sharded"):
            return load_tensors(path, key=key), None
        load_object(path, kind, trust_pickle=False)
    except CheckpointError as error:
        return None, f"{error.what} ({error.hint})" if error.hint else error.what
    return None, None


def _row(name: str, tensor: Tensor, nonfinite: int) -> TensorRow:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorRow(name, tuple(tensor.shape), dtype, tensor.numel(), nonfinite)


def _facts(kind: FileKind) -> Iterator[tuple[str, str]]:
    details = kind.details
    if "format" in details:
        yield "format", str(details["format"])
    if details.get("root") and kind.kind in ("pickled-module", "pickle"):
        yield "class", str(details["root"])
    if kind.kind in ("pickled-module", "pickle", "nested-checkpoint") and details.get("names"):
        yield "imports", ", ".join(details["names"])
    if kind.kind == "nested-checkpoint":
        yield "keys", ", ".join(details["keys"])
    if "metadata" in details:
        yield "metadata", ", ".join(details["metadata"]) or "none"
    if "members" in details and "root" not in details:
        members = details["members"]
        yield "members", listed(members, _SHOWN_MEMBERS)
    if "reason" in details:
        yield "reason", str(details["reason"])
