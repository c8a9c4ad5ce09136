"""Former spellings work for one release, with a warning, and mean the same."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import bcos_fx
from bcos_fx.cli import app
from bcos_fx.cli.former import FORMER
from bcos_fx.deprecation import formerly
from bcos_fx.errors import RuleError, UsageError
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.recipe import find_recipe
from bcos_fx.rewriting.core.rule import Replacement
from bcos_fx.training.recipe import Optimizer, Training, load_training
from tests.small_networks import cnn, images


@formerly(colour="color")
def painted(what: str, *, color: str = "red") -> str:
    return f"{color} {what}"


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = cnn()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.network(x)}


def test_a_former_name_warns_and_means_the_new_one() -> None:
    with pytest.warns(DeprecationWarning, match="colour= is now color="):
        assert painted("wall", colour="blue") == "blue wall"
    assert painted("wall", color="blue") == "blue wall"
    assert list(inspect.signature(painted).parameters) == ["what", "color"]


def test_both_names_and_unknown_ones_are_refused() -> None:
    with pytest.raises(UsageError, match="both were given"):
        painted("wall", color="red", colour="blue")
    with pytest.raises(UsageError, match="no option is named 'colur'") as caught:
        painted("wall", colur="blue")
    assert "color" in str(caught.value.hint)


def test_output_of_a_conversion_is_now_its_output_key() -> None:
    module, x = Pair().eval(), images()
    with pytest.warns(DeprecationWarning, match="output= is now output_key="):
        old = bcos_fx.plan(module, example_inputs=x, output="scores")
    assert old == bcos_fx.plan(module, example_inputs=x, output_key="scores")
    converted = bcos_fx.bcosify(module, example_inputs=x, output_key="scores")
    with pytest.warns(DeprecationWarning, match="is now") as warned:
        calibrated = bcos_fx.calibrate(converted, torch.rand(8, 3, 8, 8), reference=module, output="scores")
    assert len(warned) == 2
    assert calibrated.report.figures.calibration is not None


def test_every_option_is_a_keyword_of_its_own() -> None:
    parameters = inspect.signature(bcos_fx.bcosify).parameters
    assert all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    assert set(Options().to_dict()) <= set(parameters)
    assert list(inspect.signature(bcos_fx.plan).parameters) == list(parameters)
    described = str(inspect.getdoc(bcos_fx.bcosify))
    assert all(f"\n    {name}:" in described for name in parameters), "an option without a description"


@pytest.mark.parametrize("name", sorted(set(Options().to_dict()) - {"b", "mean", "std"}))
def test_an_option_reaches_the_report(name: str) -> None:
    other: dict[str, Any] = {
        "scale": "unit", "eps": 1e-3, "input": "folded", "channels": "bgr", "pixel_max": 255.0, "pool": "keep",
        "activation": "remove", "bias": "keep", "projections": "value-and-output", "classifier": "pooled",
        "positions": "strip-in-pool", "head": "keep", "logit_bias": -2.0, "temperature": 3.0, "leaf_modules": ("5",),
    }  # fmt: skip
    report = bcos_fx.plan(cnn(), example_inputs=images(), **{name: other[name]})
    plain = bcos_fx.plan(cnn(), example_inputs=images())
    assert report.to_dict()["options"][name] == (["5"] if name == "leaf_modules" else other[name])
    assert plain.to_dict()["options"][name] != report.to_dict()["options"][name]


def test_former_keywords_of_finetune_mean_what_they_are_now() -> None:
    pytest.importorskip("lightning")
    network = bcos_fx.bcosify(cnn(), example_inputs=images(), recipe="equivalent")
    data = (torch.rand(8, 3, 8, 8), torch.arange(8) % 2)
    asked: dict[str, Any] = {"epochs": 1, "batch_size": 4, "loss": "distil-kl"}
    rows: list[Any] = []
    with pytest.warns(DeprecationWarning, match="is now") as warned:
        old = bcos_fx.finetune(network, data, reference=network, accelerator="cpu", told=rows.append, **asked)
    assert sorted(str(each.message) for each in warned) == [
        "accelerator= is now run=RunSettings(accelerator=...)",
        "reference= is now original=",
        "told= is now run=RunSettings(on_epoch=...)",
    ]
    assert len(rows) == len(old.history) == 2
    run = bcos_fx.RunSettings(accelerator="cpu")
    new = bcos_fx.finetune(network, data, original=network, run=run, **asked)
    assert old.history[-1].loss == new.history[-1].loss
    with pytest.raises(UsageError, match=r"told= is part of run="):
        bcos_fx.finetune(network, data, run=run, told=rows.append)
    with pytest.warns(DeprecationWarning, match='new_head= is now head="new"'):
        assert bcos_fx.finetune(network, data, new_head=True, run=run, epochs=1, loss="bce").network.class_count() == 2


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (("calibrate", "none.st", "--images", "none"), "note: --images is now --data"),
        (("calibrate", "none.st", "--images=none"), "note: --images is now --data"),
        (("finetune", "none.st", "--data", "d", "-o", "o", "--new-head"), "note: --new-head is now --head new"),
        (("finetune", "none.st", "--data", "d", "-o", "o", "--reference", "r"), "note: --reference is now --original"),
    ],
)
def test_former_options_are_read_and_noted(words: tuple[str, ...], note: str) -> None:
    done = CliRunner().invoke(app, words, prog_name="bcos-fx")
    assert done.exit_code == 2
    assert note in done.stderr
    assert "none.st" in done.stderr.replace(note, "")
    assert "No such option" not in done.stderr


def test_no_help_shows_a_former_option() -> None:
    for name, former in FORMER.items():
        shown = CliRunner().invoke(app, [name, "--help"], prog_name="bcos-fx").stdout
        assert not [option for option in former if re.search(rf"{option}\b", shown)]


def test_former_spellings_of_training_and_explanations(tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="optimiser= is now optimizer="):
        training = Training(optimiser=Optimizer(lr=0.5))  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="now .optimizer"):
        assert training.optimiser.lr == training.optimizer.lr == 0.5
    with pytest.warns(DeprecationWarning, match="optimiser= is now optimizer="):
        assert Training().with_changes({"optimiser": Optimizer(lr=0.5)}) == training
    found = bcos_fx.explain(bcos_fx.bcosify(cnn(), example_inputs=images()), images(), 0)
    with pytest.warns(DeprecationWarning, match="now .colors"):
        assert found.colours == found.colors


def test_the_former_table_of_a_recipe_warns_and_stands_alone(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    text = find_recipe("matched").read_text(encoding="utf-8")
    recipe.write_text(text.replace("[training.optimizer]", "[training.optimiser]"), encoding="utf-8")
    with pytest.warns(DeprecationWarning, match="is now"):
        assert load_training(recipe) == load_training("matched")
    recipe.write_text(text + "\n[training.optimiser]\nlr = 0.5\n", encoding="utf-8")
    with pytest.raises(RuleError, match="are the same"):
        load_training(recipe)


def test_the_former_word_for_coefficients_in_a_rule() -> None:
    with pytest.warns(DeprecationWarning, match="'ledger' of a rule is now 'coefficients'"):
        entry = Replacement(build="counted-shift", inputs=("layer", "ledger"))
    assert entry == Replacement(build="counted-shift", inputs=("layer", "coefficients"))
