"""A run that is killed and goes on ends as one that was never stopped, to the last bit."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bcos_fx.errors import UsageError
from bcos_fx.nn import BcosLayer
from bcos_fx.training.finetune import FineTuned, finetune
from tests.training import small_runs

pytestmark = pytest.mark.vision


def killed_run(folder: Path, what: str, number: int) -> None:
    program = Path(small_runs.__file__)
    root = program.parents[2]
    command = [sys.executable, str(program), str(folder), what, str(number)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr


def same(a: FineTuned, b: FineTuned) -> None:
    ours, theirs = a.network.state_dict(), b.network.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert [m.b for m in a.network.modules() if isinstance(m, BcosLayer)] == [
        m.b for m in b.network.modules() if isinstance(m, BcosLayer)
    ]
    histories = [[dataclasses.replace(row, seconds=0.0) for row in found.history] for found in (a, b)]
    assert histories[0] == histories[1]


def test_a_run_that_is_killed_while_it_saves_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    whole = small_runs.full_run(tmp_path / "whole")
    killed_run(tmp_path / "killed", "written", 6)  # half a checkpoint is beside the last whole one
    assert (tmp_path / "killed" / "last.ckpt").is_file()
    same(whole, small_runs.full_run(tmp_path / "killed", resume=True))


@pytest.mark.slow
def test_a_run_that_is_killed_twice_goes_on_as_if_never_stopped(tmp_path: Path) -> None:
    whole = small_runs.full_run(tmp_path / "whole")
    folder = tmp_path / "killed"
    killed_run(folder, "read", 46)  # within the first epoch: the test and the gallery read too
    killed_run(folder, "written", 6)  # while a checkpoint is put in its place
    assert (folder / "last.ckpt").is_file()
    same(whole, small_runs.full_run(folder, resume=True))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(30, 120, 7))
def test_killed_at_any_image(number: int, tmp_path: Path) -> None:
    whole = small_runs.full_run(tmp_path / "whole")
    killed_run(tmp_path / "killed", "read", number)
    same(whole, small_runs.full_run(tmp_path / "killed", resume=True))


def test_a_finished_run_goes_on_to_nothing(tmp_path: Path) -> None:
    whole = small_runs.full_run(tmp_path)
    same(whole, small_runs.full_run(tmp_path, resume=True))
    with pytest.raises(UsageError, match="there is a run in") as caught:
        small_runs.full_run(tmp_path)
    assert "resume=True" in str(caught.value)


def test_the_callers_random_numbers_and_network_stay_as_they_are() -> None:
    network, before = small_runs.converted(), small_runs.converted()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(network, small_runs.images(), recipe=small_runs.plain(epochs=1))
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name])
    assert [m.b for m in network.modules() if isinstance(m, BcosLayer)] == [1.0] * 3
    assert not network.training
