"""A researcher has a checkpoint and wants to know whether the converted network is the same, and why it answers so."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.journeys.conftest import Run

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ARCH = ("--arch", "cifar_resnet.py:resnet20")
SIZE = ("--input-shape", "3,32,32")
MEAN = ("--mean", "0.485,0.456,0.406")
STD = ("--std", "0.229,0.224,0.225")


@pytest.fixture
def checkpoints(tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints as a training script leaves them, the network's source, and a photograph."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "cifar_resnet", raising=False)
    from cifar_resnet import resnet20

    for seed, name in enumerate(("model.th", "other.th")):
        torch.manual_seed(seed)
        network = resnet20().train()
        with torch.no_grad():
            network(torch.randn(16, 3, 32, 32))
        weights = {f"module.{key}": value for key, value in network.state_dict().items()}
        torch.save({"state_dict": weights, "epoch": 3, "best_prec1": 91.7}, tmp_path / name)
    shutil.copy(EXAMPLES / "cifar_resnet.py", tmp_path)
    shutil.copy(photograph, tmp_path / "jeep.jpg")


@pytest.mark.usefixtures("checkpoints")
def test_from_a_checkpoint_to_an_explanation(run: Run, tmp_path: Path) -> None:
    seen = run("inspect", "model.th")
    assert seen.code == 0
    assert "prefix 'module.' removed from every name" in seen.out
    assert "arch not recognized: name the factory that built it, as FILE.py:FACTORY" in seen.out

    wrong = run("convert", "model.th", "-o", "same.safetensors")
    assert (wrong.code, wrong.out) == (2, "")
    assert "error: the file holds weights" in wrong.error
    assert "try: give --arch" in wrong.error

    planned = run("plan", "model.th", *ARCH)
    assert planned.code == 0
    assert "the size of the images was guessed: 224x224 pixels" in planned.out
    assert "mean and std were not given" in planned.out
    assert "Dry run: nothing was written." in planned.out

    half = run("convert", "model.th", *ARCH, *SIZE, *MEAN, "-o", "same.safetensors")
    assert (half.code, half.out) == (2, "")
    assert "was given without" in half.error
    misspelled = run("convert", "model.th", *ARCH, *SIZE, "--recipe", "equivalant", "-o", "same.safetensors")
    assert misspelled.code == 2
    assert "try: did you mean 'equivalent'?" in misspelled.error
    assert not (tmp_path / "same.safetensors").exists()

    made = run("convert", "model.th", *ARCH, *SIZE, *MEAN, *STD, "--recipe", "equivalent", "-o", "same.safetensors")
    assert made.code == 0, made.error
    assert "EQUAL worst relative error" in made.out
    assert "guessed" not in made.out
    assert "Wrote same.safetensors" in made.out
    assert "No rule changed the function: the network computes what the original did." in made.out

    assert run("check", "model.th", "same.safetensors", *ARCH).code == 0
    differs = run("check", "other.th", "same.safetensors", *ARCH)
    assert differs.code == 1
    assert "different: worst relative error" in differs.out

    explained = run("explain", "same.safetensors", "jeep.jpg", "-o", "jeep.png")
    assert explained.code == 0, explained.error
    ((output, pixels, constants, residual),) = explained.sums()
    assert abs(residual) < 1e-5
    assert output == pytest.approx(pixels + constants, abs=2e-3 * (abs(pixels) + abs(constants)))
    assert (tmp_path / "jeep.png").stat().st_size > 10_000

    mistyped = run("explain", "same.safetensors", "jepe.jpg", "-o", "other.png")
    assert mistyped.code == 2
    assert "try: did you mean 'jeep.jpg'?" in mistyped.error
    unnamed = run("explain", "same.safetensors", "jeep.jpg", "--target", "jeep", "-o", "other.png")
    assert unnamed.code == 2
    assert "no class names are known" in unnamed.error

    difference = run("explain", "same.safetensors", "jeep.jpg", "--target", "3", "--against", "5", "--json")
    (image,) = json.loads(difference.out)["images"]
    assert image["names"] == ["class 3 - class 5"]
    assert image["input"][0] + image["constants"][0] == pytest.approx(image["output"][0], abs=1e-5)


@pytest.mark.usefixtures("checkpoints")
def test_the_published_recipe_says_what_it_did(run: Run) -> None:
    made = run("convert", "model.th", *ARCH, *SIZE, *MEAN, *STD, "-o", "bcos.safetensors")
    assert made.code == 0, made.error
    assert "so it answers at chance until it is trained" in made.out
    assert "the highest class stayed the highest on" in made.out
    assert "to explain the original as it is, convert it by the recipe equivalent" in made.out
