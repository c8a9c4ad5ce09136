"""explain, and what check says of a network alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.cli.conftest import SHAPE, TINY, Run


@pytest.fixture
def photographs(folder: Path) -> Path:
    inside = folder / "photographs"
    inside.mkdir()
    generator = np.random.default_rng(0)
    for n in range(3):
        pixels = generator.integers(0, 256, (20 + 4 * n, 16 + 8 * n, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(inside / f"{n}.png")
    return inside


@pytest.fixture
def spoilt(photographs: Path) -> Path:
    (photographs / "bad.jpg").write_bytes(b"no image")
    return photographs


def test_an_image_is_explained_by_a_picture_and_a_sum(run: Run, artifact: Path, photographs: Path) -> None:
    done = run("explain", artifact, photographs / "0.png")
    assert done.exit_code == 0, done.output
    assert "residual" in done.stdout
    assert "1 of 1 image explained" in done.stdout
    assert Path("explanation.png").stat().st_size > 5_000


def test_json_has_sums_that_add_up(run: Run, artifact: Path, photographs: Path) -> None:
    done = run("explain", artifact, photographs, "--target", "top2", "-o", "all.html", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert len(said["images"]) == 3
    for row in said["images"]:
        for output, own, constants, residual in zip(
            row["output"], row["input"], row["constants"], row["residual"], strict=True
        ):
            assert abs(output - own - constants - residual) < 1e-6
            assert abs(residual) < 1e-3
        assert len(row["target"]) == 2
        assert row["target"][0] == row["prediction"]
    assert Path("all.html").read_text(encoding="utf-8").count('class="card"') == 6


def test_a_corrupt_image_is_skipped_and_listed(run: Run, artifact: Path, spoilt: Path) -> None:
    done = run("explain", artifact, spoilt, "-o", "all.html")
    assert done.exit_code == 1
    assert "3 of 4 images explained" in done.stdout
    assert "bad.jpg" in done.stderr
    assert Path("all.html").exists()
    alone = run("explain", artifact, spoilt / "bad.jpg", "-o", "none.html")
    assert alone.exit_code == 2
    assert "of 1 image none" in alone.stderr
    assert not Path("none.html").exists()


def test_names_and_differences(run: Run, artifact: Path, photographs: Path, folder: Path) -> None:
    classes = run("explain", artifact, photographs / "0.png", "--json")
    count = max(json.loads(classes.stdout)["images"][0]["target"][0] + 1, 3)
    (folder / "classes.txt").write_text("\n".join(f"kind {n}" for n in range(count)), encoding="utf-8")
    words = ("explain", artifact, photographs / "0.png", "--classes", "classes.txt", "-f", "-o", "a.npz")
    done = run(*words, "--target", "kind 1")
    assert done.exit_code == 0, done.output
    assert "kind 1" in done.stdout
    assert run(*words, "--target", "kind 1", "--against", "0").exit_code == 0
    wrong = run(*words, "--target", "kynd 1")
    assert wrong.exit_code == 2
    assert "did you mean 'kind 1'" in wrong.stderr
    assert run(*words, "--against", "0").exit_code == 2
    apart = run(*words, "--against", "others")
    assert apart.exit_code == 0
    assert "predicted class - mean of the others" in apart.stdout
    assert "name it with --target" in run(*words, "--target", "top2", "--against", "others").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("explain", "tiny.safetensors", "photographs", "-o", "e.gif"), ".png, .pdf"),
        (("explain", "tiny.safetensors", "photographs", "-o", "missing/e.png"), "no folder"),
        (("explain", "tiny.safetensors", "photografs"), "did you mean 'photographs'"),
        (("explain", "tiny.safetensor", "photographs"), "tiny.safetensors"),
        (("explain", "weights.pth", "photographs"), "convert it first"),
        (("explain", "photographs/0.png", "photographs"), "not a converted network"),
        (("explain", "tiny.safetensors", "photographs", "--target", "999"), "is not an output"),
        (("explain", "tiny.safetensors", "photographs", "--target", "tabby"), "no class names"),
        (("explain", "tiny.safetensors", "photographs", "--output", "nolayer"), "no layer named"),
        (("explain", "tiny.safetensors", "photographs", "--classes", "nothing.txt"), "cannot be read"),
        (("explain", "tiny.safetensors", "photographs", "--source", "nolayer"), "its input is x"),
        (("explain", "tiny.safetensors", "photographs", "--source", "brunch"), "branch"),
        (("explain", "tiny.safetensors", "photographs", "--source", "x", "--source", "x"), "none twice"),
        (
            ("explain", "tiny.safetensors", "photographs", "--source", "x", "--batch-axis", "1"),
            "which is not a photograph",
        ),
        (("explain", "tiny.safetensors", "photographs", "--batch-axis", "first"), "--batch-axis is 'first'"),
        (("explain", "tiny.safetensors", "photographs", "--batch-axis", "7"), "--batch-axis is 7, the input has 4"),
        (("explain", "tiny.safetensors", "photographs", "--channel-axis", "9"), "--channel-axis is 9"),
        (("check", "tiny.safetensors", "--source", "nolayer"), "its input is x"),
        (("check", "tiny.safetensors", "--batch-axis", "7"), "--batch-axis is 7"),
        (("check", "tiny.safetensors", "--batch-axis", "1", "--source", "x"), "samples in dimension 0"),
        (("check", "weights.pth", "tiny.safetensors", "--arch", TINY, "--source", "x"), "checked alone"),
        (("check", "weights.pth", "--arch", TINY, "--batch-axis", "1"), "--input-shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[1:]),
)
def test_bad_input_is_one_message_and_leaves_no_file(
    words: tuple[str, ...], said: str, run: Run, artifact: Path, photographs: Path, folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    done = run(*words)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert sorted(folder.rglob("*")) == before


def test_check_certifies_a_converted_network(run: Run, artifact: Path) -> None:
    done = run("check", artifact)
    assert done.exit_code == 0, done.output
    assert "dynamic linear: output = W(x)" in done.stdout
    assert "contributions complete" in done.stdout
    said = json.loads(run("check", artifact, "--json").stdout)["certificate"]
    assert said["ok"] is True
    assert said["completeness"]["verdict"] == "complete"
    assert said["completeness"]["relative_gap"] <= 1e-9
    assert {entry["source"] for entry in said["constants"]}


def test_check_certifies_an_original(run: Run, weights: Path) -> None:
    done = run("check", weights, "--arch", TINY)
    assert done.exit_code == 0, done.output
    assert "dynamic linear: output = W(x)" in done.stdout


_GATED = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Flatten(), nn.Linear(144, 3))
"""


