"""Some rows of a classifier are kept: which classes are meant, and what the smaller head answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import bcos_fx
from bcos_fx.cli import app
from bcos_fx.errors import MissingExtraError, UsageError
from bcos_fx.heads import classes as classes_module
from bcos_fx.heads.classes import find_classes
from bcos_fx.heads.layers import with_new_head, with_subset_head
from bcos_fx.training.finetune import finetune
from bcos_fx.training.recipe import Training
from bcos_fx.training.settings import RunSettings

NAMES = ("tench, Tinca tinca", "English springer", "crane", "cassette player", "crane", "chain-saw")
KEPT = [4, 0, 3]


class LinearHead(nn.Module):
    def __init__(self, classes: int = 6, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class ConvHead(LinearHead):
    def __init__(self, classes: int = 6, bias: bool = True) -> None:
        super().__init__(classes, bias)
        self.head = nn.Conv2d(8, classes, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).mean((2, 3))


class FlatConvHead(ConvHead):
    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.head(self.body(x).mean((2, 3), keepdim=True)), 1)


class Twice(LinearHead):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.head(self.body(x).mean((2, 3)))[:, :1].expand(-1, 8)))


class NormAfter(LinearHead):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(super().forward(x))


class TwoHeads(LinearHead):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.body(x).mean((2, 3))
        return self.head(seen) + self.other(seen)


def made(kind: Any, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**options).eval()


def converted(network: nn.Module, recipe: str = "equivalent", **options: Any) -> Any:
    return bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 8, 8), recipe=recipe, **options)


@pytest.mark.parametrize("kind", [LinearHead, ConvHead, FlatConvHead])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("recipe", ["equivalent", "bcosification", "bcos-v2", "matched"])
def test_the_outputs_of_kept_classes_are_what_they_were(kind: Any, bias: bool, recipe: str) -> None:
    network = made(kind, bias=bias)
    whole = converted(network, recipe)
    some = converted(network, recipe, classes=KEPT)
    images = torch.rand(5, 3, 8, 8)
    # A logit layer's usual bias, log(1 / (C - 1)), follows the number of classes and is the same for each.
    theirs, ours = whole(images)[:, KEPT], some(images)
    shift = (ours - theirs)[0, 0] if recipe != "equivalent" else torch.zeros(())
    torch.testing.assert_close(ours, theirs + shift, rtol=1e-5, atol=1e-6)
    assert some.class_count() == 3
    assert whole.class_count() == 6
    assert any("3 of the original's 6 classes (4, 0, 3)" in note for note in some.report.notes)


def test_a_smaller_head_is_saved_explained_and_named(tmp_path: Path) -> None:
    some = converted(made(LinearHead), "bcosification", classes=["chain saw", "tinca tinca"], class_names=NAMES)
    bcos_fx.save(some, tmp_path / "some.safetensors")
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(bcos_fx.load(tmp_path / "some.safetensors")(images), some(images))
    assert bcos_fx.explain(some, images).output.shape == (2,)
    twice = converted(some, classes=[1, 0])  # what is converted already
    assert torch.equal(twice(images), some(images)[:, [1, 0]])


def test_frozen_rows_stay_frozen() -> None:
    network = converted(made(LinearHead))
    network.get_submodule("head").requires_grad_(False)
    assert not any(p.requires_grad for p in with_subset_head(network, [0, 1]).get_submodule("head").parameters())


@pytest.mark.parametrize("kind", [Twice, NormAfter, TwoHeads])
def test_other_ends_are_refused(kind: Any) -> None:
    network = bcos_fx.bcosify(made(kind), example_inputs=torch.rand(2, 3, 8, 8), recipe="equivalent", verified=False)
    for exchanged in (lambda: with_subset_head(network, [0, 1]), lambda: with_new_head(network, 3, 0)):
        with pytest.raises(UsageError, match="does not end in one layer"):
            exchanged()


@pytest.mark.parametrize("kept", [[], [0], [0, 0], [0, 6], [-1, 0]])
def test_senseless_indices_are_refused(kept: list[int]) -> None:
    with pytest.raises(UsageError, match="cannot be kept"):
        with_subset_head(converted(made(LinearHead)), kept)


def test_classes_by_index_name_and_synonym() -> None:
    assert find_classes([3, "0"], 6) == [3, 0]
    assert find_classes(["TINCA TINCA", "english_springer", "chain saw", "3"], 6, NAMES) == [0, 1, 5, 3]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (["tensh", "cassette", 3], r"2 of 3 classes are not found.*'tensh' \(nearest: 'tench'\); 'cassette' \(nearest"),
        (["tench", "crane"], r"'crane' may be any of 2, 4"),
        (["tench", "0"], "'tench' and '0' are one class of the network, 0"),
        ([0, 6], "6 is not in 0 to 5"),
        ([0, -1], "-1 is not in 0 to 5"),
        ([True, 2], "True is not in"),
        (["tench"], "cannot be told apart"),
    ],
)
def test_classes_that_are_not_one_are_all_listed(wanted: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_classes(wanted, 6, NAMES)


def test_a_network_without_names_knows_indices_only() -> None:
    with pytest.raises(UsageError, match="the network's classes have no such names") as caught:
        find_classes(["tench", "church"], 6)
    assert "class_names=" in str(caught.value)
    with pytest.raises(UsageError, match="5 class names are given for 6 classes"):
        find_classes([0, 1], 6, NAMES[:5])


def test_classes_of_imagenet() -> None:
    pytest.importorskip("timm")
    names = ["tench", "English springer", "cassette player", "chain saw", "church"]
    names += ["French horn", "garbage truck", "gas pump", "golf ball", "parachute"]
    indices = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert find_classes(names, 1000) == indices
    assert find_classes(["n01440764", "n03888257", "574"], 1000) == [0, 701, 574]
    with pytest.raises(UsageError, match=r"'n99999999'.*'tensch' \(nearest: 'tench'\)"):
        find_classes(["n99999999", "tensch", "church"], 1000)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm.data", None)
    classes_module._imagenet.cache_clear()
    with pytest.raises(MissingExtraError, match="timm") as caught:
        find_classes(["tench", "church"], 1000)
    assert "bcos-fx[timm]" in str(caught.value)
    assert find_classes([3, 4], 1000) == [3, 4]


# ---------------------------------------------------------------- fine-tuning and the command line


def write_images(root: Path, classes: list[str], count: int = 4) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng(10 * label + number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def training() -> Training:
    return Training(epochs=1, batch_size=4)


def test_fine_tuning_begins_with_the_rows_of_its_classes(tmp_path: Path) -> None:
    whole = converted(made(LinearHead))
    images = torch.rand(3, 3, 8, 8)
    expected = whole(images)[:, [5, 1, 0]].argmax(1)
    data = write_images(tmp_path / "train", ["chain_saw", "english-springer", "tench"])
    seen: list[Tensor] = []
    found = finetune(
        whole,
        data,
        recipe=training(),
        validation=data,
        head="subset",
        class_names=NAMES,
        run=RunSettings(measures={"first": lambda network: float(seen.append(network(images).argmax(1)) or 0)}),
    )
    assert torch.equal(seen[0], expected)
    assert found.network.class_count() == 3
    assert found.classes == ("chain_saw", "english-springer", "tench")


def test_names_of_classes_follow_the_head_and_the_data(tmp_path: Path) -> None:
    whole = converted(made(LinearHead), class_names=NAMES)
    data = write_images(tmp_path / "train", ["chain_saw", "english-springer", "tench"])
    found = finetune(whole, data, recipe=training(), head="subset").network
    assert found.record.classes == tuple(NAMES[index] for index in (5, 1, 0))
    assert finetune(whole, data, recipe=training(), head="new").network.record.classes == found_names(data)
    twice = finetune(found, data, recipe=training(), validation=data).network.record
    assert [run.recipe for run in twice.training] == ["its own settings", "its own settings"]
    assert twice.training[1].accuracy is not None
    assert whole.record.training == ()


def test_names_that_mean_other_classes_become_those_of_the_data(tmp_path: Path) -> None:
    whole = converted(made(LinearHead), class_names=NAMES)
    folders = sorted(("tench", "crow", "owl", "ant", "bee", "cat"))
    data = write_images(tmp_path / "train", folders)
    assert finetune(whole, data, recipe=training()).network.record.classes == tuple(folders)


def found_names(data: Path) -> tuple[str, ...]:
    return tuple(sorted(folder.name for folder in data.iterdir()))


def test_unnamed_labels_are_indices_of_classes_to_keep(tmp_path: Path) -> None:
    whole = converted(made(LinearHead))
    data = write_images(tmp_path / "train", ["5", "1", "3"])
    found = finetune(whole, data, recipe=training(), validation=data, head="subset")
    assert (found.network.class_count(), found.classes) == (3, ("1", "3", "5"))
    pair = torch.rand(8, 3, 8, 8), torch.tensor([5, 1] * 4)
    assert finetune(whole, pair, recipe=training(), head="subset").network.class_count() == 2
    with pytest.raises(UsageError, match="a test image has the label 4"):
        finetune(whole, pair, recipe=training(), head="subset", validation=(pair[0], pair[1] - 1))


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    whole = converted(made(LinearHead))
    data = write_images(tmp_path / "train", ["tench", "owl"])
    with pytest.raises(UsageError, match=r"1 of 2 classes are not found.*'owl' \(nearest"):
        finetune(whole, data, recipe=training(), head="subset", class_names=NAMES)
    with pytest.raises(UsageError, match="did you mean 'subset'"):
        finetune(whole, data, recipe=training(), head="subsets")
    with pytest.raises(UsageError, match="the data has 2 classes, and the network 6") as caught:
        finetune(whole, data, recipe=training())
    assert "head='subset'" in str(caught.value)
    (data / "crow").mkdir()
    with pytest.raises(UsageError, match="there are no images of 'crow'"):
        finetune(whole, data, recipe=training(), head="new")


def network() -> nn.Module:
    """For the command line."""
    return made(LinearHead)


def command(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="bcos-fx")


def test_the_commands_keep_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_images(tmp_path / "train", ["tench", "chain_saw"])
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    given = ("convert", "--arch", f"{__file__}:network", "--input-shape", "3,8,8", "--recipe", "equivalent", "-o")
    head = ("--head", "subset", "--classes", "names.txt")
    done = command(*given, "some.st", *head, "--data", data)
    assert done.exit_code == 0, done.output
    assert bcos_fx.load("some.st").class_count() == 2
    assert command(*given, "whole.st").exit_code == 0
    images = torch.rand(2, 3, 8, 8)
    kept = bcos_fx.load("whole.st")(images)[:, [5, 0]]
    torch.testing.assert_close(bcos_fx.load("some.st")(images), kept)
    tuned = ("finetune", "whole.st", "--data", data, "--recipe", "gradual", "--epochs", "1", "--batch-size", "4", "-o")
    done = command(*tuned, "tuned.st", *head)
    assert done.exit_code == 0, done.output
    assert bcos_fx.load("tuned.st").class_count() == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--head", "subset"), "name a folder of them with --data"),
        (("--head", "subsett"), "did you mean 'subset'"),
        (("--data", "train"), "--head subset keeps them"),
        (("--head", "subset", "--data", "train"), "the network's classes have no such names"),
        (("--head", "subset", "--data", "nowhere"), "there is no data"),
    ],
)
def test_mistakes_at_the_command_line(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "train", ["tench", "owl"], 1)
    done = command("convert", "--arch", f"{__file__}:network", "--input-shape", "3,8,8", "-o", "out.st", *words)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
    assert not Path("out.st").exists()
