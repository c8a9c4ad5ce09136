"""Ctrl-C at any moment, full disks, names that are not text, rows that something else wrote: one message each."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bcos_fx.errors import TrainingError, UsageError
from bcos_fx.evaluation.result_log import ResultLog
from benchmarks.zoo.rows import append_row, read_rows
from benchmarks.zoo.table import cause, coverage_page, totals
from tests.cli.conftest import SHAPE, TINY

# The interrupt comes while one module is imported, and the module does with it what libraries do.
_CHILD = """
import importlib.abc, os, signal, sys
module, what, *words = sys.argv[1:]

class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != module:
            return None
        sys.meta_path.remove(self)
        try:
            os.kill(os.getpid(), signal.SIGINT)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])  # where Python runs the handler, at the latest
        except KeyboardInterrupt:
            if what == "raise":
                raise
            if what == "other error":
                raise ImportError("initialization failed") from None
        return None

sys.meta_path.insert(0, Interrupting())
from bcos_fx.cli import main
sys.argv = ["bcos-fx", *words]
main()
"""


@pytest.mark.parametrize("what", ["raise", "swallow", "other error"])
@pytest.mark.parametrize(
    "module",
    ["typer", "bcos_fx.cli.commands", "torch", "bcos_fx.checkpoint", "numpy", "torch._jit_internal"],
)
def test_an_interrupt_during_an_import_ends_with_130(module: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, module, what, "inspect", "a.txt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "bug" not in done.stderr
    assert done.stderr.count("interrupted") == 1, done.stderr


def test_without_an_interrupt_nothing_is_added(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, "no.such.module", "raise", "inspect", "missing.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2
    assert "interrupted" not in done.stderr


def test_a_full_disk_in_the_gallery_names_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    from tests.training.test_finetune import full_run

    before = os.fsync

    def full(descriptor: int) -> None:
        if "gallery" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        before(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match="No space left on device") as caught:
        full_run(tmp_path / "run")
    assert "resume" in str(caught.value.hint)
    assert "gallery" in str(caught.value.where)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(os.fsencode(folder / name / f"{number}\udcff.png"), "PNG")
    return folder


NOT_TEXT = "out\udcff"


def test_every_command_writes_to_names_that_are_not_text(run: Any, artifact: Path, weights: Path, photos: Path) -> None:
    folder = artifact.parent
    for words, written in (
        (("convert", weights, "--arch", TINY, *SHAPE, "-o", f"{NOT_TEXT}.safetensors"), f"{NOT_TEXT}.safetensors"),
        (("calibrate", artifact, "--data", photos / "a", "-o", f"{NOT_TEXT}.c"), f"{NOT_TEXT}.c"),
        (("explain", artifact, photos / "a", "-o", f"{NOT_TEXT}.html"), f"{NOT_TEXT}.html"),
        (("explain", artifact, photos / "a", "-o", f"{NOT_TEXT}.png"), f"{NOT_TEXT}.png"),
        (("explain", artifact, photos / "a", "-o", f"{NOT_TEXT}.npz", "--json"), f"{NOT_TEXT}.npz"),
        (("evaluate", artifact, "--data", photos, "--out", NOT_TEXT, "--metric", "accuracy"), NOT_TEXT),
    ):
        done = run(*words)
        assert "bug" not in done.stderr, done.stderr
        if words[0] != "evaluate":  # which refuses two folders for three classes
            assert done.exit_code == 0, done.stderr
            assert (folder / written).exists()


def test_an_evaluation_of_files_whose_names_are_not_text(run: Any, artifact: Path, photos: Path, folder: Path) -> None:
    (photos / "c").mkdir()
    Image.new("RGB", (8, 8)).save(os.fsencode(photos / "c" / "x\udcff.png"), "PNG")
    done = run("evaluate", artifact, "--data", photos, "--out", "results", "--metric", "accuracy")
    assert done.exit_code == 0, done.stderr
    assert (folder / "results" / "evaluation.html").exists()


# ---------------------------------------------------------------- rows

_GOOD = {"name": "a:b", "equal": True, "runs": {"size 8": "equal"}, "guards": [], "date": "2026-01-01"}
_GARBAGE = (
    b"",
    b"nonsense",
    b"\xff\xfe",
    b"[" * 100_000,
    b"1" * 10_000,
    b"null",
    b"[]",
    b"{}",
    b'{"name": 1}',
    b'{"name": "a:b", "failure": 3}',
    b'{"name": "a:b", "failure": ["x"]}',
    b'{"name": "a:b", "breaks": [1]}',
    b'{"name": "a:b", "breaks": {"a": 1}}',
    b'{"name": "a:b", "unknown": {"relu": "many"}}',
    b'{"name": "a:b", "runs": [1]}',
    b'{"name": "a:b", "runs": {"size": "equal"}}',
    b'{"name": "a:b", "gap": 1e-9}',
    b'{"name": "a:b", "gap": "small", "tolerance": 1}',
    b'{"name": "a:b", "equal": true, "certified": true}',
    b'{"name": "a:b", "date": 5}',
    b'{"name": "a:b", "seconds in all": true}',
)


@pytest.mark.parametrize("line", _GARBAGE)
def test_a_malformed_row_of_a_zoo_is_named_by_its_line(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    append_row(path, _GOOD)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UsageError, match="no row of a zoo") as caught:
        list(read_rows(path))
    assert str(caught.value.where) == f"{path}:2"


def test_rows_that_are_read_make_tables(tmp_path: Path) -> None:
    """What the check lets through is what the tables can show, whatever fields are left out."""
    path = tmp_path / "zoo.jsonl"
    whole = {
        **_GOOD,
        **dict.fromkeys(("parameters", "nodes", "coverage", "error", "spread", "gap", "tolerance"), 0.5),
        **{"constants' share": 0.1, "seconds in all": 1.5, "train": "as in eval", "certified": True},
        **{"completeness": "complete", "breaks": ["x"], "unknown": {"relu": 1}, "failure": None, "detail": "d"},
    }
    for left_out in (None, *whole):
        row = {name: value for name, value in whole.items() if name != left_out}
        path.write_bytes(json.dumps(row).encode() + b"\n")
        try:
            rows = list(read_rows(path))
        except UsageError:
            continue
        assert cause(rows[0])
        assert totals(rows)
        assert coverage_page(rows, "title", [])


@pytest.mark.parametrize("line", _GARBAGE)
def test_a_malformed_line_of_a_journal_is_named(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    ResultLog(path, {"bcos-fx": "0"}).append(0, [1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(UsageError) as caught:
        ResultLog(path, {"bcos-fx": "0"})
    assert f"{path}:3" in str(caught.value.where)
