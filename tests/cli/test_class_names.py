"""Class names, origin and licence on the command line: given once, kept in the file, used by every command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import bcos_fx
from tests.cli.conftest import SHAPE, TINY, Run

NAMES = ("zebra", "apple", "mouse")


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def named(run: Run, weights: Path) -> Path:
    """A converted network of three classes that are not in the order of their names."""
    weights.with_name("names.txt").write_text("\n".join(NAMES))
    words = ("convert", weights, "--arch", TINY, *SHAPE, "--recipe", "equivalent", "--classes", "names.txt")
    done = run(*words, "--license", "cc-by-4.0", "-o", "named.safetensors", "--no-verify")
    assert done.exit_code == 0, done.stderr
    return weights.with_name("named.safetensors")


def test_convert_keeps_what_is_known(named: Path) -> None:
    record = bcos_fx.load(named).record
    weights = named.with_name("weights.pth")
    assert record.classes == NAMES
    assert record.origin is not None
    assert (record.origin.name, record.origin.file, record.origin.license) == (TINY, "weights.pth", "cc-by-4.0")
    assert record.origin.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_explain_takes_names_from_the_file(run: Run, named: Path) -> None:
    picture(named.with_name("a.png"))
    done = run("explain", named, "a.png", "--target", "mouse", "--json", "-o", "a.npz")
    row = json.loads(done.stdout)["images"][0]
    assert (row["target"], row["names"]) == ([2], ["mouse"])
    done = run("explain", named, "a.png", "--target", "mouse", "--against", "zebra", "--json", "-o", "b.npz")
    assert json.loads(done.stdout)["images"][0]["names"] == ["mouse - zebra"]
    assert run("explain", named, "a.png", "--target", "mice").exit_code == 2


def accuracy(run: Run, named: Path, data: str) -> float:
    done = run("evaluate", named, "--data", data, "--metric", "accuracy", "--json", "-o", f"{data}.out")
    assert done.exit_code == 0, done.stderr
    return float(json.loads(done.stdout)["accuracy"]["top1"])


def test_evaluate_finds_folders_by_the_names_in_the_file(run: Run, named: Path) -> None:
    """Sorted by name the folders are apple, mouse, zebra, which are not the network's 0, 1, 2."""
    network = bcos_fx.load(named)
    for seed in range(6):
        path = picture(named.with_name("a.png"), seed)
        answer = int(network(network.preprocess(path)).argmax())
        picture(named.parent / "photos" / NAMES[answer] / f"{seed}.png", seed)
    assert accuracy(run, named, "photos") == 1


def test_evaluate_refuses_data_that_number_classes_otherwise(run: Run, named: Path) -> None:
    images = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    np.savez(named.with_name("a.npz"), images=images, labels=[0, 1, 2], classes=["apple", "mouse", "zebra"])
    done = run("evaluate", named, "--data", "a.npz", "--metric", "accuracy")
    assert done.exit_code == 2
    assert "0 is 'apple' in the data and 'zebra' in the network" in done.stderr
    np.savez(named.with_name("b.npz"), images=images, labels=[0, 1, 2], classes=["n01", "n02", "n03"])
    other = run("evaluate", named, "--data", "b.npz", "--metric", "accuracy", "-o", "b")
    assert other.exit_code == 0
    assert "no class of the data has a name of the network's (0 is 'n01' in the data and" in other.stderr
    np.savez(named.with_name("c.npz"), images=images, labels=[0, 1, 2], classes=NAMES)
    same = run("evaluate", named, "--data", "c.npz", "--metric", "accuracy", "-o", "c")
    assert "no class of the data" not in same.stderr
    assert 0 <= accuracy(run, named, "c.npz") <= 1