@pytest.fixture
def gated(run: Run, folder: Path) -> Path:
    """A converted network whose value passes a softmax."""
    (folder / "gated.py").write_text(_GATED, encoding="utf-8")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.Flatten(), nn.Linear(144, 3))
    torch.save(model.state_dict(), folder / "gated.pth")
    words = (
        "convert",
        "gated.pth",
        "--arch",
        "gated.py:build",
        *SHAPE,
        "--recipe",
        "equivalent",
        "-o",
        "g.safetensors",
    )
    done = run(*words)
    assert (done.exit_code, "NOT EXPLAINABLE" in done.stderr) == (1, True)
    return folder / "g.safetensors"


def test_check_names_what_breaks_linearity(run: Run, gated: Path) -> None:
    done = run("check", gated)
    assert done.exit_code == 1
    assert "not dynamic linear" in done.stdout
    assert "softmax" in done.stdout
    assert json.loads(run("check", gated, "--json").stdout)["certificate"]["breaks"][0]["op"] == "softmax"


def test_an_incomplete_explanation_is_refused_or_said_to_be(run: Run, gated: Path, photographs: Path) -> None:
    refused = run("explain", gated, photographs / "0.png")
    assert refused.exit_code == 1
    assert "softmax" in refused.stderr
    assert not Path("explanation.png").exists()
    said = run("explain", gated, photographs / "0.png", "--allow-incomplete")
    assert said.exit_code == 1
    assert "INCOMPLETE" in said.stdout
    assert Path("explanation.png").exists()


@pytest.mark.parametrize(("target", "against"), [("0", "99"), ("99", "0")])
def test_a_class_to_compare_with_must_be_there(
    target: str, against: str, run: Run, artifact: Path, photographs: Path
) -> None:
    done = run("explain", artifact, photographs, "--target", target, "--against", against, "-o", "why.html")
    assert done.exit_code == 2, done.output
    assert "the target 99 is not an output of the network, which has 3" in done.stderr
    assert "bug in bcos-fx" not in done.stderr
    assert not Path("why.html").exists()


