"""recipes: every recipe is shown whole, defaults included."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.recipe import load_recipe, recipe_names
from bcos_fx.training.recipe import Optimizer, Training, load_training, recipes_that_train
from tests.cli.conftest import Run


def test_all_recipes_are_listed(run: Run) -> None:
    done = run("recipes")
    assert done.exit_code == 0, done.output
    assert all(f"{name}\n" in done.stdout for name in recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_shown_whole(name: str, run: Run) -> None:
    """Every option and every field of training stands there with its value, and every rule that runs."""
    done = run("recipes", name)
    assert done.exit_code == 0, done.output
    found = json.loads(run("recipes", name, "--json").stdout)[0]
    recipe = load_recipe(name)
    assert found["options"] == json.loads(json.dumps(recipe.options.to_dict()))
    assert set(found["options"]) == {field.name for field in dataclasses.fields(Options)}
    shown = " ".join(done.stdout.split())
    assert recipe.description in shown
    for title in ("B", "scale", "eps", "projections of attention that are raised", "pool", "biases", "head"):
        assert f"{title} " in shown
    active = [rule.name for phase in found["rules"] for rule in recipe.active_rules(phase)]
    assert active
    assert all(rule in shown for rule in active)
    if name in recipes_that_train():
        assert found["training"] == json.loads(json.dumps(load_training(name).to_dict()))
        own = {f.name for kind in (Training, Optimizer) for f in dataclasses.fields(kind)} - {"optimizer"}
        assert all(f"{field} " in shown for field in own)
    else:
        assert found["training"] is None
        assert "does not say how to train" in shown


def test_a_typo_names_the_nearest(run: Run) -> None:
    done = run("recipes", "bcosificaton")
    assert done.exit_code == 2
    assert "did you mean 'bcosification'" in done.stderr
