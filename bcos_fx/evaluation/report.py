"""Results as files: JSON, CSV, plots, and one page that needs nothing else."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcos_fx.escaping import amount, shown_in_html
from bcos_fx.evaluation.examples import example_cards
from bcos_fx.evaluation.localisation import boxes
from bcos_fx.evaluation.plots import curves
from bcos_fx.evaluation.session import Evaluation
from bcos_fx.explanation.render.html import page
from bcos_fx.files import replacing
from bcos_fx.lazy import check_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LISTED = 20


def write_report(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write ``results.json``, ``results.csv``, ``scores.csv``, plots and ``evaluation.html``; return their paths.

    Each file is written whole or not at all; those that are there are replaced.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: a file cannot be written.
    """
    # Everything is made before anything is written, so that no half of a report is left.
    plots = dict(_plots(evaluation))
    contents = {
        "results.json": json.dumps(as_data(evaluation), indent=2, sort_keys=True).encode() + b"\n",
        "results.csv": _csv(evaluation.rows()),
        "scores.csv": _csv(_score_rows(evaluation)),
        **{f"{name}.png": _png(figure) for name, figure in plots.items()},
        "evaluation.html": _page(evaluation, plots).encode("utf-8", "replace"),
    }
    for name, content in contents.items():
        with replacing(folder / name, "the results") as stream:
            stream.write(content)
    return [folder / name for name in contents]


def check_extras(metrics: Sequence[str]) -> None:
    """Check before hours of work, and not after them, that what it ends in can be written."""
    needed = {"matplotlib": "drawing an evaluation"}
    if "accuracy" in metrics or "zeroshot" in metrics:
        needed["torchmetrics"] = "the calibration error"
    for library, purpose in needed.items():
        check_installed(library, "evaluate", purpose)


def as_data(evaluation: Evaluation) -> dict[str, Any]:
    """Return all figures as plain data: what ``results.json`` holds."""
    header = evaluation.task.header("evaluation", {})
    return {
        **{name: header[name] for name in ("bcos-fx", "model", "original", "data", "settings")},
        "accuracy": None if evaluation.accuracy is None else evaluation.accuracy.to_dict(),
        "gridpg": [result.to_dict() for results in evaluation.localisations for result in results],
        "curves": [
            {
                "measure": curve.measure,
                "settings": {name: str(value) for name, value in curve.settings.items()},
                "places": curve.places.tolist(),
                "mean": {method: values.mean(0).tolist() for method, values in curve.values.items()},
            }
            for curve in evaluation.curves
        ],
        "refused": dict(evaluation.refused),
        "unreadable": dict(evaluation.outcome.unreadable),
    }


# ---------------------------------------------------------------- tables


def summary(evaluation: Evaluation) -> list[list[str]]:
    """Return the figures as rows of text, a head first: measure, method, value, 95 % interval, and on what."""
    return [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in evaluation.rows()]


def _score_rows(evaluation: Evaluation) -> Iterator[list[Any]]:
    """Return every score of every cell."""
    yield ["protocol", "side", "method", "grid", "cell", "image", "label", "score"]
    source = evaluation.task.source
    for results in evaluation.localisations:
        for result in results:
            game = [result.protocol.name, result.protocol.side, result.method]
            for number, (grid, scores) in enumerate(zip(result.grids, result.per_grid.tolist(), strict=True)):
                cells = zip(grid.images, grid.labels, scores, strict=True)
                for cell, (image, label, score) in enumerate(cells):
                    yield [*game, number, cell, source.name(image), label, score]


def _csv(rows: Iterator[list[Any]]) -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode("utf-8", "backslashreplace")


# ---------------------------------------------------------------- plots


def _plots(evaluation: Evaluation) -> Iterator[tuple[str, Figure]]:
    for results in evaluation.localisations:
        protocol = results[0].protocol
        yield f"gridpg-{protocol.side}x{protocol.side}", boxes(results)
    for curve in evaluation.curves:
        xlabel = "share of the image that was changed"
        yield curve.measure, curves(curve.values, curve.places, xlabel=xlabel, ylabel=curve.ylabel)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


# ---------------------------------------------------------------- the page


def _page(evaluation: Evaluation, plots: dict[str, Figure]) -> str:
    pieces = [_table(summary(evaluation)), *(_figure(name, figure) for name, figure in plots.items())]
    if evaluation.refused:
        pieces.append(f"<h2>Left out</h2>{_reasons(evaluation.refused)}")
    if unreadable := evaluation.outcome.unreadable:
        pieces.append(
            f'<p class="wrong">{amount(len(unreadable), "image")} could not be read</p>{_reasons(unreadable)}'
        )
    figures = shown_in_html(json.dumps(as_data(evaluation), indent=2, sort_keys=True))
    pieces.append(f"<details><summary>All figures and settings</summary><pre>{figures}</pre></details>")
    return page(example_cards(evaluation), title="Evaluation", above="\n".join(pieces))


def _reasons(reasons: Mapping[str, str]) -> str:
    items = [f"<li>{shown_in_html(name)}: {shown_in_html(why)}</li>" for name, why in list(reasons.items())[:_LISTED]]
    more = f"<li>and {len(reasons) - _LISTED} more</li>" if len(reasons) > _LISTED else ""
    return f"<ul>{''.join(items)}{more}</ul>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{shown_in_html(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr><th>{shown_in_html(row[0])}</th><th>{shown_in_html(row[1])}</th>"
        + "".join(f"<td>{shown_in_html(cell)}</td>" for cell in row[2:])
        + "</tr>"
        for row in rows[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _figure(name: str, figure: Figure) -> str:
    data = base64.b64encode(_png(figure)).decode()
    alt, width = shown_in_html(name), round(96 * figure.get_figwidth())
    return f'<p><img src="data:image/png;base64,{data}" alt="{alt}" width="{width}" style="max-width:100%"></p>'
