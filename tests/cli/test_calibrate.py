"""calibrate and convert --calibrate: what they say, what they write, how they end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bcos_fx import bcosify
from bcos_fx.artifact import load, save
from bcos_fx.calibration import calibrate
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.data.stores import open_source
from tests.cli import tiny_model
from tests.cli.conftest import SHAPE, TINY, Run


def read(path: Path) -> torch.Tensor:
    image: torch.Tensor = open_source(path).read(0, Preprocessing(3, 8, 8)).image
    return image


@pytest.fixture
def photographs(folder: Path) -> Path:
    """Forty photographs, more than are read at a time."""
    inside = folder / "photographs"
    inside.mkdir()
    generator = np.random.default_rng(0)
    for n in range(40):
        pixels = generator.integers(0, 256, (12 + n % 5, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(inside / f"{n:02d}.png")
    return inside


@pytest.fixture
def raised(run: Run, weights: Path) -> Path:
    """A converted network of the default recipe."""
    done = run("convert", weights, "--arch", TINY, *SHAPE, "-o", "raised.safetensors")
    assert done.exit_code == 0, done.stderr
    return weights.with_name("raised.safetensors")


def test_the_file_is_what_the_library_makes(run: Run, raised: Path, weights: Path, photographs: Path) -> None:
    done = run("calibrate", raised, "--data", photographs, "--original", weights, "--arch", TINY)
    assert done.exit_code == 0, done.stderr
    images = torch.stack([read(file) for file in sorted(photographs.iterdir())])
    wanted = calibrate(load(raised), images, tiny_model.build(), batch_size=16)
    found = load("raised.calibrated.safetensors")
    for name, value in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert "Calibrated on 40 images" in done.stdout
    assert "the highest class is the original's on" in " ".join(done.stdout.split())
    wrote, then = done.stdout.strip().splitlines()[-2:]
    assert wrote.startswith("Wrote raised.calibrated.safetensors.")
    assert "bcos-fx explain raised.calibrated.safetensors" in wrote
    assert "bcos-fx finetune raised.calibrated.safetensors" in then


def test_convert_calibrates_at_once(run: Run, raised: Path, weights: Path, photographs: Path) -> None:
    done = run("convert", weights, "--arch", TINY, *SHAPE, "--calibrate", photographs, "-o", "once.safetensors")
    assert done.exit_code == 0, done.stderr
    assert "Calibrated on 40 images" in done.stdout
    run("calibrate", raised, "--data", photographs, "--original", weights, "--arch", TINY, "-o", "two.safetensors")
    first, second = load("once.safetensors"), load("two.safetensors")
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value)


def test_an_original_of_other_classes_is_refused(run: Run, raised: Path, photographs: Path, folder: Path) -> None:
    lines = ("import torch", "from tests.cli.tiny_model import Tiny", "def build():", "    network = Tiny().eval()",
             "    network.fc = torch.nn.Linear(4, 7)", "    return network")  # fmt: skip
    (folder / "other.py").write_text("\n".join(lines))
    done = run("calibrate", raised, "--data", photographs, "--arch", "other.py:build")
    assert done.exit_code == 2
    assert re.search(r"the original has 7 classes, and the network has 3|\(7,\)|7 channels", done.stderr)
    assert not Path("raised.calibrated.safetensors").exists()


def test_without_the_original_it_says_what_was_left(run: Run, raised: Path, photographs: Path) -> None:
    done = run("calibrate", raised, "--data", photographs, "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    assert [row["kind"] for row in said["calibration"]["layers"]] == ["statistics"]
    assert "biases were removed" in " ".join(said["calibration"]["kept"].values())
    assert said["skipped"] == {}
    assert said["calibration"]["after"]["agreement"] is None


def test_labels_count_the_hits_before_and_after(run: Run, raised: Path, photographs: Path, folder: Path) -> None:
    for n, file in enumerate(sorted(photographs.iterdir())):
        (photographs / str(n % 3)).mkdir(exist_ok=True)
        file.rename(photographs / str(n % 3) / file.name)
    (photographs / "0" / "00bad.png").write_bytes(b"no image")
    done = run("calibrate", raised, "--data", photographs, "--count", 21, "--json")
    assert done.exit_code == 1, done.output
    said = json.loads(done.stdout)
    files = sorted(photographs.rglob("*.png"), key=lambda file: (file.parent.name, file.name))
    chosen = [files[n * 41 // 21] for n in range(21)]
    assert said["skipped"].keys() == {"0/00bad.png"}
    network = load(raised)
    images = torch.stack([read(file) for file in chosen if file.name != "00bad.png"])
    labels = torch.tensor([int(file.parent.name) for file in chosen if file.name != "00bad.png"])
    hits = float((network(images).argmax(1) == labels).double().mean())
    assert said["calibration"]["before"]["accuracy"] == pytest.approx(hits)
    done = run("calibrate", raised, "--data", photographs, "--force")
    assert "it is the label's on" in " ".join(done.stdout.split())


def test_folders_are_classes_by_the_names_that_the_network_keeps(
    run: Run, raised: Path, photographs: Path, folder: Path
) -> None:
    """In the order of their names they would be numbered otherwise."""
    names = ("zebra", "ant", "cat")
    named = save(load(raised).with_record(classes=names), folder / "named.safetensors")
    files = sorted(photographs.glob("*.png"))
    for n, file in enumerate(files):
        (photographs / names[n % 3]).mkdir(exist_ok=True)
        file.rename(photographs / names[n % 3] / file.name)
    done = run("calibrate", named, "--data", photographs, "--json")
    assert done.exit_code == 0, done.stderr
    labels = torch.tensor([n % 3 for n in range(len(files))])
    images = torch.stack([read(photographs / names[n % 3] / file.name) for n, file in enumerate(files)])
    hits = float((load(named)(images).argmax(1) == labels).double().mean())
    assert json.loads(done.stdout)["calibration"]["before"]["accuracy"] == pytest.approx(hits)
    (photographs / "ant").rename(photographs / "aunt")
    done = run("calibrate", named, "--data", photographs, "-f")
    assert done.exit_code == 0, done.stderr
    assert "hits are not counted" in done.stderr
    assert "did you mean 'ant'" in done.stderr or "aunt" in done.stderr


def test_labels_that_are_not_the_networks_are_left_out_or_refused(
    run: Run, raised: Path, photographs: Path, folder: Path
) -> None:
    """Labels only count hits, so any folders of photographs will do; class names that are given are meant."""
    (folder / "names.txt").write_text("dog\ncat\nbird\n")
    done = run("calibrate", raised, "--data", photographs, "--classes", "names.txt")
    assert done.exit_code == 2
    assert "have no labels" in done.stderr
    (photographs / "zebra").mkdir()
    for file in list(photographs.glob("*.png")):
        file.rename(photographs / "zebra" / file.name)
    done = run("calibrate", raised, "--data", photographs, "--classes", "names.txt")
    assert done.exit_code == 2
    assert "zebra" in done.stderr
    done = run("calibrate", raised, "--data", photographs, "-f")
    assert done.exit_code == 0
    assert "note: labels are left out, so hits are not counted: there are 1 folders of classes" in done.stderr
    (photographs / "zebra").rename(photographs / "99")
    done = run("calibrate", raised, "--data", photographs, "-f")
    assert done.exit_code == 0
    assert "note: labels are left out" in done.stderr
    assert "the label 99 is not one of the network's" in done.stderr


def test_a_network_in_double_precision_takes_labelled_images(run: Run, photographs: Path, folder: Path) -> None:
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    save(bcosify(tiny_model.build().double(), example_inputs=images), folder / "double.safetensors")
    (photographs / "1").mkdir()
    for file in photographs.glob("*.png"):
        file.rename(photographs / "1" / file.name)
    done = run("calibrate", "double.safetensors", "--data", photographs, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["calibration"]["after"]["accuracy"] is not None


@pytest.mark.parametrize("command", ["calibrate", "convert"])
def test_a_corrupt_image_is_skipped_listed_and_shown_by_the_exit_code(
    run: Run, raised: Path, weights: Path, photographs: Path, command: str
) -> None:
    (photographs / "bad.jpg").write_bytes(b"no image")
    words = {
        "calibrate": (raised, "--data", photographs),
        "convert": (weights, "--arch", TINY, *SHAPE, "--calibrate", photographs),
    }[command]
    done = run(command, *words, "-o", "written.safetensors")
    assert done.exit_code == 1
    assert "1 skipped:" in done.stderr
    assert "bad.jpg" in done.stderr
    assert load("written.safetensors").report.figures.calibration is not None


def test_bad_input_ends_with_2_and_writes_nothing(
    run: Run, raised: Path, weights: Path, photographs: Path, folder: Path
) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "a.jpg").write_bytes(b"no image")
    (folder / "empty").mkdir()
    cases = [
        ((raised, "--data", "photograph"), "did you mean 'photographs'"),
        ((raised, "--data", "empty"), "there are no images"),
        ((raised, "--data", "bad"), "of 1 image none can be read"),
        ((weights, "--data", photographs), "not a converted network"),
        ((raised, "--data", photographs, "-o", raised), "is there already"),
        ((raised, "--data", photographs, "--original", "nothing.pth", "--arch", TINY), "nothing.pth"),
    ]
    for words, said in cases:
        done = run("calibrate", *words)
        assert done.exit_code == 2, (words, done.output)
        assert said in done.stderr, (words, done.stderr)
    done = run("convert", weights, "--arch", TINY, *SHAPE, "--calibrate", "photograph", "-o", "x.safetensors")
    assert done.exit_code == 2
    assert "did you mean 'photographs'" in done.stderr
    assert not list(folder.glob("*calibrated*"))
    assert not (folder / "x.safetensors").exists()
