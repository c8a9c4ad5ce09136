"""The report as text: what was done, what was proved, what was refused, and what to do next."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bcos_fx.escaping import amount, listed
from bcos_fx.report.model import Drift, Findings, NodeRow
from bcos_fx.report.sentences import (
    calibration_sentence,
    drift_sentence,
    next_step,
    opening,
    percent,
    scientific,
    verdict,
    verdict_line,
)
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.rule import PHASES
from bcos_fx.terminal import plain_console

_CHANGE, _CALIBRATION, _NEXT = "Change of the function", "Calibration", "What next"
_STATED_ELSEWHERE = ("b", "mean", "std")
_NODES_NAMED = 4

TableRow = Sequence[str | Text]
Facts = Sequence[tuple[str, str]]


def render(report: Findings, *, nodes: bool = False, width: int = 110) -> str:
    """Return the report as plain text, without color codes."""
    lines = io.StringIO()
    show(report, plain_console(lines, width), nodes=nodes)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines()) + "\n"


def show(report: Findings, console: Console, *, nodes: bool = False, titles: Collection[str] | None = None) -> None:
    """Print the report, or its sections of these titles, in color where the console has any."""
    for title, body in _sections(report, nodes):
        if titles is None or title in titles:
            console.print(Text(title, style="bold cyan"))
            console.print(Padding(body, (0, 0, 1, 2)), highlight=False)


def show_calibration(report: Findings, console: Console) -> None:
    """Print only what a calibration changed, and what to do next."""
    show(report, console, titles=(_CALIBRATION, _NEXT))


def show_change(report: Findings, console: Console) -> None:
    """Print only how far the function changed, and what to do next."""
    show(report, console, titles=(_CHANGE, _CALIBRATION, _NEXT))


def render_head(report: Findings, *, before: Facts = (), after: Facts = (), width: int = 110) -> str:
    """Return recipe, options, inputs, coverage and verdict as plain text, between facts of the caller's."""
    lines = io.StringIO()
    console = plain_console(lines, width)
    facts = [*before, *opening(report), *head_rows(report), ("equivalence", verdict_line(report)), *after]
    console.print(_facts(facts), highlight=False)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())


def _sections(report: Findings, nodes: bool) -> Iterator[tuple[str, RenderableType]]:
    yield "What this is", _facts(opening(report))
    yield "Conversion", _facts(head_rows(report))
    yield "Rules applied", _applied(report)
    yield "Equivalence", _verification(report)
    yield _CHANGE, _drift(report)
    difference = report.train_difference
    trains = None if difference is None else f"the original's train graph is another than its eval graph: {difference}"
    lists: tuple[tuple[str, RenderableType | None], ...] = (
        (_CALIBRATION, _calibration(report)),
        ("Nearly matched, and why not", _near_misses(report)),
        ("Operations that no rule knows", _unknown_table(report)),
        ("Parameters that the eval graph never uses", _unused_table(report)),
        ("Taken from the shape of the example: the graph holds for this shape only", _bullets(report.guards)),
        ("Train mode", None if trains is None else Text(trains)),
        ("Notes", _bullets(report.notes)),
    )
    yield from ((title, body) for title, body in lists if body is not None)
    if nodes:
        yield "Nodes", _nodes(report)
    step = next_step(report)
    if step is not None:
        yield _NEXT, Text(step, style="yellow")


def head_rows(report: Findings) -> list[tuple[str, str]]:
    """Return recipe, options, inputs and coverage as rows of label and text."""
    options = report.options
    defaults = Options().to_dict()
    others = [(name, value) for name, value in options.items() if name not in _STATED_ELSEWHERE]
    changed = [f"{name}={value}" for name, value in others if value != defaults.get(name)]
    coverage = report.coverage
    rows = [("recipe", report.recipe), ("B", _pressure(report)), ("options", ", ".join(changed) or "defaults")]
    rows += [("input", f"{name}: {taken}") for name, taken in report.inputs.items()]
    if options["mean"]:
        units = "" if options["pixel_max"] == 1 else f", in units of 0 to {options['pixel_max']:g}"
        statistics = f"mean {_numbers(options['mean'])}, std {_numbers(options['std'])}{units}, done inside"
        rows.append(("normalisation", statistics))
    parts = f"{coverage.converted:,} of {coverage.total:,} linear and convolution parameters on value paths are B-cos"
    rows.append(("coverage", f"{coverage.share:.1%} ({parts})"))
    rows.append(("nodes", f"{len(report.before)} as traced, {len(report.nodes)} now"))
    return rows


def _applied(report: Findings) -> RenderableType:
    # What fell away because nothing used it any more was made by no rule; names of rules hold no spaces.
    counts = {name: count for name, count in report.rule_counts().items() if " " not in name}
    if not counts:
        return Text("none")
    used = [(name, rule, counts[name]) for name, rule in report.rules.items() if name in counts]
    rows = [
        (name, str(count), rule.phase, _KEEPS[rule.preserves])
        for name, rule, count in sorted(used, key=lambda item: PHASES.index(item[1].phase))
    ]
    return _table(("rule", "nodes", "phase", "keeps the function in"), rows, right=(1,))


_KEEPS = {"always": "train and eval", "eval": "eval", "never": "neither: changes it"}


