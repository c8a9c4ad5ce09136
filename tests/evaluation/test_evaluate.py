"""evaluate(): what the command measures, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import accuracy, fair, gridpg
from bcos_fx.evaluation.report import write_report
from tests.evaluation.toy import Colours, images


def converted() -> bcos_fx.BcosNetwork:
    settings: dict[str, Any] = {"recipe": "equivalent", "mean": (0.5,) * 3, "std": (1.0,) * 3}
    return bcos_fx.bcosify(Colours(centred=True).eval(), example_inputs=torch.rand(2, 3, 8, 8), **settings)


def test_it_measures_what_its_parts_measure(tmp_path: Path) -> None:
    model, data, protocol = converted(), images(24), fair(side=2, grids=4, threshold=0)
    original = Colours(centred=True).eval()
    arguments: dict[str, Any] = {"metrics": ["accuracy", "gridpg"], "protocols": [protocol]}
    found = bcos_fx.evaluate(
        model, data, original=original, baselines=["grad-cam"], folder=tmp_path / "new", **arguments
    )
    assert found.accuracy is not None
    assert found.accuracy.top1 == accuracy(model, data).top1
    assert found.accuracy.agreement == 1
    own, other = found.localisations[0]
    assert (own.per_grid == gridpg(model, data, protocol=protocol).per_grid).all()
    assert other.method != own.method
    assert list((tmp_path / "new").glob("*.jsonl")), "nothing was written for a run that goes on"


def test_a_report_that_cannot_be_written_is_called_the_results(tmp_path: Path) -> None:
    evaluation = bcos_fx.evaluate(converted(), images(6), metrics="accuracy")
    (tmp_path / "results.csv").mkdir()
    with pytest.raises(UsageError, match=r"^the results cannot be written"):
        write_report(evaluation, tmp_path)


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError, match="metrics is 'acuracy'"):
        bcos_fx.evaluate(converted(), images(6), metrics="acuracy")
    with pytest.raises(UsageError, match="baselines explain the original network"):
        bcos_fx.evaluate(converted(), images(6), baselines="all")
    with pytest.raises(UsageError, match="trained"):
        bcos_fx.evaluate(converted(), images(6), metrics="linear-probe")
