"""The wheel holds what the checkout holds: the package, its version and the rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bcos_fx.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PRINT_RULES = """
import hashlib, json
import bcos_fx
from bcos_fx.rewriting.core.location import rules_directory
folder = rules_directory()
rules = {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob("*.toml")}
print(json.dumps([bcos_fx.__file__, rules], sort_keys=True))
"""


def run(*command: str, cwd: Path, path: Path | None = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_the_rules_of_the_checkout(wheel: Path) -> None:
    assert wheel.name.startswith(f"bcos_fx-{__version__}-")
    rules = {str(f.relative_to(ROOT / "rules")): f.read_bytes() for f in (ROOT / "rules").rglob("*.toml")}
    with zipfile.ZipFile(wheel) as archive:
        prefix = "bcos_fx/_rules/"
        packed = {n.removeprefix(prefix): archive.read(n) for n in archive.namelist() if n.startswith(prefix)}
        outside = {name.split("/")[0] for name in archive.namelist()}
    assert rules
    assert {name: text for name, text in packed.items() if name.endswith(".toml")} == rules
    assert outside == {"bcos_fx", f"bcos_fx-{__version__}.dist-info"}


def test_an_installed_wheel_finds_the_same_rules_as_the_checkout(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--quiet",
        "--target",
        str(target),
        str(wheel),
        cwd=tmp_path,
    )
    installed_file, installed = json.loads(run(sys.executable, "-c", PRINT_RULES, cwd=tmp_path, path=target))
    checkout_file, checkout = json.loads(run(sys.executable, "-c", PRINT_RULES, cwd=tmp_path, path=ROOT))
    assert Path(installed_file).is_relative_to(target)
    assert Path(checkout_file).is_relative_to(ROOT)
    assert installed
    assert installed == checkout
