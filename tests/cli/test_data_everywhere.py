"""What one command takes as data all commands take, and the same files are the same tensors in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import bcos_fx
from bcos_fx.data.datasets import source_of
from bcos_fx.data.decoding import note
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import accuracy
from tests.cli import tiny_model
from tests.cli.conftest import SHAPE, TINY, Run
from tests.data.making import (
    LABELLED,
    LABELS,
    UNLABELLED,
    make_array,
    make_folder,
    make_npz_of_arrays,
    stacked,
    tensors,
)

pytest.importorskip("lightning")
pytest.importorskip("torchmetrics")
LOSS = "cross-entropy"
TRAIN = """name = "one"
title = "one epoch"
rules = ["canonical.toml"]

[training]
epochs = 1
batch_size = 3
loss = "{loss}"
"""


def recipe(folder: Path, loss: str) -> Path:
    path = folder / f"{loss}.toml"
    path.write_text(TRAIN.format(loss=loss))
    return path


def commands(data: Path, artifact: Path, weights: Path, folder: Path) -> Iterator[tuple[str, tuple[Any, ...], bool]]:
    """Name, words, and whether labels are needed."""
    yield "calibrate", ("calibrate", artifact, "--data", data, "-o", "calibrated.safetensors", "-f"), False
    yield "explain", ("explain", artifact, data, "-o", "explained.npz", "-f"), False
    convert = ("convert", weights, "--arch", TINY, *SHAPE, "-o", "new.safetensors", "-f")
    yield "convert --images", (*convert, "--recipe", "equivalent", "--images", data), False
    yield "convert --calibrate", (*convert, "--calibrate", data), False
    distil = ("--recipe", recipe(folder, "distil-kl"), "--original", artifact, "--epochs", 1, "--accelerator", "cpu")
    yield "finetune distilling", ("finetune", artifact, "--data", data, *distil, "-o", "distilled.safetensors"), False
    learn = (
        "--val",
        data,
        "--recipe",
        recipe(folder, LOSS),
        "--accelerator",
        "cpu",
        "-o",
        "tuned.safetensors",
    )
    yield "finetune", ("finetune", artifact, "--data", data, *learn), True
    yield "evaluate", ("evaluate", artifact, "--data", data, "--metric", "accuracy", "-o", "evaluated"), True


@pytest.mark.parametrize("kind", [*LABELLED, *UNLABELLED])
def test_every_command_takes_every_kind_of_source(
    kind: str, run: Run, artifact: Path, weights: Path, folder: Path
) -> None:
    data = (LABELLED | UNLABELLED)[kind](folder)
    network, reference = bcos_fx.load(artifact), torch.stack(tensors()[: 3 if kind == "shard" else 6]) / 255
    for name, words, labelled in commands(data, artifact, weights, folder):
        if kind == "shard" and name == "finetune":
            continue  # a part of the images, of which one class has none
        done = run(*words)
        if labelled and kind in UNLABELLED:
            assert done.exit_code == 2, (name, done.output)
            assert "no labels" in done.stderr, (name, done.stderr)
            continue
        assert done.exit_code == 0, (name, done.output)
    wanted = bcos_fx.calibrate(network, reference, batch_size=16)
    for name, value in bcos_fx.load(folder / "calibrated.safetensors").state_dict().items():
        torch.testing.assert_close(value, wanted.state_dict()[name])
    torch.testing.assert_close(torch.from_numpy(np.load(folder / "explained.npz")["inputs"]), reference)


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tensors": lambda x, y: (x, y),
    "bytes": lambda x, y: ((x * 255).round().byte(), y),
    "arrays": lambda x, y: (x.permute(0, 2, 3, 1).numpy(), y.numpy()),
    "data set": TensorDataset,
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=4),
    "source": lambda x, y: source_of((x, y)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_library_takes_every_form(form: str) -> None:
    images, labels = torch.stack(tensors()) / 255, torch.tensor(LABELS)
    network = bcos_fx.bcosify(tiny_model.build(), example_inputs=images[:2], recipe="equivalent", verified=False)
    data = FORMS[form](images, labels)
    hits = (network(images).argmax(1) == labels).double().mean()
    assert accuracy(network, data).top1 == pytest.approx(float(hits))
    wanted = bcos_fx.calibrate(network, images)
    for name, value in bcos_fx.calibrate(network, data).state_dict().items():
        torch.testing.assert_close(value, wanted.state_dict()[name])
    found = bcos_fx.finetune(network, data, validation=data, recipe="equivalent", epochs=1, batch_size=6, loss=LOSS)
    assert found.history[0].accuracy == pytest.approx(float(hits))


@pytest.mark.vision
def test_the_same_files_are_the_same_tensors_everywhere(
    run: Run, artifact: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eighty pictures of other sizes than the network's, as every command hands them to the network."""
    from torchvision.transforms import v2

    from bcos_fx.calibration import ordered_pass
    from bcos_fx.evaluation import predictions
    from bcos_fx.explanation import explain
    from bcos_fx.training.lightning_module import FineTuning

    generator, files = np.random.default_rng(0), []
    for n in range(80):
        size = generator.integers(9, 40, 2)
        files.append(folder / "data" / str(n % 3) / f"{n:02d}.png")
        files[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(files[-1])
    steps = v2.Compose([v2.Resize(9), v2.CenterCrop(8)])  # 8 pixels are 7/8 of 9
    pictures = [steps(Image.open(file)) for file in sorted(files)]
    wanted = torch.stack([torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1) for picture in pictures]) / 255
    seen: dict[str, list[Tensor]] = {}

    def recorded(name: str, owner: Any, attribute: str, image_of: Callable[..., Tensor]) -> None:
        original = getattr(owner, attribute)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.setdefault(name, []).append(image_of(*arguments).clone())
            return original(*arguments, **options)

        monkeypatch.setattr(owner, attribute, call)

    recorded("evaluate", predictions, "class_outputs", lambda model, images: images)
    recorded("calibrate", ordered_pass._CalibrationRun, "_output", lambda self, batch: batch.inputs[0])
    recorded("finetune", FineTuning, "validation_step", lambda self, batch, index: batch[0])
    recorded("explain", explain, "explain", lambda network, images, *_: images)
    data = folder / "data"
    learn = (
        "--val",
        data,
        "--recipe",
        recipe(folder, LOSS),
        "--accelerator",
        "cpu",
        "-o",
        "tuned.safetensors",
    )
    for words in (
        ("evaluate", artifact, "--data", data, "--metric", "accuracy"),
        ("calibrate", artifact, "--data", data, "-o", "calibrated.safetensors"),
        ("finetune", artifact, "--data", data, *learn),
        ("explain", artifact, data, "-o", "explained.npz"),
    ):
        done = run(*words)
        assert done.exit_code == 0, done.output
    for name in ("evaluate", "calibrate", "finetune", "explain"):
        assert torch.equal(torch.cat(seen[name])[:80], wanted), name


