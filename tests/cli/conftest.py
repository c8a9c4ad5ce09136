"""The command line inside this process, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bcos_fx.cli import app
from tests.cli import tiny_model

TINY = f"{tiny_model.__file__}:build"
SHAPE = ("--input-shape", "3,8,8")
Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run a command; nothing but our own exit may come out of it."""

    def invoke(*words: str | Path) -> Any:
        result = CliRunner().invoke(app, [str(word) for word in words], prog_name="bcos-fx")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return invoke


@pytest.fixture
def weights(folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(tiny_model.build().state_dict(), path)
    return path


@pytest.fixture
def artifact(run: Run, weights: Path) -> Path:
    """A converted network of the recipe equivalent."""
    done = run("convert", weights, "--arch", TINY, *SHAPE, "--recipe", "equivalent", "-o", "tiny.safetensors")
    assert done.exit_code == 0, done.stderr
    return weights.with_name("tiny.safetensors")
