"""The command line as a process, its help, and the demo."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from bcos_fx.cli import app
from bcos_fx.version import __version__
from tests.cli.conftest import SHAPE, TINY, Run

ROOT = Path(__file__).resolve().parents[2]


def process(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "TERM": "dumb"}
    command = [sys.executable, "-m", "bcos_fx", *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_convert_as_a_process(tmp_path: Path) -> None:
    done = process("convert", "--arch", TINY, *SHAPE, "--recipe", "equivalent", "-o", "x.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_error_as_a_process(tmp_path: Path) -> None:
    done = process("convert", "--arch", TINY, *SHAPE, "--scale", "cosin", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_loads_nothing_heavy() -> None:
    """What makes start-up slow is named here; how long it takes is measured by benchmarks/start_up.py."""
    code = "import sys, bcos_fx.cli as c\ntry: c.app(['convert', '--help'])\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'numpy', 'PIL', 'matplotlib', 'networkx', 'rich.progress'} & set(sys.modules)\n"
    code += "raise SystemExit(', '.join(sorted(heavy)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"bcos-fx {__version__}\n"


COMMANDS = {name: command for name, command in typer.main.get_command(app).commands.items()}  # type: ignore[attr-defined]


def test_commands() -> None:
    names = (
        "convert plan check calibrate finetune embed explain evaluate export report serve publish inspect rules recipes"
    )
    assert list(COMMANDS) == [*names.split(), "demo"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_teaches_every_option(run: Run, name: str) -> None:
    shown = run(name, "--help").stdout
    assert "Examples:" in shown
    for parameter in COMMANDS[name].params:
        assert parameter.help, parameter.name
        for spelling in (word for word in (*parameter.opts, *parameter.secondary_opts) if word.startswith("--")):
            assert spelling in shown
        # Square brackets in a help text are taken for markup and vanish.
        words = " ".join(shown.replace("│", " ").split())
        assert " ".join(parameter.help.split()[:4]) in words


def test_plan_takes_what_convert_takes() -> None:
    assert [p.name for p in COMMANDS["plan"].params] == [p.name for p in COMMANDS["convert"].params]


def test_demo_names_the_extra_that_it_lacks(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    done = run("demo")
    assert done.exit_code == 2
    assert "bcos-fx[demo]" in done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_demo(run: Run, folder: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    done = run("demo")
    assert done.exit_code == 0, done.output
    assert "the same on 20" in done.stdout
    assert sorted(path.name for path in (folder / "bcos-fx-demo").iterdir()) == [
        "efficientnet-lite0.bcos.safetensors",
        "efficientnet-lite0.png",
        "explanation.png",
        "explanations.html",
        "fine-tuned.png",
    ]


def test_command_functions_import_nothing_heavy_at_the_top() -> None:
    for name in (*COMMANDS, "options", "request", "failure", "values", "text_options"):
        module = importlib.import_module(f"bcos_fx.cli.{name}")
        tops = [line for line in inspect.getsource(module).splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in tops if "torch" in line or "rich.progress" in line or "matplotlib" in line], name
