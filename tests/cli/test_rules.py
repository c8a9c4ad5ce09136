"""rules: every shipped rule is listed, and a user's file is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bcos_fx.rewriting.core.recipe import load_recipe, recipe_names
from tests.cli.conftest import Run

MINE = """
[[rule]]
name = "my-pool-stays"
phase = "pool"
preserves = "never"
source = "mine"
why = "A test."
refuse = "left alone"
[rule.match.pool]
op = "max_pool2d"
"""


def test_all_rules_and_recipes_are_listed(run: Run) -> None:
    done = run("rules")
    assert done.exit_code == 0, done.output
    for recipe in map(load_recipe, recipe_names()):
        assert f"recipe {recipe.name}" in done.stdout
        for rule in recipe.rules:
            assert rule.name in done.stdout


def test_active_rules_of_a_recipe(run: Run) -> None:
    active = [rule["name"] for rule in json.loads(run("rules", "--recipe", "equivalent", "--json").stdout)["rules"]]
    assert "layer-to-bcos" in active
    assert "alignment-raised" not in active


def test_one_rule_in_full(run: Run) -> None:
    done = run("rules", "classifier-before-pool")
    assert done.exit_code == 0, done.output
    for shown in ("structure", "preserves", "match pool", "pointwise-conv", "structure.toml:"):
        assert shown in done.stdout


def test_typo_names_the_nearest(run: Run) -> None:
    done = run("rules", "classifer-before-pool")
    assert done.exit_code == 2
    assert "did you mean 'classifier-before-pool'?" in done.stderr


def test_own_file_is_shown(run: Run, folder: Path) -> None:
    (folder / "mine.toml").write_text(MINE)
    done = run("rules", "--rules", "mine.toml")
    assert done.exit_code == 0, done.output
    assert "my-pool-stays" in done.stdout
    assert run("rules", "my-pool-stays", "--rules", "mine.toml").exit_code == 0
    assert "my-pool-stays" in run("rules", "--rules", "mine.toml", "--recipe", "bcosification").stdout


@pytest.mark.parametrize(
    ("wrong", "right"), [('"max_pool2d"', '"max_pool2e"'), ("refuse =", "refuze ="), ('"pool"', '"pol"')]
)
def test_mistake_in_own_file_has_a_line_and_a_suggestion(run: Run, folder: Path, wrong: str, right: str) -> None:
    (folder / "mine.toml").write_text(MINE.replace(wrong, right))
    done = run("rules", "--rules", "mine.toml")
    assert done.exit_code == 2
    assert "mine.toml:" in done.stderr
    assert "did you mean" in done.stderr
