"""Many networks, each converted, verified and certified in a process of its own; a table of what works and what not.

python -m benchmarks.zoo NETWORKS... [--out ROWS.jsonl] [--page FILE.md]     (from the root of the repository)
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from bcos_fx.cli.console import echo
from bcos_fx.cli.failure import CHECK_FAILED, guarded
from bcos_fx.cli.interruption import interruptible
from bcos_fx.files import replacing
from bcos_fx.version import __version__
from benchmarks.zoo.running import Limits, examine_all
from benchmarks.zoo.selection import select
from benchmarks.zoo.table import cause, coverage_page, dates, passed, totals, versions

EPILOG = """Examples:

python -m benchmarks.zoo timm:resnet18 torchvision:vit_b_16 --out zoo.jsonl

python -m benchmarks.zoo 'torchvision:resnet*' models.txt --out zoo.jsonl --page coverage.md --workers 2

Exit code 0: everything that is asked of a network holds for each one. 1: for some it does not; the table says why.
"""


def run(
    networks: Annotated[
        list[str],
        typer.Argument(
            help="Names, as for --arch (timm:resnet18, transformers:ViTModel@eager, open_clip:RN50, module:factory); "
            "patterns of a library's names (in quotes: 'timm:resnet*'); .txt files with one of these on a line.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File of JSON lines, one per network. A run that was stopped goes on where it was: networks that it "
            "has a line of are not examined again."
        ),
    ] = Path("zoo.jsonl"),
    page: Annotated[
        Path | None, typer.Option(help="Write totals, failures with their causes and all figures to this page.")
    ] = None,
    side: Annotated[
        int | None,
        typer.Option(
            min=8,
            help="Least side of the images in pixels: doubled until a network takes it, its own at the most. "
            "(default: its own)",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Time that one network may take.")] = 600,
    memory: Annotated[float, typer.Option(min=0.5, help="Memory that one network may take, in GiB.")] = 10,
    workers: Annotated[int, typer.Option(min=1, help="Networks at a time.")] = 1,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Begin no further network after so long: a later run goes on; 0 makes the page of the rows there are. "
            "(default: all are examined)",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Examine many networks: is each one traced, converted, equal at B = 1, certified and complete, in float64?

    Networks get random weights, with norm statistics from data, so that each answers differently to different images;
    nothing is downloaded. Each is examined in a process of its own.
    """
    names = select(networks)
    width = max(map(len, names))
    counted = _Counter(len(names), width)
    limits = Limits(seconds, memory)
    notes: dict[str, Any] = {"note": counted, "known": counted.pass_over}
    rows = examine_all(names, out, limits=limits, side=side, workers=workers, minutes=minutes, **notes)
    echo(totals(rows))
    if page is not None:
        _write_page(page, rows, side, len(names))
    if not all(map(passed, rows)):
        raise typer.Exit(CHECK_FAILED)


class _Counter:
    """Prints a line for each network that is done."""

    def __init__(self, total: int, width: int) -> None:
        self._total, self._width, self._done = total, width, 0

    def pass_over(self, count: int) -> None:
        """Count networks that an earlier run examined."""
        self._done += count
        if count:
            echo(f"{count} of {self._total} examined before", err=True)

    def __call__(self, row: dict[str, Any]) -> None:
        self._done += 1
        verdict = cause(row) or "good"
        seconds = row["seconds in all"]
        echo(f"{self._done:>4} of {self._total}  {row['name']:<{self._width}} {seconds:>5.0f} s  {verdict}", err=True)


def _write_page(page: Path, rows: list[dict[str, Any]], side: int | None, total: int) -> None:
    setting = [
        f"Versions: Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}, {versions(rows)}"
        f"bcos-fx {__version__}",
        f"Examined: {len(rows)} of {total} networks, {dates(rows)}",
        "Random weights, statistics of norms from structured images; recipe `equivalent`; float64",
        f"Images of {side} pixels, doubled until a network takes them, its own size at the most"
        if side
        else "Images of its own size",
    ]
    with replacing(page, "the page") as stream:
        stream.write(coverage_page(rows, "Coverage", setting).encode("utf-8", "replace"))
    echo(f"wrote {page}", err=True)


app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode="rich")
app.command(epilog=EPILOG)(guarded(run))

if __name__ == "__main__":
    with interruptible():
        app(prog_name="python -m benchmarks.zoo")
