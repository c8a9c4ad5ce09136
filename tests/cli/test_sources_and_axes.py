"""--source, --channel-axis and --batch-axis of explain and check."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import bcos_fx
from bcos_fx.artifact import load, save
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.data.stores import open_source
from tests.cli.conftest import Run


def read(path: Path) -> torch.Tensor:
    image: torch.Tensor = open_source(path).read(0, Preprocessing(3, 8, 8)).image
    return image


@pytest.fixture
def photograph(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


def test_a_layer_explains(run: Run, artifact: Path, photograph: Path) -> None:
    done = run("explain", artifact, photograph, "--source", "branch", "--target", "1", "-o", "b.npz", "--json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["images"]
    network = load(artifact)
    image = read(photograph)[None]
    found = bcos_fx.explain(network, image, 1, source="branch")
    assert row["sources"]["branch"] == pytest.approx([float(found.contributions.sum())], rel=1e-5)
    assert row["input"] == pytest.approx(row["sources"]["branch"], rel=1e-4, abs=1e-6)
    assert row["output"] == pytest.approx([network(image)[0, 1].item()], rel=1e-5)
    with np.load("b.npz") as written:
        assert written["weights"].shape == (1, 4, 8, 8)
    assert "branch" in run("explain", artifact, photograph, "--source", "branch", "-o", "b.npz", "-f").stdout


class Joined(nn.Module):
    """Two layers beside each other, neither of which reads the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.fine(x).relu() + self.coarse(x).relu()).mean((2, 3)))


def test_several_sources_share_one_sum_and_have_a_file_each(run: Run, folder: Path, photograph: Path) -> None:
    torch.manual_seed(0)
    module = Joined().eval()
    network = bcos_fx.bcosify(module, example_inputs=torch.rand(2, 3, 8, 8), recipe="equivalent")
    save(network, folder / "joined.safetensors")
    words = (
        "explain",
        "-f",
        "joined.safetensors",
        photograph,
        "--target",
        "0",
        "--source",
        "fine",
        "--source",
        "coarse",
        "-o",
        "why.png",
    )
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["files"] == {"fine": "why.fine.png", "coarse": "why.coarse.png"}
    assert {name: Path(name).stat().st_size > 5_000 for name in said["files"].values()} == dict.fromkeys(
        said["files"].values(), True
    )
    (row,) = said["images"]
    total = sum(values[0] for values in row["sources"].values()) + row["constants"][0]
    assert total == pytest.approx(row["output"][0], rel=1e-4, abs=1e-6)
    image = read(photograph)[None]
    for name, (found,) in row["sources"].items():
        by_hand = module.get_submodule(name)(image).relu().mean((2, 3)) @ module.fc.weight[0]
        assert found == pytest.approx(by_hand.item(), rel=1e-4)
    lines = run(*words).stdout
    assert " fine " in lines
    assert "why.fine.png, why.coarse.png" in lines


def test_channels_are_summed_over_the_axis_that_is_named(run: Run, artifact: Path, photograph: Path) -> None:
    for axis, shape in ((1, (1, 8, 8)), (3, (1, 6, 8))):
        done = run("explain", artifact, photograph, "--channel-axis", axis, "-o", f"axis{axis}.npz")
        assert done.exit_code == 0, done.output
        with np.load(f"axis{axis}.npz") as written:
            assert written["contributions"].shape == shape


class SamplesSecond(nn.Module):
    """Images (3, N, H, W) to (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x.transpose(0, 1)).relu().mean((2, 3)))


class NoSamples(SamplesSecond):
    """One image (3, H, W) to (3,)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((1, 2)))


