"""B for a family of layers: every convolution belongs to what its groups and its kernel make it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.nn import BcosConv2d, BcosLayer
from bcos_fx.nn.families import family_of
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.training.finetune import finetune
from bcos_fx.training.recipe import Training
from bcos_fx.training.schedule import BSchedule, Course


def separable() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 12, 1),
            nn.ReLU(),
            nn.Conv2d(12, 12, 3, groups=3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 4),
        ).eval()


def pressures(network: nn.Module) -> dict[str, float]:
    return {path: layer.b for path, layer in network.named_modules() if isinstance(layer, BcosLayer)}


def converted(b: Any, recipe: str = "bcosification") -> nn.Module:
    return bcos_fx.bcosify(separable(), example_inputs=torch.rand(2, 3, 8, 8), recipe=recipe, b=b, verified=False)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "groups", "family"),
    [
        (6, 6, 3, 6, "depthwise"),
        (6, 12, 1, 6, "depthwise"),
        (6, 6, 3, 2, "grouped"),
        (6, 6, 1, 3, "grouped"),
        (6, 4, 1, 1, "pointwise"),
        (6, 4, 3, 1, None),
        (1, 4, 3, 1, None),
    ],
)
def test_families_by_groups_and_kernel(
    kind: Any, inputs: int, outputs: int, kernel: int, groups: int, family: str | None
) -> None:
    assert family_of(kind(inputs, outputs, kernel, groups=groups)) == family
    assert family_of(BcosConv2d(inputs, outputs, kernel, groups=groups)) == family


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.BatchNorm2d(3), nn.AvgPool2d(1), nn.Sequential()])
def test_other_layers_are_of_no_family(module: nn.Module) -> None:
    assert family_of(module) is None


def test_b_by_family_where_the_first_that_fits_decides() -> None:
    assert pressures(converted({"depthwise": 1, "*": 2})) == {"0": 2, "2": 1, "3": 2, "5": 2, "8": 2}
    found = pressures(converted({"3": 1.5, "pointwise": 3, "grouped": 1.25}))
    assert found == {"0": 2, "2": 2, "3": 1.5, "5": 1.25, "8": 3}  # a linear layer on maps is a 1 x 1 convolution


def test_layers_that_no_pattern_names_have_the_recipes_b() -> None:
    assert pressures(converted({"depthwise": 1})) == {"0": 2, "2": 1, "3": 2, "5": 2, "8": 2}
    assert pressures(converted({"0": 1.5}, "gradual")) == {"0": 1.5, "2": 1, "3": 1, "5": 1, "8": 1}


def test_a_recipe_names_families_that_networks_need_not_have(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    shipped = (rules_directory() / "recipes" / "bcosification.toml").read_text()
    recipe.write_text(shipped.replace("b = 2.0", 'b = { depthwise = 1.0, transposed = 1.0, "*" = 2.0 }', 1))
    assert pressures(converted(None, str(recipe))) == {"0": 2, "2": 1, "3": 2, "5": 2, "8": 2}
    network = converted({"2": 1.25, "pointwise": 3}, str(recipe))
    assert pressures(network) == {"0": 2, "2": 1.25, "3": 3, "5": 2, "8": 3}
    text = " ".join(network.report.to_text().split())
    assert "chosen by 2=1.25, pointwise=3, depthwise=1, transposed=1, *=2" in text
    assert pressures(converted(1.5, str(recipe))) == dict.fromkeys("02358", 1.5)


def test_the_recipe_matched_leaves_depthwise_layers_plain() -> None:
    assert pressures(converted(None, "matched")) == {"0": 2, "2": 1, "3": 2, "5": 2, "8": 2}


def test_a_family_without_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'depthwise'"):
        converted({"depthwize": 1, "*": 2})
    with pytest.raises(UsageError, match="earlier patterns name all its layers"):
        converted({"*": 2, "depthwise": 1})


def test_b_rises_by_family() -> None:
    recipe = Training(
        epochs=1,
        batch_size=4,
        rises=(
            BSchedule(layers="depthwise", to=1.0),
            BSchedule(layers="grouped", to=1.5, course=Course("linear")),
            BSchedule(),
        ),
    )
    images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 4
    found = finetune(converted(1.0, "gradual"), (images, labels), recipe=recipe)
    assert pressures(found.network) == {"0": 2, "2": 1, "3": 2, "5": 1.5, "8": 2}
