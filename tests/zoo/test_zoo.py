"""The zoo: rows say what was found, limits hold, and nothing is examined twice or lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bcos_fx.errors import UsageError
from benchmarks.zoo.cases import build
from benchmarks.zoo.rows import read_rows
from benchmarks.zoo.running import Limits, examine_all
from benchmarks.zoo.selection import select
from benchmarks.zoo.table import cause, coverage_page, dates, passed, totals

NETWORKS = Path(__file__).with_name("zoo_networks.py")
COMMAND = (sys.executable, "-m", "benchmarks.zoo")


def named(factory: str) -> str:
    return f"{NETWORKS}:{factory}"


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    names = [
        named(kind) for kind in ("Convolutional", "Mixed", "Undecided", "Named", "Recurrent", "Missing", "crashing")
    ]
    found = examine_all(names, tmp_path_factory.mktemp("zoo") / "rows.jsonl", workers=2)
    return {row["name"].rpartition(":")[2]: row for row in found}


def test_a_good_network_passes_with_all_its_figures(rows: dict[str, Any]) -> None:
    row = rows["Convolutional"]
    assert passed(row), row
    assert cause(row) == ""
    assert row["coverage"] == 1
    assert row["error"] <= 1e-9
    assert row["gap"] <= 1e-9
    assert row["spread"] > 0.01
    assert row["train"] == "as in eval"
    assert row["runs"]["eval, batch 1"] == "equal"
    assert any(name.startswith("size") for name in row["runs"])
    assert row["inputs"] == {"input": [3, 32, 32]}
    assert len(row["date"]) == len("2026-01-31")


def test_the_days_of_rows_are_told() -> None:
    rows: list[dict[str, Any]] = [{"date": "2026-02-03"}, {"date": "2026-01-31"}, {}]
    assert dates(rows) == "2026-01-31 to 2026-02-03"
    assert dates(rows[:1]) == "2026-02-03"
    assert dates(rows[2:]) == "an unknown day"


def test_a_part_of_a_dict_is_chosen_and_kept(rows: dict[str, Any]) -> None:
    assert rows["Named"]["output"] == "logits"
    assert passed(rows["Named"])


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("Mixed", "floor"),
        ("Undecided", "reads the values of a tensor"),
        ("Recurrent", "torch.lstm"),
        ("Missing", "has no factory 'Missing'"),
        ("crashing", "its process ended with code 3"),
    ],
)
def test_what_does_not_pass_has_a_cause(rows: dict[str, Any], factory: str, words: str) -> None:
    assert not passed(rows[factory])
    assert words in cause(rows[factory])
    assert "\n" not in cause(rows[factory])


def test_parameters_inside_an_unknown_layer_are_counted(rows: dict[str, Any]) -> None:
    row = rows["Recurrent"]
    assert row["unknown"] == {"torch.lstm": 1}
    inside, outside = 4 * 6 * (8 + 6 + 2), 8 * 3 * 16 + 8 + 6 * 5 + 5
    assert row["parameters"] == inside + outside
    widened = 8 * 3 * 16  # the first layer reads three channels more
    assert row["opaque share"] == pytest.approx(inside / (inside + outside + widened))


@pytest.mark.parametrize(
    ("factory", "limits", "words"),
    [
        ("endless", Limits(seconds=4), "it took longer than 4 s, in the stage"),
        ("greedy", Limits(seconds=120, gibibytes=2), "it needed more than 2 GiB"),
    ],
)
def test_limits_end_a_network_and_not_the_run(factory: str, limits: Limits, words: str, tmp_path: Path) -> None:
    if factory == "greedy" and not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell how much memory a process has")
    (row,) = examine_all([named(factory)], tmp_path / "rows.jsonl", limits=limits)
    assert words in cause(row)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    kept = tmp_path / "rows.jsonl"
    done = {"name": named("endless"), "failure": "as it was"}
    kept.write_text(json.dumps(done) + '\n{"name": "cut sho')
    examined: list[Any] = []
    names = [named("endless"), named("Missing"), named("endless")]
    rows = examine_all(names, kept, note=examined.append)
    assert [row["name"] for row in rows] == names[:2]
    assert rows[0] == done
    assert len(examined) == 1
    assert [row["name"] for row in read_rows(kept)] == names[:2]


def test_no_network_is_begun_after_its_time(tmp_path: Path) -> None:
    kept = tmp_path / "rows.jsonl"
    kept.write_text(json.dumps({"name": named("Missing"), "failure": "as it was"}) + "\n")
    rows = examine_all([named("endless"), named("Missing")], kept, minutes=0)
    assert [row["name"] for row in rows] == [named("Missing")]
    assert [row["name"] for row in read_rows(kept)] == [named("Missing")]


@pytest.mark.parametrize(("side", "taken"), [(16, 64), (48, 96), (128, 96), (None, 96)])
def test_images_are_as_small_as_a_network_takes_them(side: int | None, taken: int) -> None:
    assert build(named("Coarse"), side=side).inputs["input"].shape[1:] == (3, taken, taken)


def test_another_file_is_not_written_to(tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("nothing of the kind\n")
    with pytest.raises(UsageError, match="no row of a zoo"):
        examine_all([named("Missing")], other)
    assert other.read_text() == "nothing of the kind\n"


def test_names_patterns_and_lists(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    listed = tmp_path / "some.txt"
    listed.write_text("# residual networks\ntorchvision:resnet1*\n\na.py:net  # mine\n")
    found = select(["timm:x", str(listed), "timm:x"])
    assert found[0] == "timm:x"
    assert found[-1] == "a.py:net"
    assert set(found[1:-1]) == {"torchvision:resnet18", "torchvision:resnet101", "torchvision:resnet152"}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([], "no network is named"),
        (["torchvision:nothing*"], "is called like"),
        (["nowhere.txt"], "cannot be read"),
        (["mine:*"], "no list of the networks"),
    ],
)
def test_what_names_nothing_is_refused(asked: list[str], words: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(Exception, match=words):
        select(asked)


def test_the_page_counts_and_explains(rows: dict[str, Any]) -> None:
    both = [rows["Convolutional"] | {"name": "timm:good"}, rows["Mixed"] | {"name": "timm:bad"}]
    assert "| timm | 2 | 2 (100%) | 2 (100%) | 1 (50%)" in totals(both)
    page = coverage_page(both, "Coverage", ["Versions: none"])
    assert page.startswith("# Coverage\n\n- Versions: none\n")
    assert f"| timm:bad | {cause(both[1])} |" in page
    assert page.count("| timm:good |") == 1


def test_the_command(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    out, page = tmp_path / "rows.jsonl", tmp_path / "page.md"
    words = [*COMMAND, named("Convolutional"), "--out", str(out), "--page", str(page)]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 1" in done.stderr
    assert "good" in done.stderr
    assert "1 (100%)" in done.stdout
    assert "## Every network" in page.read_text()
    assert "- Examined: 1 of 1 networks, 2" in page.read_text()
    bad = subprocess.run(
        [*COMMAND, named("Missing"), "--out", str(out)], cwd=root, capture_output=True, text=True, check=False
    )
    assert bad.returncode == 1
    assert "has no factory" in bad.stderr
    wrong = subprocess.run(
        [*COMMAND, "torchvision:zzz*", "--out", str(out)], cwd=root, capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert "is called like" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_missing_folder_is_said_before_anything_is_examined(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        examine_all([named("endless")], tmp_path / "nowhere" / "rows.jsonl")


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_an_interrupted_network_leaves_no_row(root: Path, tmp_path: Path) -> None:
    """It is examined again; and the process that examined it ends with the run."""
    out = tmp_path / "rows.jsonl"
    words = [*COMMAND, named("Missing"), named("endless"), "--out", str(out)]
    process = subprocess.Popen(words, cwd=root, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "Missing" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [row["name"] for row in read_rows(out)] == [named("Missing")]
