"""Loggers of Lightning: those that cannot be used are refused before anything is trained, with what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.training.settings import RunSettings
from tests.small_networks import MEAN, STD, cnn, images

pytest.importorskip("lightning", reason="the extra train is not installed")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return bcos_fx.bcosify(cnn(), example_inputs=images(), mean=MEAN, std=STD)


def refused(network: nn.Module, name: str, folder: Path) -> UsageError:
    with pytest.raises(UsageError) as found:
        bcos_fx.finetune(network, (images(2), torch.arange(2)), run=RunSettings(folder=folder, loggers=(name,)))
    return found.value


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_whose_library_is_missing_names_it(network: nn.Module, name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    error = refused(network, name, tmp_path)
    assert f"the logger '{name}' needs the library" in error.what
    assert error.hint is not None
    assert error.hint.startswith(f'pip install "{name}')


def test_a_logger_that_writes_to_no_folder_is_not_known(network: nn.Module, tmp_path: Path) -> None:
    assert "loggers is 'lit'" in refused(network, "lit", tmp_path).what