# ---------------------------------------------------------------- what is wrong with data, in one place and one way


def _empty_folder(root: Path) -> Path:
    (root / "data").mkdir()
    return root / "data"


def _empty_class(root: Path) -> Path:
    (make_folder(root / "data") / "9").mkdir()
    return root / "data"


def _all_unreadable(root: Path) -> Path:
    for file in make_folder(root / "data").rglob("*.png"):
        file.write_bytes(b"no image")
    return root / "data"


ERRORS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "empty folder": (_empty_folder, ("there are no images in", "data", "images end in")),
    "empty class": (_empty_class, ("there are no images of '9' in", "remove its folder")),
    "nothing there": (lambda root: make_folder(root / "data").with_name("dat"), ("no data at", "did you mean 'data'")),
    "unreadable": (_all_unreadable, ("of 6 images none can be read", "no image of a known kind")),
    "integers": (
        lambda root: make_npz_of_arrays(root / "data.npz", images=stacked().transpose(0, 3, 1, 2).astype(np.int32)),
        ("of ", "data.npz holds int32 values", "give bytes (uint8)"),
    ),
    "texts": (
        lambda root: make_npz_of_arrays(root / "data.npz", images=np.full((6, 3, 8, 8), "a")),
        ("the array holds <U1 values", "data.npz"),
    ),
    "another size": (
        lambda root: make_npz_of_arrays(root / "data.npz", images=np.zeros((6, 3, 9, 8), np.float32)),
        ("has the shape (3, 9, 8), and the network takes (3, 8, 8)", "--input-shape 3,9,8"),
    ),
    "bytes as floats": (
        lambda root: make_npz_of_arrays(root / "data.npz", images=np.full((6, 3, 8, 8), 200.0)),
        ("holds values from 200 to 200", "in [0, 1]"),
    ),
    "open layout": (
        lambda root: make_npz_of_arrays(root / "data.npz", images=np.zeros((6, 3, 8, 3), np.uint8)),
        ("which dimension holds the channels is open", "data.npz"),
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_what_is_wrong_is_described_alike_by_every_command(
    kind: str, run: Run, artifact: Path, weights: Path, folder: Path
) -> None:
    make, said = ERRORS[kind]
    data = make(folder)
    for name, words, _ in commands(data, artifact, weights, folder):
        done = run(*words)
        assert done.exit_code == 2, (name, done.output)
        for text in said:
            if (kind, name) != ("unreadable", "finetune") and (kind, text) != ("unreadable", said[0]):
                assert text in done.stderr, (name, done.stderr)


def test_one_unreadable_image_is_listed_or_named(run: Run, artifact: Path, weights: Path, folder: Path) -> None:
    data = make_folder(folder / "data")
    (data / "1" / "2.png").write_bytes(b"no image")
    for name, words, _ in commands(data, artifact, weights, folder):
        done = run(*words)
        assert done.exit_code == (2 if "finetune" in name or name == "convert --images" else 1), (name, done.output)
        assert "2.png" in done.stderr, (name, done.stderr)
        assert "no image of a known kind" in done.stderr, (name, done.stderr)


def test_images_smaller_than_the_network_are_noted(
    run: Run, artifact: Path, weights: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n, picture in enumerate([Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue") * 2]):
        (folder / "data" / str(n % 3)).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "data" / str(n % 3) / f"{n}.png")
    for name, words, _ in commands(folder / "data", artifact, weights, folder):
        note.cache_clear()
        caplog.clear()
        done = run(*words)
        assert "images are enlarged: the first has 4x4 pixels" in done.stderr + caplog.text, (name, done.stderr)


def test_one_array_is_one_image(run: Run, artifact: Path, folder: Path) -> None:
    path = make_array(folder / "one.npy", stacked()[0])
    done = run("explain", artifact, path, path, "-o", "explained.npz")
    assert done.exit_code == 0, done.output
    inputs = torch.from_numpy(np.load(folder / "explained.npz")["inputs"])
    torch.testing.assert_close(inputs, torch.stack([tensors()[0], tensors()[0]]) / 255)
    with pytest.raises(UsageError, match="an array is read alone"):
        source_of([make_array(folder / "many.npy", stacked()), path])
