"""Builders and predicates of other distributions, found through their entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

MODULE = """
import sys
from torch import nn
from bcos_fx.rules import builder, predicate

sys.stderr.write("imported once ")

@builder("theirs")
def theirs(build):
    return nn.ReLU()

@predicate("is-theirs")
def is_theirs(reader, call):
    return call.module is not None
"""

RULE = """
[[rule]]
name = "gelu-to-relu"
phase = "align"
preserves = "never"
source = "another distribution"
why = "A test."

[rule.match.gelu]
op = "gelu"
require = "is-theirs"

[rule.replace.relu]
build = "theirs"
inputs = "gelu.input"
"""

CODE = """
import json, sys
import bcos_fx
from torch import nn
from bcos_fx.rewriting.core.rulefile import known_names
from bcos_fx.rewriting.core.registry import BUILDERS
before = "theirs" in BUILDERS
try:
    converted = bcos_fx.bcosify(nn.Sequential(nn.Linear(4, 4), nn.GELU()), rules=["rule.toml"], verified=False)
    known = known_names()
    made = type(converted.get_submodule("1")).__name__
    said = [before, "theirs" in known.builders, "is-theirs" in known.predicates, made]
except bcos_fx.BcosFxError as error:
    said = [type(error).__name__, error.what, error.where, error.hint]
print(json.dumps(said))
"""


def install(folder: Path, module: str) -> None:
    """Lay down what an installed distribution leaves: its module, its metadata and its entry points."""
    (folder / "their_rules.py").write_text(module, encoding="utf-8")
    information = folder / "their_package-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[bcos_fx.rules]\ntheirs = their_rules\n")
    (folder / "rule.toml").write_text(RULE, encoding="utf-8")


def converted_with(folder: Path) -> tuple[list[object], str]:
    paths = os.pathsep.join([str(ROOT), str(folder)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_what_another_distribution_registers_can_be_named_in_a_rule(tmp_path: Path) -> None:
    install(tmp_path, MODULE)
    said, noise = converted_with(tmp_path)
    assert said == [False, True, True, "ReLU"]
    assert noise == "imported once "


@pytest.mark.parametrize("module", ["import no_such_module", "this is no Python", "raise RuntimeError('no')"])
def test_what_cannot_be_imported_is_named_with_its_distribution(tmp_path: Path, module: str) -> None:
    install(tmp_path, module)
    said, _ = converted_with(tmp_path)
    kind, what, where, hint = map(str, said)
    assert kind == "RuleError"
    assert "'their-package'" in what
    assert where == "entry point theirs = their_rules of the group bcos_fx.rules"
    assert "pip uninstall their-package" in hint