def _verification(report: Findings) -> RenderableType:
    verification = report.figures.verification
    if verification is None:
        return Text("not verified: this was a dry run, or verification was switched off", style="yellow")
    style = {"equal": "green", "not tested": "yellow", "different": "red"}[verdict(report)]
    heading = Text(f"{verdict(report).upper()} ", style=f"bold {style}")
    heading.append(
        f"worst relative error {scientific(verification['error'])} (tolerance {scientific(verification['tolerance'])}) "
        f"in {verification['dtype']} (method: {verification.get('method', 'full')}), original against converted before "
        "any rule that changes the function" + (": the weights were trained since" if report.figures.trained else ""),
        style="default",
    )
    parts: list[RenderableType] = [heading]
    if verification["comparisons"]:
        rows = [
            (row["name"], scientific(row["relative"]), scientific(row["spread"]), row["verdict"])
            for row in verification["comparisons"]
        ]
        parts.append(_table(("what was run", "relative error", "output varies by", "verdict"), rows, right=(1, 2)))
    left_out = [part.strip() for part in verification["detail"].split(";") if part.strip().startswith("left out")]
    parts += [Text(line) for line in left_out]
    return Group(*parts)


def _drift(report: Findings) -> RenderableType:
    steps, total = report.figures.drift, report.figures.total_drift
    sentence = Text(drift_sentence(report))
    if not steps:
        return sentence
    rows: list[TableRow] = [_drift_row(step.rule, step) for step in steps]
    if total is not None:
        rows.append([Text(str(cell), style="bold") for cell in _drift_row("all together", total)])
    return Group(sentence, _table(("rule", "nodes", "change of output", "same highest"), rows, right=(1, 2, 3)))


def _drift_row(name: str, drift: Drift) -> TableRow:
    return (name, str(drift.nodes), percent(drift.change), "" if drift.agreement is None else f"{drift.agreement:.0%}")


def _calibration(report: Findings) -> RenderableType | None:
    calibration = report.figures.calibration
    if calibration is None:
        return None
    rows = [
        (
            change.node,
            change.kind,
            f"{change.scale:.3g}",
            f"{change.lowest:.3g} to {change.highest:.3g}",
            f"{change.shift:.2g}",
            f"{change.dead} of {change.channels}" if change.dead else "",
        )
        for change in calibration.layers
    ]
    titles = ("layer", "what", "median scale", "from, to", "shift of the mean", "dead channels")
    parts: list[RenderableType] = [Text(calibration_sentence(calibration)), _table(titles, rows, right=(2, 3, 4, 5))]
    if calibration.kept:
        parts.append(_table(("left as it was", "why"), list(calibration.kept.items())))
    return Group(*parts)


def _near_misses(report: Findings) -> RenderableType | None:
    grouped: dict[tuple[str, str], list[str]] = {}
    for miss in report.near_misses:
        grouped.setdefault((miss.rule, miss.reason), []).append(miss.node)
    rows = [(rule, reason, listed(nodes, _NODES_NAMED)) for (rule, reason), nodes in grouped.items()]
    return _table(("rule", "why not", "nodes"), rows) if rows else None


def _unknown_table(report: Findings) -> RenderableType | None:
    rows = [(row.op, row.name, row.source or "") for row in report.unknown]
    return _table(("operation", "node", "where"), rows) if rows else None


def _unused_table(report: Findings) -> RenderableType | None:
    counts = Counter(name.split(".")[0] for name in report.unused)
    rows = [(module, amount(count, "parameter")) for module, count in counts.items()]
    return _facts(rows) if rows else None


def _nodes(report: Findings) -> RenderableType:
    rows: list[TableRow] = [(row.name, _was_is(row), ", ".join(row.rules), row.source or "") for row in report.nodes]
    rows += [
        (row.name, Text(f"{row.was or row.op} -> removed", style="red"), report.removed[row.name], row.source or "")
        for row in report.before
        if row.name in report.removed
    ]
    return _table(("node", "was -> is", "rules", "where"), rows)


def _was_is(row: NodeRow) -> str:
    now = row.op if row.b is None else f"{row.op} (B = {row.b:g})"
    if row.was is None:
        return f"new -> {now}"
    return now if row.was == row.op else f"{row.was} -> {now}"


def _table(titles: Sequence[str], rows: Iterable[TableRow], *, right: Sequence[int] = ()) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        # Names hold brackets at times; as text they are not taken for markup.
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table


def _facts(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(Text(label), Text(value))
    return table


def _bullets(lines: Sequence[str]) -> RenderableType | None:
    if not lines:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for line in lines:
        table.add_row(Text("-"), Text(line))
    return table


def _pressure(report: Findings) -> str:
    """State the B of every layer; that of the options alone for a report whose nodes do not say theirs."""
    layers, b = report.pressures(), report.options["b"]
    if len(layers) == 1 or not (layers or isinstance(b, Mapping)):
        pressure = next(iter(layers), b)
        return f"{pressure:g} in every layer" + (" (plain linear units)" if pressure == 1 else "")
    chosen = ", ".join(f"{pattern}={value:g}" for pattern, value in b.items()) if isinstance(b, Mapping) else ""
    if not layers:
        return chosen + ("" if "*" in b else ", other layers 1")
    counts = [
        f"{value:g} in {len(paths)} of the layers ({listed(paths, _NODES_NAMED)})" for value, paths in layers.items()
    ]
    return "; ".join(counts) + (f"; chosen by {chosen}" if chosen else "")


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
