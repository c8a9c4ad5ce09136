"""Several processes that train together are one process with larger batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training import small_runs

pytestmark = [pytest.mark.vision, pytest.mark.slow, pytest.mark.timeout(1800)]


def run(processes: int, batch: int, *more: str) -> dict[str, Any]:
    program = Path(small_runs.__file__).with_name("two_processes.py")
    root = program.parents[2]
    done = subprocess.run(
        [sys.executable, str(program), str(processes), str(batch), *more],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def assert_same_history(some: dict[str, Any], others: dict[str, Any]) -> None:
    """What is not there before the first step, or of embeddings, which have no labels to hit, is there in neither."""
    for a, b in zip(some["history"], others["history"], strict=True):
        assert [value is None for value in a] == [value is None for value in b]
        assert [v for v in a if v is not None] == pytest.approx([v for v in b if v is not None], rel=1e-5)


def test_two_processes_have_the_loss_curve_of_one_with_the_double_batch() -> None:
    two, one, other = run(2, 4), run(1, 8), run(1, 4)
    assert_same_history(two, one)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-6)
    assert other["weights"] != pytest.approx(one["weights"], rel=1e-5)


def test_pairs_of_all_processes_are_those_of_one_with_the_double_batch() -> None:
    two, one, apart = run(2, 4, "all"), run(1, 8, "all"), run(2, 4, "process")
    assert_same_history(two, one)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-6)
    assert apart["history"][-1][0] != pytest.approx(one["history"][-1][0], rel=1e-2)


def test_layers_alone_teach_two_processes_what_they_teach_one() -> None:
    """The last layer learns nothing then, and DDP waits for no gradient of it."""
    two, one = run(2, 4, "layers"), run(1, 8, "layers")
    assert_same_history(two, one)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-6)
