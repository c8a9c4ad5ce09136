"""The picture: every node is in it, in the colour of its fate, level with what it was."""

from __future__ import annotations

import builtins
import itertools
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

import matplotlib as mpl
from PIL import Image

from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.report.layout import Change, Column, lay_out
from bcos_fx.report.model import NodeRow
from bcos_fx.report.picture import check_drawable, draw
from tests.report.made_report import AFTER, BEFORE, made_report

FILL = {
    Change.UNCHANGED: "#f6f7f9",
    Change.REWRITTEN: "#cfe4fb",
    Change.CHANGED: "#ffdfb8",
    Change.NEW: "#cdeed3",
    Change.REMOVED: "#fad1d1",
}


def boxes(column: Column) -> dict[str, tuple[Change, int]]:
    return {box.name: (box.change, box.row) for box in column.boxes}


def chain(count: int) -> tuple[NodeRow, ...]:
    """An input and so many rectifiers, one after the other."""
    names = ["x", *(f"relu_{i}" for i in range(count))]
    rest = (NodeRow(name, "relu", (source,), "relu") for source, name in itertools.pairwise(names))
    return (BEFORE[0], *rest)


def test_fates() -> None:
    layout = lay_out(made_report())
    before, after = boxes(layout.before), boxes(layout.after)
    assert {name: change for name, (change, _) in before.items() if change != Change.UNCHANGED} == {
        "identity": Change.REMOVED
    }
    assert {name: change for name, (change, _) in after.items() if change != Change.UNCHANGED} == {
        "encoding": Change.NEW,
        "conv": Change.CHANGED,
        "add": Change.REWRITTEN,
    }


def test_corresponding_nodes_are_level_and_others_have_rows_of_their_own() -> None:
    layout = lay_out(made_report())
    before, after = boxes(layout.before), boxes(layout.after)
    for name in ("x", "conv", "relu", "odd", "add", "output"):
        assert before[name][1] == after[name][1]
    assert before["identity"][1] not in {row for _, row in after.values()}
    assert after["encoding"][1] not in {row for _, row in before.values()}
    assert layout.remarks[before["identity"][1]] == "removed: identity-removed"
    assert layout.remarks[after["conv"][1]] == "layer-to-bcos, alignment-raised"


def test_renamed_node_is_level_with_what_it_was_and_an_extra_one_is_new() -> None:
    after = (
        *AFTER[:5],
        NodeRow("add_1", "bcos_add", ("relu", "odd"), "add", ("own-rule",)),
        NodeRow("output_1", "logit_layer", ("add_1",), "output", ("logit-layer-added",), "output"),
        NodeRow("output", "output", ("output_1",), "output"),
    )
    layout = lay_out(made_report(nodes=after))
    assert boxes(layout.after)["add_1"] == (Change.REWRITTEN, boxes(layout.before)["add"][1])
    assert boxes(layout.after)["output_1"][0] == Change.NEW


def test_every_edge_is_drawn_once() -> None:
    column = lay_out(made_report()).before
    names = {box.row: box.name for box in column.boxes}
    drawn = [(names[a], names[b]) for a, b in column.links]
    drawn += [(names[bus.source], names[target]) for bus in column.buses for target in bus.targets]
    assert sorted(drawn) == sorted((source, row.name) for row in BEFORE for source in row.inputs)


def test_lanes_do_not_overlap() -> None:
    rows = list(chain(12))
    for i in range(6, 13):
        rows[i] = NodeRow(rows[i].name, "cat", tuple(row.name for row in rows[:i]), "cat")
    buses = lay_out(made_report(before=tuple(rows), nodes=tuple(rows), removed={})).before.buses
    assert len(buses) > 5
    spans = sorted((bus.lane, bus.source, max(bus.targets)) for bus in buses)
    for (lane, _, end), (next_lane, start, _) in itertools.pairwise(spans):
        assert lane != next_lane or end < start


def test_tall_graphs_are_split_and_nothing_is_lost() -> None:
    rows = chain(430)
    panels = lay_out(made_report(before=rows, nodes=rows, removed={})).panels
    assert len(panels) > 1
    assert [row for start, stop in panels for row in range(start, stop)] == list(range(431))


def test_svg_holds_names_and_colours(tmp_path: Path) -> None:
    path = draw(made_report(), tmp_path / "graph.svg")
    text = path.read_text()
    ElementTree.parse(path)
    for said in ("bcos_conv2d  (conv)", "input_encoding  (encoding)", "removed: identity-removed", "75.0%"):
        assert said in text
    # Each colour stands once in the legend, and once more for every box.
    for change, count in {Change.NEW: 1, Change.REMOVED: 1, Change.CHANGED: 1, Change.REWRITTEN: 1}.items():
        assert text.count(f"fill: {FILL[change]}") == count + 1


def test_same_report_same_bytes_and_another_report_another_picture(tmp_path: Path) -> None:
    for suffix in ("svg", "png", "pdf"):
        first = draw(made_report(), tmp_path / f"a.{suffix}").read_bytes()
        assert draw(made_report(), tmp_path / f"b.{suffix}").read_bytes() == first
        assert draw(made_report(removed={}), tmp_path / f"c.{suffix}").read_bytes() != first


def test_png_is_an_image_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Image.open(draw(made_report(), tmp_path / "full.png")) as image:
        assert max(image.size) > 600
        assert image.format == "PNG"
    monkeypatch.setattr("bcos_fx.report.picture._MOST_PIXELS", 600)
    with Image.open(draw(made_report(), tmp_path / "small.png")) as image:
        assert 590 <= max(image.size) <= 600


def test_users_settings_are_neither_used_nor_changed(tmp_path: Path) -> None:
    expected = draw(made_report(), tmp_path / "a.svg").read_bytes()
    with mpl.rc_context({"savefig.bbox": "tight", "savefig.facecolor": "black", "svg.fonttype": "path"}):
        settings = dict(mpl.rcParams)
        assert draw(made_report(), tmp_path / "b.svg").read_bytes() == expected
        assert dict(mpl.rcParams) == settings


def test_dollar_signs_are_no_mathematics(tmp_path: Path) -> None:
    odd = (BEFORE[0], NodeRow("a$b$c", "x$^2", ("x",), "x$^2"), NodeRow("output", "output", ("a$b$c",), "output"))
    assert "a$b$c" in draw(made_report(before=odd, nodes=odd), tmp_path / "a.svg").read_text()


@pytest.mark.parametrize("name", ["graph.gif", "graph", "nowhere/graph.svg"])
def test_what_cannot_be_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        draw(made_report(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UsageError, match="No space left"):
        draw(made_report(), tmp_path / "graph.svg")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"bcos-fx\[plot\]"):
        check_drawable(tmp_path / "graph.svg")


def test_pyplot_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def watched(name: str, *rest: object) -> object:
        assert name != "matplotlib.pyplot"
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", watched)
    draw(made_report(), tmp_path / "graph.svg")