@pytest.mark.parametrize(
    ("made", "shape", "axis"), [(SamplesSecond, (3, 2, 8, 8), 1), (NoSamples, (3, 8, 8), None)], ids=["second", "none"]
)
def test_samples_elsewhere(
    made: type[nn.Module], shape: tuple[int, ...], axis: int | None, run: Run, folder: Path, photograph: Path
) -> None:
    torch.manual_seed(0)
    module = made().eval()
    network = bcos_fx.bcosify(module, example_inputs=torch.rand(shape), recipe="equivalent", batch_axis=axis)
    save(network, folder / "other.safetensors")
    word = "none" if axis is None else str(axis)
    words = ("explain", "other.safetensors", photograph, photograph, "--target", "1", "--batch-axis", word)
    done = run(*words, "-o", "other.npz", "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["images"]
    image = read(photograph)
    expected = module(image if axis is None else image[:, None]).flatten()[1]
    assert [row["output"][0] for row in rows] == pytest.approx([expected.item()] * 2, rel=1e-4)
    assert all(abs(row["residual"][0]) < 1e-5 for row in rows)
    leaf = image.clone().requires_grad_()
    module(leaf if axis is None else leaf[:, None]).flatten()[1].backward()
    with np.load("other.npz") as written:
        torch.testing.assert_close(torch.from_numpy(written["weights"][0]), leaf.grad, rtol=1e-4, atol=1e-6)
    checked = run("check", "other.safetensors", "--batch-axis", word, "--json")
    certificate = json.loads(checked.stdout)["certificate"]
    assert certificate["completeness"]["verdict"] == "complete"
    assert {one["source"].partition(".")[0] for one in certificate["constants"]} <= {"conv", "fc"}


def test_check_certifies_for_a_source_alone(run: Run, artifact: Path) -> None:
    by_layer = json.loads(run("check", artifact, "--source", "fc", "--json").stdout)["certificate"]
    assert by_layer["source"] == "fc"
    assert by_layer["constants"] == []
    assert len(json.loads(run("check", artifact, "--json").stdout)["certificate"]["constants"]) > 1


def test_a_photograph_cannot_be_two_inputs(run: Run, folder: Path, photograph: Path) -> None:
    class Two(SamplesSecond):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            return self.fc((self.conv(x).relu() * mask).mean((2, 3)))

    given = [torch.rand(2, 3, 8, 8), torch.rand(2, 1, 6, 6)]
    save(bcos_fx.bcosify(Two().eval(), example_inputs=given, recipe="equivalent"), folder / "two.safetensors")
    done = run("explain", "two.safetensors", photograph)
    assert done.exit_code == 2
    assert "2 inputs (x, mask)" in done.stderr
    wrong = run("check", "two.safetensors", "--source", "musk")
    assert wrong.exit_code == 2
    assert "its inputs are x, mask" in wrong.stderr
    assert "did you mean 'mask'?" in wrong.stderr


FACTORIES = """
from tests.cli.test_sources_and_axes import NoSamples, SamplesSecond
import torch
from torch import nn

class Nodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.a(x).relu() + self.a(x).relu().mean(0))

def second():
    torch.manual_seed(0)
    return SamplesSecond().eval()

def none():
    torch.manual_seed(0)
    return NoSamples().eval()

def nodes():
    torch.manual_seed(0)
    return Nodes().eval()
"""


@pytest.mark.parametrize(
    ("factory", "shape", "axis"),
    [("second", "3,8,8", "1"), ("none", "3,8,8", "none"), ("nodes", "7,5", "none")],
)
def test_convert_and_check_take_the_axis(factory: str, shape: str, axis: str, run: Run, folder: Path) -> None:
    (folder / "made.py").write_text(FACTORIES)
    arch = ("--arch", f"made.py:{factory}")
    words = ("--input-shape", shape, "--batch-axis", axis, "--recipe", "equivalent", "-o", "made.safetensors", "--json")
    done = run("convert", *arch, *words)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["verdict"] == "equal"
    assert run("plan", *arch, *words[:-3], "--json").exit_code == 0
    torch.save(bcos_fx.checkpoint.build_architecture(f"made.py:{factory}").state_dict(), "made.pth")
    against = run("check", "made.pth", "made.safetensors", *arch, "--batch-axis", axis, "--json")
    assert against.exit_code == 0, against.output
    assert json.loads(against.stdout)["verdict"] == "equal"
    alone = run("check", "made.pth", *arch, "--input-shape", shape, "--batch-axis", axis, "--json")
    assert json.loads(alone.stdout)["certificate"]["completeness"]["verdict"] == "complete"
    by_layer = run("check", "made.safetensors", "--batch-axis", axis, "--source", "fc", "--json")
    assert json.loads(by_layer.stdout)["certificate"]["completeness"]["verdict"] == "complete"
    state = torch.load("made.pth")
    torch.save({name: 1.01 * value for name, value in state.items()}, "other.pth")
    different = run("check", "other.pth", "made.safetensors", *arch, "--batch-axis", axis, "--json")
    assert different.exit_code == 1
    assert json.loads(different.stdout)["verdict"] == "different"


def test_a_layer_explains_where_samples_are_elsewhere(run: Run, folder: Path, photograph: Path) -> None:
    for made, shape, axis in ((SamplesSecond, (3, 2, 8, 8), 1), (NoSamples, (3, 8, 8), None)):
        torch.manual_seed(0)
        module = made().eval()
        network = bcos_fx.bcosify(module, example_inputs=torch.rand(shape), recipe="equivalent", batch_axis=axis)
        save(network, folder / "other.safetensors", overwrite=True)
        words = ("--batch-axis", "none" if axis is None else axis, "--source", "conv", "--target", "1", "--json")
        done = run("explain", "other.safetensors", photograph, photograph, *words, "-o", f"{made.__name__}.npz")
        assert done.exit_code == 0, done.output
        rows = json.loads(done.stdout)["images"]
        image = read(photograph)
        value = module.conv(image[None]).relu().mean((2, 3)) @ module.fc.weight[1]
        assert [row["sources"]["conv"][0] for row in rows] == pytest.approx([value.item()] * 2, rel=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("convert", "--arch", "made.py:nodes", "--batch-axis", "none"), "--input-shape"),
        (("convert", "--arch", "made.py:nodes", "--batch-axis", "7", "--input-shape", "7,5"), "from 0 to 2"),
        (("plan", "--arch", "made.py:nodes", "--batch-axis", "x", "--input-shape", "7,5"), "--batch-axis is 'x'"),
        (
            ("convert", "--arch", "made.py:second", "--batch-axis", "1", "--input-shape", "3,8,8", "--calibrate", "."),
            "put samples first",
        ),
    ],
)
def test_an_axis_that_does_not_fit_is_refused(words: tuple[str, ...], said: str, run: Run, folder: Path) -> None:
    (folder / "made.py").write_text(FACTORIES)
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