_POOLED = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def test_check_names_what_breaks_an_original(run: Run, folder: Path) -> None:
    (folder / "pooled.py").write_text(_POOLED, encoding="utf-8")
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.Softmax(1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    torch.save(nn.Sequential(*layers).state_dict(), folder / "pooled.pth")
    done = run("check", "pooled.pth", "--arch", "pooled.py:build")
    assert done.exit_code == 1, done.output
    assert "not dynamic linear" in done.stdout
    said = json.loads(run("check", "pooled.pth", "--arch", "pooled.py:build", "--json").stdout)["certificate"]
    assert said["ok"] is False
    assert [found["op"] for found in said["breaks"]] == ["softmax"]


def test_an_original_tells_its_constants(run: Run, weights: Path) -> None:
    said = json.loads(run("check", weights, "--arch", TINY, "--json").stdout)["certificate"]
    assert said["ok"] is True
    assert {"conv.bias", "fc.bias"} <= {entry["source"] for entry in said["constants"]}


# ---------------------------------------------------------------- files and pictures


def test_a_file_that_is_there_is_overwritten_only_when_asked(run: Run, artifact: Path, photographs: Path) -> None:
    words = ("explain", artifact, photographs / "0.png", "-o", "e.npz")
    assert run(*words).exit_code == 0
    before = Path("e.npz").stat().st_mtime_ns
    done = run(*words)
    assert (done.exit_code, "is there already" in done.stderr) == (2, True)
    assert Path("e.npz").stat().st_mtime_ns == before
    for option in ("-f", "--force", "--overwrite"):
        assert run(*words, option).exit_code == 0
    assert Path("e.npz").stat().st_mtime_ns != before


def test_every_command_that_writes_a_file_has_the_same_option_to_overwrite_it(run: Run) -> None:
    for command in ("convert", "calibrate", "finetune", "explain", "embed", "export", "report", "evaluate"):
        assert "--overwrite" in run(command, "--help").stdout, command


def test_json_writes_no_picture(run: Run, artifact: Path, photographs: Path) -> None:
    before = sorted(Path().iterdir())
    done = run("explain", artifact, photographs / "0.png", "--json")
    assert (done.exit_code, json.loads(done.stdout)["file"]) == (0, None)
    assert sorted(Path().iterdir()) == before
    done = run("explain", artifact, photographs / "0.png", "--json", "-o", "e.png")
    assert json.loads(done.stdout)["file"] == "e.png"
    assert Path("e.png").is_file()


def test_a_device_that_is_not_there_is_refused(run: Run, artifact: Path, photographs: Path) -> None:
    for words in (("explain", artifact, photographs), ("calibrate", artifact, "--data", photographs)):
        assert run(*words, "--device", "cpu", "-o", f"{words[0]}.safetensors").exit_code == 0
        done = run(*words, "--device", "cuda:99", "-o", f"{words[0]}2.safetensors")
        assert (done.exit_code, "--device is 'cuda:99'" in done.stderr) == (2, True)


def test_the_picture_is_drawn_as_asked(run: Run, artifact: Path, photographs: Path) -> None:
    words = ("explain", artifact, photographs / "0.png")
    style = ("--panels", "contributions", "--overlay", "--cmap", "PuOr", "--size", "4", "--font-size", "12")
    done = run(*words, *style, "--font", "DejaVu Serif", "-o", "one.svg")
    assert done.exit_code == 0, done.stderr
    drawn = Path("one.svg").read_text(encoding="utf-8")
    assert "highest outputs" not in drawn
    assert "DejaVu Serif" in drawn
    for wrong, said in (
        (("--panels", "map"), "--panels is 'map'"),
        (("--panels", "weights"), "no panel 'weights' (W(x) has no color here)"),
        (("--cmap", "PuOx"), "did you mean 'PuOr'"),
        (("--font", "Nothing"), "--font is 'Nothing'"),
        (("--size", "0"), "size is 0"),
        (("--overlay", "-o", "e.npz"), ".npz file has no panels"),
    ):
        done = run(*words, *wrong)
        assert (done.exit_code, said in done.stderr) == (2, True), done.output
