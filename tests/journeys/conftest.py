"""Commands as their users run them: each a process of its own, in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.forks import run_code

_COMMAND = """
import os
os.environ.update(COLUMNS="200", TERM="dumb")
from bcos_fx.cli import main
main()
"""
_SUM = re.compile(r"(\S+) = (\S+) input ([+-]\S+) constants \(residual (\S+)\)")


@dataclass(frozen=True)
class Shown:
    """What a command left on the screen, with runs of blanks as one.

    Attributes:
        code: its exit code.
        out: of stdout.
        error: of stderr.
    """

    code: int
    out: str
    error: str

    def sums(self) -> list[tuple[float, ...]]:
        """Return the sums that ``explain`` printed: output, input, constants, residual."""
        return [tuple(map(float, found)) for found in _SUM.findall(self.out)]


Run = Callable[..., Shown]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in an empty folder; no traceback may come out of it."""

    def invoke(*words: str) -> Shown:
        done = run_code(_COMMAND, tmp_path, *words)
        assert "Traceback" not in done.stderr
        return Shown(done.returncode, " ".join(done.stdout.split()), " ".join(done.stderr.split()))

    return invoke


@pytest.fixture
def photograph() -> Path:
    """A photograph of a jeep, which the package foolbox brings."""
    from importlib.util import find_spec

    found = find_spec("foolbox")
    if found is None or not found.submodule_search_locations:
        pytest.skip("foolbox, which has the photograph, is not installed")
    return Path(found.submodule_search_locations[0], "data", "imagenet_06_609.jpg")
