"""The [training] table: what it may say, and where it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from bcos_fx.errors import RuleError, UsageError
from bcos_fx.rewriting.core.recipe import load_recipe, recipe_names
from bcos_fx.training.recipe import Optimizer, Training, load_training, recipes_that_train
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course, LossDecay


def written(folder: Path, text: str) -> Path:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_published_recipe_is_as_published() -> None:
    found = load_training("bcosification")
    assert (found.epochs, found.loss) == (90, "off-label-bce")
    assert found.optimizer == Optimizer(name="adam", lr=1e-4, schedule="cosine", clip=0.01)
    assert found.rises == (BSchedule(to=2.0, course=Course("at-once")),)
    assert found.fades == (BiasDecay(course=Course("at-once")),)
    assert found.fades[0].left(0.0) == 0


def test_every_shipped_recipe_trains_or_says_that_it_does_not() -> None:
    assert set(recipes_that_train()) <= set(recipe_names())
    for name in recipes_that_train():
        assert load_training(name).epochs >= 1
        assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("rise", "expected"),
    [
        ("", BSchedule()),
        ('shape = "linear"\nend = 0.3', BSchedule(course=Course("linear", end=0.3))),
        (
            'shape = "steps"\nsteps = 6\nend = 1.0\nto = 2.5',
            BSchedule(to=2.5, course=Course("steps", steps=6, end=1.0)),
        ),
        ('layers = "layer1.*"\nlearned = "layer"', BSchedule(layers="layer1.*", learned="layer")),
        ('learned = "network"\ndrift = 2', BSchedule(learned="network", drift=2.0)),
    ],
)
def test_variants_of_the_ablation_in_b(rise: str, expected: BSchedule, tmp_path: Path) -> None:
    path = written(tmp_path, f"[training]\n[[training.rise]]\n{rise}\n")
    assert load_training(path).rises == (expected,)


@pytest.mark.parametrize(
    ("fade", "expected"),
    [
        (None, ()),
        ("", (BiasDecay(),)),
        ("decay = 0.9", (BiasDecay(decay=0.9),)),
        ('shape = "cosine"\nstart = 0.1\nend = 0.9', (BiasDecay(course=Course("cosine", start=0.1, end=0.9)),)),
    ],
)
def test_variants_of_the_ablation_in_biases(fade: str | None, expected: tuple[BiasDecay, ...], tmp_path: Path) -> None:
    text = "[training]\n" + ("" if fade is None else f"[[training.fade]]\n{fade}\n")
    assert load_training(written(tmp_path, text)).fades == expected


def test_several_losses_with_weights(tmp_path: Path) -> None:
    text = "[training]\n[training.losses]\noff-label-bce = 1\ndistil-kl = 0.5\n"
    found = load_training(written(tmp_path, text))
    assert found.losses == {"off-label-bce": 1.0, "distil-kl": 0.5}
    assert found.distils
    assert found.needs_labels
    assert Training(loss="distil-kl").needs_labels is False
    assert Training(loss={"distil-pairwise": 1.0, "distil-layers": 30.0}).compares_embeddings
    assert not Training(loss={"distil-kl": 1.0, "distil-layers": 30.0}).compares_embeddings
    assert not Training(loss="distil-layers").compares_embeddings


LOSSES = "[training]\n[training.losses]\nbce = 2\ndistil-kl = 0.5\n"


def test_a_loss_that_tapers_off(tmp_path: Path) -> None:
    text = f'{LOSSES}[[training.taper]]\nloss = "distil-kl"\nshape = "linear"\nend = 0.4\n'
    found = load_training(written(tmp_path, text))
    assert found.tapers == (LossDecay("distil-kl", Course("linear", end=0.4)),)
    assert found.losses_at(0.0) == found.losses == {"bce": 2.0, "distil-kl": 0.5}
    assert found.losses_at(0.1) == {"bce": 2.0, "distil-kl": pytest.approx(0.375)}
    assert found.losses_at(0.4) == found.losses_at(1.0) == {"bce": 2.0}
    assert found.with_changes({"epochs": 3}).tapers == found.tapers
    assert found.with_changes({"loss": "bce"}).tapers == ()


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[training]\nepoch = 3\n", 2, "did you mean 'epochs'"),
        (LOSSES + '[[training.taper]]\nloss = "distil-kl"\n', 5, "distil-kl tapers off before training begins"),
        (LOSSES + '[[training.taper]]\nloss = "bec"\nshape = "linear"\n', 1, "loss is 'bec'"),
        (
            '[training]\nloss = "bce"\n[[training.taper]]\nloss = "bce"\nshape = "linear"\n',
            1,
            "all losses taper off",
        ),
        ("[training]\nepochs = 0\n", 1, "epochs is 0"),
        ('[training]\nepochs = "3"\n', 2, "must be an integer"),
        ('[training]\nloss = "bec"\n', 1, "did you mean 'bce'"),
        ("[training]\n[training.optimizer]\nlr = -1\n", 2, "lr is -1"),
        ("[training]\n[training.optimizer]\nlearning_rate = 1\n", 3, "unknown key"),
        ("[training]\n[[training.rise]]\nto = 0.5\n", 2, "B shall rise to 0.5"),
        ('[training]\n[[training.rise]]\nto = 2\n[[training.rise]]\nshape = "liner"\n', 4, "did you mean 'linear'"),
        ("[training]\n[[training.fade]]\nends = 0.5\n", 3, "did you mean 'end'"),
        ('[training]\nloss = "bce"\n[training.losses]\nbce = 1\n', 2, "both given"),
        ("[options]\nb = 2\n", 0, "does not say how to train"),
    ],
)
def test_mistakes_are_named_with_their_line(text: str, line: int, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(RuleError, match=said) as caught:
        load_training(path)
    assert caught.value.where == (f"{path}:{line}" if line else str(path))


def test_changes_reach_training_and_optimiser() -> None:
    found = load_training("bcosification").with_changes({"epochs": 5, "lr": 1e-3, "batch_size": None})
    assert (found.epochs, found.batch_size, found.optimizer.lr, found.optimizer.clip) == (5, 256, 1e-3, 0.01)
    with pytest.raises(UsageError, match="did you mean 'epochs'"):
        found.with_changes({"epoch": 5})
    with pytest.raises(UsageError, match="average is 1"):
        found.with_changes({"average": 1.0})


def test_converting_does_not_read_how_to_train(tmp_path: Path) -> None:
    shipped = Path(__file__).resolve().parents[2] / "rules" / "recipes" / "equivalent.toml"
    path = written(tmp_path, shipped.read_text(encoding="utf-8") + "\n[[training.rise]]\nnonsense = 1\n")
    assert load_recipe(path).name == "equivalent"
