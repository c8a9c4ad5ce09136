"""The network in examples/ is what its card says: a file of a few MB that explains photographs of ten classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bcos_fx
from bcos_fx.artifact import example_path
from bcos_fx.artifact.document import HALF_NOTE

pytestmark = pytest.mark.vision


@pytest.fixture(scope="module")
def network() -> bcos_fx.BcosNetwork:
    return bcos_fx.example_network()


def test_it_is_small_and_says_what_it_is(network: bcos_fx.BcosNetwork, root: Path) -> None:
    assert example_path().stat().st_size <= 10e6
    assert len(network.record.classes) == 10
    assert network.record.origin is not None
    assert network.record.origin.license == "Apache-2.0"
    (run,) = network.record.training
    card = (root / "examples" / "imagenette.md").read_text(encoding="utf-8")
    assert run.accuracy is not None
    assert f"{run.accuracy:.2%} on the" in card
    assert all(name in card for name in network.record.classes)
    assert HALF_NOTE in network.report.notes
    assert "using it as it was trained" in network.report.to_text()


def test_pixels_account_for_all_but_the_logit_layer(network: bcos_fx.BcosNetwork) -> None:
    images = torch.rand(2, *network.input_shape, generator=torch.Generator().manual_seed(0))
    found = bcos_fx.explain(network, images, 3)
    assert found.complete
    assert len(found.constants) == 1
    b = {float(layer.b) for layer in network.modules() if isinstance(getattr(layer, "b", None), float)}
    assert b == {1.0, 2.0}


@pytest.mark.slow
def test_the_card_s_accuracy_is_measured(network: bcos_fx.BcosNetwork, root: Path, data_dir: Path) -> None:
    from bcos_fx.evaluation import open_source

    source = open_source(data_dir / "imagenette_val.npz")
    right, count = 0, 500
    for begin in range(0, count, 50):
        samples = [source.read(index, network.preprocessing) for index in range(begin, begin + 50)]
        with torch.no_grad():
            answers = network(torch.stack([sample.image for sample in samples])).argmax(1).tolist()
        right += sum(sample.label == answer for sample, answer in zip(samples, answers, strict=True))
    (run,) = network.record.training
    assert run.accuracy is not None
    assert abs(right / count - run.accuracy) < 3 * (run.accuracy * (1 - run.accuracy) / count) ** 0.5
