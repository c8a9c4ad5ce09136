"""finetune from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bcos_fx
from bcos_fx.nn import BcosLayer
from tests.cli.conftest import SHAPE, TINY, Run

pytestmark = pytest.mark.vision


@pytest.fixture
def photographs(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(12):
        place = folder / "train" / f"class_{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 120, (8, 8, 3), dtype=np.uint8)
        pixels[..., number % 3] += 100
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder / "train"


@pytest.fixture
def start(run: Run, weights: Path) -> Path:
    done = run("convert", weights, "--arch", TINY, *SHAPE, "--recipe", "gradual", "-o", "start.safetensors")
    assert done.exit_code == 0, done.stderr
    return Path("start.safetensors")


def test_a_network_is_trained_written_and_taken_up_again(run: Run, start: Path, photographs: Path) -> None:
    command = ("finetune", start, "--data", photographs, "--val", photographs, "--epochs", "2", "--batch-size", "4")
    done = run(*command, "-o", "out.safetensors", "--logger", "csv")
    assert done.exit_code == 0, done.output
    assert "Wrote out.safetensors" in done.stdout
    assert "Accuracy" in done.stdout
    assert [line.split(",")[0] for line in done.stderr.splitlines() if line.startswith("epoch")] == [
        "epoch 0",
        "epoch 1",
        "epoch 2",
    ]
    assert "2 epochs of 3 steps (batches of 4)" in done.stderr.splitlines()[0]
    network = bcos_fx.load("out.safetensors")
    assert {m.b for m in network.modules() if isinstance(m, BcosLayer)} == {2.0}
    (kept,) = network.record.training
    assert (kept.data, kept.images, kept.recipe, kept.epochs, kept.tested_on) == ("train", 12, "gradual", 2, "train")
    assert kept.options["batch_size"] == 4
    told = [line.split("accuracy ")[1].split(",")[0] for line in done.stderr.splitlines() if line.startswith("epoch")]
    assert (f"{kept.before:.2%}", f"{kept.accuracy:.2%}") == (told[0], told[-1])
    assert network.record.classes == ("class_0", "class_1", "class_2")
    assert Path("out.safetensors.run/history.csv").read_text().count("\n") == 4
    explained = run("explain", "out.safetensors", photographs / "class_0" / "0.png", "--json")
    # The logit layer's bias is a constant too; the network's own are gone.
    assert explained.exit_code == 0, explained.output
    done = run(*command, "-o", "out.safetensors")
    assert done.exit_code == 2
    assert "is there already" in done.stderr
    done = run(*command, "-o", "out.safetensors", "--force")
    assert done.exit_code == 2
    assert "--resume" in done.stderr
    before = Path("out.safetensors").read_bytes()
    done = run(*command, "-o", "out.safetensors", "--force", "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    assert len(json.loads(done.stdout)["history"]) == 3
    assert Path("out.safetensors").read_bytes() == before


def test_layers_are_matched_to_those_of_the_original(run: Run, weights: Path, photographs: Path) -> None:
    for recipe in ("matched", "equivalent"):
        assert run("convert", weights, "--arch", TINY, *SHAPE, "--recipe", recipe, "-o", f"{recipe}.st").exit_code == 0
    command = ("finetune", "matched.st", "--data", photographs, "--epochs", "1", "--batch-size", "4", "-o", "out.st")
    done = run(*command)
    assert done.exit_code == 2
    assert "there is no original to distil from" in done.stderr
    assert "--original" in done.stderr
    done = run(*command, "--original", "equivalent.st")
    assert done.exit_code == 0, done.output
    assert all(m.b == 2.0 for m in bcos_fx.load("out.st").modules() if isinstance(m, BcosLayer))


def test_mistakes_are_one_message_each(run: Run, start: Path, photographs: Path, weights: Path) -> None:
    cases = [
        ((start, "--data", "trian"), "did you mean 'train'"),
        ((weights, "--data", photographs), "convert it first"),
        ((start, "--data", photographs, "--recipe", "gradul"), "did you mean 'gradual'"),
        ((start, "--data", photographs, "--lr", "-1"), "lr is -1"),
        ((start, "--data", photographs, "--augment", "flop"), "did you mean 'flip'"),
        ((start, "--data", photographs, "--precision", "64"), "--precision is '64'"),
        ((start, "--data", photographs, "--logger", "tensorbord"), "did you mean 'tensorboard'"),
    ]
    for words, said in cases:
        done = run("finetune", *words, "-o", "out.safetensors")
        assert done.exit_code == 2, words
        assert said in done.stderr, done.stderr
        assert not Path("out.safetensors").exists()
    (photographs / "class_3").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(photographs / "class_3" / "0.png")
    done = run("finetune", start, "--data", photographs, "-o", "out.safetensors")
    assert "4 classes, and the network 3" in done.stderr
    done = run(
        "finetune",
        start,
        "--data",
        photographs,
        "-o",
        "new.safetensors",
        "--head",
        "new",
        "--epochs",
        "1",
        "--from-scratch",
    )
    assert done.exit_code == 0, done.stderr
    assert bcos_fx.load("new.safetensors").graph is not None


def test_help_teaches(run: Run) -> None:
    done = run("finetune", "--help")
    assert done.exit_code == 0
    for word in ("--data", "--val", "--recipe", "--resume", "--from-scratch", "--head", "a folder per class"):
        assert word in done.stdout


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_says_how_to_go_on(run: Run, start: Path, photographs: Path, root: Path) -> None:
    words = ["finetune", str(start), "--data", str(photographs), "--epochs", "500", "-o", "out.safetensors"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bcos_fx", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    checkpoint = Path("out.safetensors.run/last.ckpt")
    for _ in range(1200):
        if checkpoint.exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "go on with resume=True (--resume)" in said
    assert "Traceback" not in said
    assert not Path("out.safetensors").exists()
