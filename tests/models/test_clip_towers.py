"""Image towers of image-text models: equal at B = 1, certified, complete, and every parameter copied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.explanation import cosine
from bcos_fx.network import BcosNetwork
from bcos_fx.testing import norm_statistics_from_data_, randomise_
from bcos_fx.verification.parameter_coverage import parameter_coverage
from tests.models.clip_towers import SIDE, TOWERS, resnet, vit

pytest.importorskip("open_clip")
pytest.importorskip("transformers")

IMAGES = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
POSITIONS = "positional-embedding-removed"


def tower(name: str) -> tuple[nn.Module, str | None]:
    make, output = TOWERS[name]
    return norm_statistics_from_data_(randomise_(make()), IMAGES), output


def converted(module: nn.Module, recipe: str, **options: Any) -> BcosNetwork:
    return bcos_fx.bcosify(module, example_inputs=IMAGES[:2], recipe=recipe, **options)


def largest_gap(network: BcosNetwork, images: Tensor = IMAGES) -> float:
    found = bcos_fx.certify(network.double(), images.double())
    assert found.ok, found.to_text()
    assert found.completeness is not None
    return found.completeness.worst


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_the_same_at_b_1_and_nothing_is_left_behind(name: str) -> None:
    module, output = tower(name)
    network = converted(module, "equivalent", mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28), output_key=output)
    verification = network.report.figures.verification
    assert verification is not None
    assert verification["ok"], verification["detail"]
    assert not network.report.unknown
    assert network.report.coverage.share == 1
    coverage = parameter_coverage(module, network)
    assert coverage.ok, coverage
    assert coverage.count("halves") == 1  # the first layer reads an encoded image
    assert largest_gap(network) <= 1e-9


@pytest.mark.parametrize("name", ["open_clip ResNet", "open_clip ViT", "open_clip SigLIP", "transformers SigLIP"])
def test_a_tower_by_the_recipe_clip(name: str) -> None:
    module, output = tower(name)
    network = converted(module, "clip", output_key=output, verified=False)
    coverage = parameter_coverage(module, network)
    assert not coverage.missing, coverage
    removed = {row.name: row.where for row in coverage.rows if row.how == "removed"}
    assert all(rule.endswith(("stripped", "removed")) for rules in removed.values() for rule in rules)
    assert not any(path.endswith("weight") for path in removed)
    assert largest_gap(network) <= 1e-9
    text = torch.randn(network(IMAGES[:1].double()).shape[1], generator=torch.Generator().manual_seed(1))
    e = bcos_fx.explain(network, IMAGES.double(), cosine(text))
    assert float(e.residual.abs().max()) <= 1e-9
    assert e.colors


def test_positions_of_an_attention_pool_go_and_others_stay() -> None:
    pool, transformer = converted(resnet().eval(), "clip", verified=False), converted(vit().eval(), "clip")
    assert pool.report.rule_counts()[POSITIONS] == 1
    assert not any("positional" in name for name in dict(pool.named_parameters()))
    assert POSITIONS not in transformer.report.rule_counts()
    e = bcos_fx.explain(transformer, IMAGES, 0)
    assert any("positional_embedding" in source for source in e.constants), list(e.constants)
    without = converted(vit().eval(), "clip", positions="strip")
    assert without.report.rule_counts()[POSITIONS] == 1
    assert POSITIONS in {drift.rule for drift in without.report.figures.drift}
    kept = converted(resnet().eval(), "clip", positions="keep", verified=False)
    assert POSITIONS not in kept.report.rule_counts()


def test_the_recipe_s_mean_and_std_are_those_of_clip_unless_the_tower_records_others() -> None:
    module = vit().eval()
    spec = converted(module, "clip", verified=False).record.inputs[0]
    module.preprocess_cfg = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
    assert converted(module, "clip", verified=False).record.inputs[0] == spec
    module.preprocess_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    with pytest.raises(UsageError, match=r"the module records \(0.5, 0.5, 0.5\)"):
        converted(module, "clip", verified=False)
    own = converted(module, "clip", mean="auto", verified=False)
    given = converted(module, "clip", mean=(0.5,) * 3, std=(0.5,) * 3, verified=False)
    assert own.record.inputs[0] == given.record.inputs[0] != spec
