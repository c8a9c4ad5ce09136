"""evaluate: what it writes, that it goes on after an interruption, and that several processes give what one gives."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bcos_fx.artifact import load, save
from bcos_fx.errors import UsageError
from bcos_fx.evaluation import Method, registry
from bcos_fx.evaluation.curve_measures import curve_measure
from tests.cli.conftest import Run
from tests.evaluation.toy import FACTORY, write_images, write_network

pytest.importorskip("torchmetrics")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).resolve().parent.parent.parent
WORDS = ("evaluate", "toy.safetensors", "--data", "data.npz", "--grid", "2x2")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    write_network(path)
    return path.read_bytes()


@pytest.fixture
def data(folder: Path, toy: bytes) -> Path:
    """A folder with the network, images, and the original as a factory."""
    (folder / "toy.safetensors").write_bytes(toy)
    write_images(folder / "data.npz", 60)
    (folder / "arch.py").write_text(FACTORY, encoding="utf-8")
    return folder


def table(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_everything_is_measured_and_written(run: Run, data: Path) -> None:
    done = run(*WORDS, "--grid", "1x1", "--original", "arch.py:build")
    assert done.exit_code == 0, done.output
    written = sorted(path.name for path in Path("evaluation").iterdir())
    assert [name for name in written if not name.endswith(".jsonl")] == [
        "deletion.png",
        "evaluation.html",
        "gridpg-1x1.png",
        "gridpg-2x2.png",
        "insertion.png",
        "results.csv",
        "results.json",
        "scores.csv",
    ]
    found = json.loads(Path("evaluation/results.json").read_text(encoding="utf-8"))
    assert found["data"]["images"] == 60
    assert found["accuracy"]["images"] == 60
    assert [result["protocol"]["side"] for result in found["gridpg"]] == [2, 1]
    assert found["gridpg"][1]["mean"] == 1.0  # one cell: whatever speaks for it lies in it
    rows = {(row["measure"], row["method"]): row for row in table("evaluation/results.csv")}
    assert float(rows["GridPG 2x2 (fair)", "B-cos"]["value"]) == found["gridpg"][0]["mean"]
    assert float(rows["top-1 accuracy", "network"]["value"]) == found["accuracy"]["top1"]
    scores = [float(row["score"]) for row in table("evaluation/scores.csv") if row["side"] == "2"]
    assert np.mean(scores) == pytest.approx(found["gridpg"][0]["mean"], abs=1e-12)
    for word in ("GridPG 2x2", "B-cos", "top-1", "agreement"):
        assert word in done.stdout


def test_the_page_needs_nothing_else_and_escapes_names(run: Run, data: Path) -> None:
    assert run(*WORDS, "--metric", "gridpg").exit_code == 0
    page = Path("evaluation/evaluation.html").read_text(encoding="utf-8")
    assert page.count('class="card"') == 3
    for place in ("best of", "median of", "worst of"):
        assert place in page
    assert "colour &lt;0&gt;" in page
    assert "colour <" not in page
    assert "http" not in page
    assert "{{" not in page
    assert page.count("data:image/png;base64,") == 1 + 3 * 5


def test_json_is_all_there_is_on_stdout(run: Run, data: Path) -> None:
    done = run(*WORDS, "--json")
    assert json.loads(done.stdout) == json.loads(Path("evaluation/results.json").read_text(encoding="utf-8"))


def test_published_is_the_papers(run: Run, data: Path) -> None:
    done = run(*WORDS, "--protocol", "published", "--metric", "gridpg", "--json")
    (result,) = json.loads(done.stdout)["gridpg"]
    assert result["protocol"] == {
        **{"name": "published", "side": 2, "grids": 500, "seed": 42, "confidence": "sigmoid", "threshold": 0.5},
        **{"skipped": 1, "smooth": 15, "rescaled": False, "windows": False},
    }


def test_an_original_of_other_classes_is_refused(run: Run, data: Path) -> None:
    done = run(*WORDS, "--original", "arch.py:fewer")
    assert done.exit_code == 2
    assert "the original has 5 classes, and the network has 6" in done.stderr
    assert not Path("evaluation/results.json").exists()


@pytest.mark.parametrize(
    ("theirs", "refused"),
    [
        (("red", "green", "blue", "crane bird", "maillot, tank suit", "Tinca tinca, tench"), False),
        ((), False),
        (("green", "red", "blue", "crane", "maillot", "tench"), True),
        (("red", "green", "blue", "crane", "maillot", "toad"), True),
    ],
)
def test_names_and_order_of_classes_are_compared(
    theirs: tuple[str, ...], refused: bool, run: Run, data: Path, tmp_path: Path
) -> None:
    ours = ("red", "green", "blue", "crane", "maillot tank suit", "tench")
    for name, classes in (("ours", ours), ("theirs", theirs)):
        save(load("toy.safetensors").with_record(classes=classes), f"{name}.safetensors")
    words = ("evaluate", "ours.safetensors", "--data", "data.npz", "--metric", "accuracy", "-o", "a")
    named = ("--classes", "names.txt")
    Path("names.txt").write_text("\n".join(ours), encoding="utf-8")
    done = run(*words, *named, "--original", "theirs.safetensors")
    assert ("in the same order" in done.stderr or "in another order" in done.stderr) == refused
    assert (done.exit_code == 2) == refused, done.output


def test_a_converted_file_is_an_original_too(run: Run, data: Path) -> None:
    words = (*WORDS, "--metric", "accuracy,gridpg", "--baselines", "grad-cam,rise", "--json")
    of_file = json.loads(run(*words, "--original", "toy.safetensors", "-o", "a").stdout)
    of_factory = json.loads(run(*words, "--original", "arch.py:build", "-o", "b").stdout)
    assert of_file["accuracy"] == of_factory["accuracy"]
    assert of_file["accuracy"]["agreement"] == 1.0
    means = [[round(result["mean"], 5) for result in found["gridpg"]] for found in (of_file, of_factory)]
    assert means[0] == means[1]
    assert len(means[0]) > 1


# ---------------------------------------------------------------- interruptions


def whole(folder: str) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in ("results.json", "scores.csv", "results.csv")}


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_numbers(run: Run, data: Path) -> None:
    write_images(data / "data.npz", 360)
    assert run(*WORDS, "-o", "whole").exit_code == 0
    total = len(Path("whole/gridpg-2x2-b-cos.jsonl").read_text().splitlines())
    words = [sys.executable, "-m", "bcos_fx", *WORDS, "-o", "cut"]
    process = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    journal = Path("cut/gridpg-2x2-b-cos.jsonl")
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 4):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 4 < journal.read_bytes().count(b"\n") < total
    assert not Path("cut/results.json").exists()
    with journal.open("ab") as stream:
        stream.write(b'{"n": 999, "ro')  # as if it had been killed in the middle of a line
    done = run(*WORDS, "-o", "cut")
    assert done.exit_code == 0, done.output
    assert "half a line, which was dropped" in done.stderr
    assert "were done before" in done.stderr
    assert whole("cut") == whole("whole")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(run: Run, data: Path) -> None:
    assert run(*WORDS, "-o", "one", "--batch-size", "8").exit_code == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launcher, "-m", "bcos_fx", *WORDS, "-o", "two", "--batch-size", "8"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    assert whole("two") == whole("one")
    parts = [Path("two/gridpg-2x2-b-cos.jsonl"), Path("two/gridpg-2x2-b-cos.1.jsonl")]
    lines = [len(part.read_text().splitlines()) - 1 for part in parts]
    assert abs(lines[0] - lines[1]) <= 1
    assert min(lines) > 0
    for name in ("results.json", "scores.csv"):
        Path("two", name).unlink()
    assert run(*WORDS, "-o", "two", "--batch-size", "8").exit_code == 0  # one goes on for two: nothing is left to do
    assert whole("two") == whole("one")


def test_results_of_other_settings_are_refused_unless_forced(run: Run, data: Path) -> None:
    assert run(*WORDS).exit_code == 0
    (data / "evaluation" / "notes.jsonl").write_text("mine\n", encoding="utf-8")
    done = run(*WORDS, "--seed", "7")
    assert done.exit_code == 2
    assert "settings.seed was 42 and is 7" in done.stderr
    assert run(*WORDS, "--seed", "7", "--force").exit_code == 0
    assert (data / "evaluation" / "notes.jsonl").exists()


# ---------------------------------------------------------------- what is registered by name


def uniform(network: Any) -> Method:
    return Method("uniform", {"of": type(network).__name__}, lambda x, t: torch.ones(*t.shape, *x.shape[2:]))


def test_baselines_play_on_the_same_grids(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BASELINES, "uniform", uniform)
    words = (*WORDS, "--metric", "gridpg", "--original", "arch.py:build", "--json")
    done = run(*words, "--baselines", "uniform")
    assert done.exit_code == 0, done.output
    own, other = json.loads(done.stdout)["gridpg"]
    assert other["method"] == "uniform"
    assert other["method_settings"] == {"of": "NormalizedModel"}
    assert other["mean"] == pytest.approx(0.25, abs=1e-12)
    assert own["grids"] == other["grids"]
    wrong = run(*words, "--baselines", "unifrom")
    assert wrong.exit_code == 2
    assert "did you mean 'uniform'" in wrong.stderr
    alone = run(*WORDS, "--baselines", "uniform", "-o", "alone")
    assert alone.exit_code == 2
    assert "baselines explain the original network" in alone.stderr


def test_post_hoc_methods_by_name(run: Run, data: Path) -> None:
    words = (*WORDS, "--metric", "gridpg,deletion,insertion", "--original", "arch.py:build", "--json")
    done = run(*words, "--baselines", "gradient,grad-cam,deeplift")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    named = [row["method"] for row in found["gridpg"]]
    assert named[0] == "B-cos"
    assert len(named) == 4, found["refused"]
    deletion, insertion = found["curves"]
    assert (deletion["measure"], insertion["measure"]) == ("deletion", "insertion")
    assert set(deletion["mean"]) == set(named)
    for method in named:  # nothing is deleted yet, and all is inserted: the same images
        assert deletion["mean"][method][0] == pytest.approx(insertion["mean"][method][-1], abs=1e-6)
        assert len(deletion["mean"][method]) == 21


def test_a_method_that_is_not_right_for_the_network_is_left_out(
    run: Run, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unwilling(network: Any) -> Method:
        def refuse(images: Tensor, targets: Tensor) -> Tensor:
            raise UsageError("there is no rule for relu6", where="act1")

        return Method("Guided Backprop", {}, refuse)

    monkeypatch.setitem(registry.BASELINES, "guided-backprop", unwilling)
    words = (*WORDS, "--metric", "gridpg", "--original", "arch.py:build")
    done = run(*words, "--baselines", "guided-backprop")
    assert done.exit_code == 0, done.output
    assert "Guided Backprop is left out: there is no rule for relu6" in done.stderr
    assert [row["method"] for row in json.loads(Path("evaluation/results.json").read_text())["gridpg"]] == ["B-cos"]
    assert "no rule for relu6" in Path("evaluation/evaluation.html").read_text()


def test_further_measures_have_curves(run: Run, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []

    def faded(method: Method, network: nn.Module, image: Tensor, label: int) -> list[float]:
        """The output for an image that is made darker."""
        calls.append((method.name, type(network).__name__))
        return [float(network(image * (1 - share))[0, label].detach()) for share in (0.0, 0.5, 1.0)]

    fading = curve_measure("fading", faded, [0, 0.5, 1], ylabel="logit", settings={"to": "black"}, images=7)
    monkeypatch.setitem(registry.MEASURES, "fading", fading)
    monkeypatch.setitem(registry.BASELINES, "uniform", uniform)
    words = (*WORDS, "--metric", "fading", "--json", "--original", "arch.py:build", "--baselines", "uniform")
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert calls == [("B-cos", "BcosNetwork")] * 7 + [("uniform", "NormalizedModel")] * 7
    (curve,) = json.loads(done.stdout)["curves"]
    assert curve["settings"] == {"images_at_most": "7", "to": "black", "images": "7"}
    assert curve["mean"]["uniform"] == pytest.approx(curve["mean"]["B-cos"], abs=1e-4)  # the same function
    assert curve["mean"]["B-cos"][0] > 5 > curve["mean"]["B-cos"][2]
    assert run(*words).stdout == done.stdout
    assert len(calls) == 14  # nothing was computed again
    assert Path("evaluation/fading.png").stat().st_size > 5_000
    assert table("evaluation/results.csv")[0]["measure"] == "fading, mean over the curve"


# ---------------------------------------------------------------- bad input


def test_unreadable_images_are_listed_and_the_rest_is_measured(run: Run, data: Path) -> None:
    write_images(data / "data.npz", 60, broken=(3, 59))
    done = run(*WORDS)
    assert done.exit_code == 1
    assert "2 images could not be read" in done.stderr
    assert "image 59" in done.stderr
    found = json.loads(Path("evaluation/results.json").read_text(encoding="utf-8"))
    assert sorted(found["unreadable"]) == ["image 3", "image 59"]
    assert found["accuracy"]["images"] == 58
    assert "2 images could not be read" in Path("evaluation/evaluation.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("every", [1, 2])
def test_images_of_half_the_networks_size_are_remarked_upon(run: Run, data: Path, every: int) -> None:
    write_images(data / "data.npz", 60, every=every)
    done = run(*WORDS, "--metric", "accuracy")
    assert done.exit_code == 0, done.stderr
    assert ("note: images are enlarged: the first has" in done.stderr) == (every == 2)
    assert ("convert it with --input-shape 3," in done.stderr) == (every == 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--metric", "gridgp"), "did you mean 'gridpg'"),
        (("--baselines", "lame"), "--baselines is 'lame'"),
        (("--protocol", "fiar"), "did you mean 'fair'"),
        (("--protocol", "published", "--seed", "1"), "--seed given, and the published protocol"),
        (("--protocol", "published", "--rescale"), "--rescale given"),
        (("--grid", "3x2"), "give a square"),
        (("--grid", "x"), "give a square"),
        (("--grid", "3x3"), "more than 9 classes"),
        (("--data", "data.npy"), "did you mean 'data.npz'"),
        (("--device", "tpu0"), "--device is 'tpu0', and this machine has cpu"),
        (("--original", "arch.py:built"), "built"),
        (("--original", "arch.py:build+missing.pth"), "missing.pth"),
        (("--classes", "missing.txt"), "cannot be read"),
        (("--batch-size", "0"), "--batch-size is 0"),
        (("--smooth", "4"), "odd"),
        (("-o", "data.npz"), "is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_message(run: Run, data: Path, words: tuple[str, ...], said: str) -> None:
    given = ["evaluate", "toy.safetensors", "--data", "data.npz", "--metric", "gridpg", *words]
    done = run(*given)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert "Traceback" not in done.output
    assert not Path("evaluation/results.json").exists()


@pytest.mark.parametrize("way", ["--windows", "--rescale"])
def test_other_ways_of_playing_are_written_as_well(run: Run, data: Path, way: str) -> None:
    done = run(*WORDS, "--metric", "gridpg", "--grids", "2", way, "--json")
    assert done.exit_code == 0, done.output
    (result,) = json.loads(done.stdout)["gridpg"]
    assert result["protocol"]["windows" if way == "--windows" else "rescaled"] is True
    assert Path("evaluation/evaluation.html").read_text(encoding="utf-8").count('class="card"') == 3
