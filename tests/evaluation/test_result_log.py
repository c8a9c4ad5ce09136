"""Files of results that grow line by line, are gone on with, and hold nothing of anything else."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bcos_fx.errors import UsageError
from bcos_fx.evaluation.process_group import ProcessGroup, joined
from bcos_fx.evaluation.result_log import ResultLog
from bcos_fx.evaluation.runner import Runner

HEADER = {"kind": "gridpg", "model": "a" * 64, "settings": {"side": 3, "grids": 10}}


def filled(path: Path, rows: int = 3) -> Path:
    log = ResultLog(path, HEADER)
    for number in range(rows):
        log.append(number, [number + 1 / 3, math.pi])
    return path


def test_results_read_back_as_they_were(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl")
    assert ResultLog(path, HEADER).rows == {n: [n + 1 / 3, math.pi] for n in range(3)}
    assert json.loads(path.read_text().splitlines()[0]) == HEADER
    assert len(path.read_text().splitlines()) == 4


@pytest.mark.parametrize("cut", [1, 7, 20])
def test_half_a_line_is_dropped_and_said(cut: int, tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl")
    path.write_bytes(path.read_bytes()[:-cut])
    log = ResultLog(path, HEADER)
    assert sorted(log.rows) == [0, 1]
    assert log.notes == ["a.jsonl ended in half a line, which was dropped: the last run was cut off there"]
    log.append(2, "new")
    again = ResultLog(path, HEADER)
    assert again.rows[2] == "new"
    assert not again.notes


def test_half_a_header_begins_anew(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl", rows=1)
    path.write_bytes(path.read_bytes()[:9])
    log = ResultLog(path, HEADER)
    assert log.rows == {}
    assert len(log.notes) == 1
    log.append(0, 1)
    assert ResultLog(path, HEADER).rows == {0: 1}


def test_results_of_something_else_are_refused_by_what_differs(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl")
    before = path.read_bytes()
    other = {**HEADER, "model": "b" * 64, "settings": {"side": 2, "grids": 10}}
    with pytest.raises(UsageError, match="results of something else") as caught:
        ResultLog(path, other)
    assert "settings.side was 3 and is 2" in str(caught.value)
    assert 'model was "aaaaaaaaaaa…' in str(caught.value)
    assert "grids" not in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["no json", "[1]", '{"n": "1", "row": 2}', '{"n": 1}', "[" * 100_000])
def test_a_line_of_something_else_is_named(line: str, tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(UsageError, match=r"the line holds no result") as caught:
        ResultLog(path, HEADER)
    assert caught.value.where == f"{path}:3"


def test_work_without_a_result_leaves_no_file(tmp_path: Path) -> None:
    def compute(number: int) -> float:
        raise UsageError("the first piece fails")

    with pytest.raises(UsageError, match="the first piece fails"):
        Runner(folder=tmp_path).run("work", HEADER, [1], compute, "working")
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_numbers_that_are_none_are_not_written(tmp_path: Path) -> None:
    path = filled(tmp_path / "a.jsonl", rows=0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        ResultLog(path, HEADER).append(0, math.nan)
    assert ResultLog(path, HEADER).rows == {}


def test_work_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    said: list[str] = []
    runner = Runner(folder=tmp_path, log=said.append)
    computed: list[int] = []
    interruptions = [3]

    def compute(number: int) -> float:
        if number in interruptions:
            raise KeyboardInterrupt(interruptions.pop())
        computed.append(number)
        return number / 3

    with pytest.raises(KeyboardInterrupt):
        runner.run("work", HEADER, [1] * 5, compute, "working")
    assert runner.run("work", HEADER, [1] * 5, compute, "working") == [n / 3 for n in range(5)]
    assert computed == [0, 1, 2, 3, 4]
    assert said == ["working: going on, 3 of 5 were done before"]
    assert runner.run("work", HEADER, [1] * 5, compute, "working") == [n / 3 for n in range(5)]
    assert computed == [0, 1, 2, 3, 4]


def test_a_run_of_one_process_takes_over_from_several(tmp_path: Path) -> None:
    filled(tmp_path / "work.jsonl", rows=1)
    log = ResultLog(tmp_path / "work.3.jsonl", HEADER)
    log.append(1, "another's")
    filled(tmp_path / "work-more.jsonl", rows=4)
    found = Runner(folder=tmp_path).run("work", HEADER, [1] * 3, lambda n: f"computed {n}", "working")
    assert found == [[1 / 3, math.pi], "another's", "computed 2"]


def test_one_process_is_a_team_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as group:
        assert group == ProcessGroup(0, 1)
        assert group.is_main
        assert group.gathered({1: "a"}) == {1: "a"}
