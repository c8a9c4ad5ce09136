"""``bcos-fx inspect``: what is in a file, with nothing in it run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bcos_fx.cli.console import echo, echo_json
from bcos_fx.cli.failure import BAD_INPUT
from bcos_fx.escaping import amount

if TYPE_CHECKING:
    from bcos_fx.artifact import Header

NAME = "inspect"
EPILOG = """Examples:

bcos-fx inspect last.ckpt

bcos-fx inspect *.safetensors --json

Exit code 0: every file could be read, or is of a kind that is known and left shut. 2: one is missing, damaged or
holds NaN.
"""
# Kinds whose tensors are meant to be read: where they cannot be, the file is at fault.
_READABLE = (
    "state-dict",
    "nested-checkpoint",
    "tensor",
    "safetensors",
    "bcos-fx",
    "damaged",
    "empty",
    "text",
    "unknown",
)


def inspect_file(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Checkpoints, or converted networks.")],
    key: Annotated[str | None, typer.Option(help="Look only at this key of a nested checkpoint.")] = None,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else: one entry a file.")] = False,
) -> None:
    """Show what a file is and holds: kind, classes that it would import, tensors, the --arch that fits. Runs nothing.

    Of a converted network: its recipe, options, coverage, what was proved, its classes, its origin and how it was
    trained, and its operations.
    """
    from bcos_fx.artifact import read_header
    from bcos_fx.checkpoint import inspect
    from bcos_fx.cli.check import local_file

    entries: list[dict[str, object]] = []
    sound = True
    for path in map(local_file, files):
        inspection = inspect(path, key=key)
        header = read_header(path) if inspection.kind == "bcos-fx" else None
        readable = inspection.problem is None or inspection.kind not in _READABLE
        sound = sound and inspection.nonfinite == 0 and readable and (header is None or header.intact)
        entries.append(inspection.to_dict() | ({"bcos_fx": _header_as_dict(header)} if header is not None else {}))
        if not json:
            echo(_head(path, header) if header is not None else inspection.to_text())
            echo("")
    if json:
        echo_json(entries)
    if not sound:
        raise typer.Exit(BAD_INPUT)


def _header_as_dict(header: Header) -> dict[str, object]:
    record, report = header.record, header.record.report
    return {
        "format": header.format,
        "versions": dict(header.versions),
        "recipe": header.recipe,
        "options": dict(header.options),
        "coverage": {"converted": report.coverage.converted, "total": report.coverage.total},
        "verification": report.figures.verification,
        "explainable": None if report.figures.explainable is None else asdict(report.figures.explainable),
        "trained": report.figures.trained,
        "inputs": dict(report.inputs),
        "classes": list(record.classes),
        "training": [asdict(run) for run in record.training],
        "origin": None if record.origin is None else asdict(record.origin),
        "ops": dict(header.ops),
        "parameters": header.parameters,
        "tensors": header.tensors,
        "bytes": header.size,
        "intact": header.intact,
    }


def _head(path: Path, header: Header) -> str:
    from bcos_fx.network.facts import describe_facts
    from bcos_fx.report.text import render_head

    record = header.record
    ops = ", ".join(f"{count} {op}" for op, count in header.ops.items())
    return render_head(
        record.report,
        before=[
            ("file", str(path)),
            ("kind", f"a network converted by bcos_fx {header.versions.get('bcos_fx', '?')}, format {header.format}"),
            ("size", f"{header.size:,} bytes, {'whole' if header.intact else 'ALTERED: does not fit its checksum'}"),
        ],
        after=[
            *describe_facts(record.classes, record.training, record.origin),
            ("parameters", f"{header.parameters:,} in {amount(header.tensors, 'tensor')}"),
            ("operations", ops),
        ],
    )
