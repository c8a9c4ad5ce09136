"""The examples in docstrings are true."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forks import run_code

PACKAGE = Path(__file__).resolve().parent.parent / "bcos_fx"
MODULES = sorted(
    ".".join(("bcos_fx", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
_CODE = """
import doctest, importlib, sys
failed, tried = doctest.testmod(importlib.import_module(sys.argv[1]), optionflags=doctest.ELLIPSIS)
raise SystemExit(failed or not tried)
"""


def test_what_people_begin_with_has_examples() -> None:
    assert {"bcos_fx.convert", "bcos_fx.explanation.explain", "bcos_fx.artifact", "bcos_fx.rules"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_are_true(module: str, tmp_path: Path) -> None:
    done = run_code(_CODE, tmp_path, module)
    assert done.returncode == 0, done.stdout + done.stderr
