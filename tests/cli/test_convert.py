"""convert and plan: what they print, what they write, how they end."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bcos_fx.artifact import load
from bcos_fx.convert import bcosify
from bcos_fx.errors import VerificationError
from tests.cli import tiny_model
from tests.cli.conftest import SHAPE, TINY, Run

Break = Callable[[Exception | type[BaseException]], None]


def test_result_is_what_the_library_makes(run: Run, folder: Path, artifact: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(load(artifact)(x), tiny_model.build()(x), rtol=1e-5, atol=1e-6)


def test_report_ends_with_the_file_and_how_far_the_output_moved(run: Run, folder: Path, weights: Path) -> None:
    done = run("convert", weights, "--arch", TINY, *SHAPE)
    assert done.exit_code == 0, done.stderr
    written = folder / "weights.bcos.safetensors"
    assert written.is_file()
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("Wrote weights.bcos.safetensors (")
    assert re.search(r"moved the output by \d+\.\d% of its size|moved the output by .* times of its size", last)
    assert "EQUAL" in done.stdout
    assert "answers at chance until" in done.stdout
    for stage in ("reading", "tracing", "verifying", "writing", "in all"):
        assert re.search(rf"^{stage} +\d+\.\d s$", done.stderr, re.MULTILINE)


def test_options_reach_the_library(run: Run, folder: Path, weights: Path) -> None:
    options = ("--b", "branch=1.5", "--b", "2", "--scale", "cosine", "--input", "folded", "--channels", "bgr")
    statistics = ("--mean", "103.5,116.3,123.7", "--std", "57.4,57.1,58.4", "--pixel-max", "255")
    done = run("convert", weights, "--arch", TINY, *SHAPE, *options, *statistics, "--json")
    assert done.exit_code == 0, done.stderr
    chosen = json.loads(done.stdout)["report"]["options"]
    assert chosen["b"] == {"branch": 1.5, "*": 2.0}
    assert [chosen[name] for name in ("scale", "input", "channels", "pixel_max")] == ["cosine", "folded", "bgr", 255.0]
    assert (chosen["mean"], chosen["std"]) == ([103.5, 116.3, 123.7], [57.4, 57.1, 58.4])


def test_a_network_that_cannot_be_explained_is_written_and_fails(run: Run, folder: Path) -> None:
    rounded = ("--arch", f"{tiny_model.__file__}:build_rounded", *SHAPE, "--recipe", "equivalent")
    done = run("convert", *rounded, "-o", "rounded.safetensors")
    assert done.exit_code == 1
    assert "NOT EXPLAINABLE: no, because round_1" in done.stderr
    for shown in (done.stdout, run("inspect", "rounded.safetensors").stdout, run("plan", *rounded).stdout):
        assert re.search(r"^ *explainable +no, because round_1", shown, re.MULTILINE)
    (facts,) = json.loads(run("inspect", "rounded.safetensors", "--json").stdout)
    assert facts["bcos_fx"]["explainable"]["output"] is None
    assert "round" in facts["bcos_fx"]["explainable"]["reasons"][0]


@pytest.mark.parametrize(("factory", "verdict"), [("build", "yes"), ("build_softmax", "yes, the logits")])
def test_a_network_that_can_be_explained_is_called_so(factory: str, verdict: str, run: Run, folder: Path) -> None:
    arch = ("--arch", f"{tiny_model.__file__}:{factory}", *SHAPE, "--recipe", "equivalent")
    done = run("convert", *arch, "-o", "a.safetensors")
    assert done.exit_code == 0, done.stderr
    for shown in (done.stdout, run("inspect", "a.safetensors").stdout):
        assert re.search(rf"^ *explainable +{verdict}", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("equivalent", ("explaining the original as it is", "bcos-fx explain")),
        ("bcosification", ("at chance until it is trained", "convert it by the recipe equivalent")),
    ],
)
def test_the_report_begins_with_what_the_network_is_for(
    recipe: str, words: tuple[str, str], run: Run, folder: Path, weights: Path
) -> None:
    shown = run("convert", weights, "--arch", TINY, *SHAPE, "--recipe", recipe).stdout
    first = " ".join(shown.split("Conversion\n")[0].split())
    assert first.startswith("What this is made for")
    assert first.index(words[0]) < first.index(words[1])


def test_json_is_all_there_is_on_stdout(run: Run, folder: Path, weights: Path) -> None:
    done = run("convert", weights, "--arch", TINY, *SHAPE, "--recipe", "equivalent", "--json")
    said = json.loads(done.stdout)
    assert (said["verdict"], said["output"]) == ("equal", "weights.bcos.safetensors")
    assert said["bytes"] == (folder / "weights.bcos.safetensors").stat().st_size
    assert said["report"]["figures"]["verification"]["ok"] is True


def test_plan_is_the_same_report_without_figures_and_writes_nothing(run: Run, folder: Path, weights: Path) -> None:
    words = (weights, "--arch", TINY, *SHAPE, "--recipe", "equivalent", "--json")
    planned = json.loads(run("plan", *words).stdout)
    assert os.listdir(folder) == ["weights.pth"]
    report = json.loads(run("convert", *words).stdout)["report"]
    assert planned.pop("figures") != report.pop("figures")
    assert planned == report


def test_plan_lists_every_node(run: Run, folder: Path, weights: Path) -> None:
    done = run("plan", weights, "--arch", TINY, *SHAPE, "--nodes")
    assert done.exit_code == 0
    for shown in ("conv2d -> bcos_conv2d", "branch", "new -> input_encoding", "Dry run: nothing was written"):
        assert shown in done.stdout


def test_network_without_a_file_is_converted_as_it_is_built(run: Run, folder: Path) -> None:
    done = run("convert", "--arch", TINY, *SHAPE, "--recipe", "equivalent", "--picture", "graph.svg")
    assert done.exit_code == 0, done.stderr
    assert sorted(os.listdir(folder)) == ["build.bcos.safetensors", "graph.svg"]
    assert "branch" in (folder / "graph.svg").read_text()


def test_trusted_pickle_is_opened(run: Run, folder: Path) -> None:
    torch.save(tiny_model.build(), folder / "module.pt")
    done = run("convert", "module.pt", *SHAPE, "--recipe", "equivalent", "--trust-pickle")
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("any_batch", [True, False])
def test_exported_program_is_opened_only_if_trusted(run: Run, folder: Path, any_batch: bool) -> None:
    dynamic = ({0: torch.export.Dim("batch")},) if any_batch else None
    exported = torch.export.export(tiny_model.build(), (torch.rand(2, 3, 8, 8),), dynamic_shapes=dynamic)
    torch.export.save(exported, folder / "module.pt2")
    words = ("convert", "module.pt2", "--recipe", "equivalent")
    closed = run(*words)
    assert closed.exit_code == 2
    assert "--trust-pickle" in closed.stderr
    assert os.listdir(folder) == ["module.pt2"]
    opened = run(*words, "--trust-pickle")
    assert opened.exit_code == 0, opened.stderr
    assert "100.0%" in opened.stdout
    converted, x = load(folder / "module.bcos.safetensors"), torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(converted(x), tiny_model.build()(x))


def test_part_of_the_output(run: Run, folder: Path) -> None:
    arch = f"{tiny_model.__file__}:build_twofold"
    torch.save(tiny_model.build_twofold().state_dict(), folder / "two.pth")
    done = run("convert", "two.pth", "--arch", arch, *SHAPE, "--recipe", "equivalent", "--output-key", "out")
    assert done.exit_code == 0, done.stderr
    checked = run("check", "two.pth", "two.bcos.safetensors", "--arch", arch, "--output-key", "out")
    assert checked.exit_code == 0, checked.output
    assert run("check", "two.pth", "two.bcos.safetensors", "--arch", arch).exit_code == 1


def test_photographs_are_what_is_measured_on(run: Run, folder: Path, weights: Path) -> None:
    photos = folder / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png", "d.png"):
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(photos / name)
    (photos / "notes.txt").write_text("not a photograph")
    words = ("convert", weights, "--arch", TINY, *SHAPE, "--json", "-f")
    made_up = json.loads(run(*words).stdout)["report"]["figures"]
    measured = json.loads(run(*words, "--images", "photos").stdout)["report"]["figures"]
    assert measured["total_drift"]["change"] != made_up["total_drift"]["change"]
    assert measured["verification"]["ok"]


def test_not_tested_is_written_with_a_warning_and_exit_code_1(run: Run, folder: Path) -> None:
    words = ("convert", "--arch", f"{tiny_model.__file__}:build_constant", *SHAPE, "--recipe", "equivalent")
    done = run(*words)
    assert done.exit_code == 1
    assert "NOT TESTED" in done.stderr
    assert (folder / "build_constant.bcos.safetensors").is_file()
    assert run("check", "build_constant.bcos.safetensors").exit_code == 1


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Make the conversion raise."""

    def breaking(error: Exception | type[BaseException]) -> None:
        def raising(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr("bcos_fx.convert.bcosify", raising)

    return breaking


def test_failed_proof_writes_nothing_and_exits_1(run: Run, folder: Path, broken: Break) -> None:
    broken(VerificationError("the rewritten network is not the original", where="rule 'x' at node y", hint="report it"))
    done = run("convert", "--arch", TINY, *SHAPE)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "rule 'x' at node y" in done.stderr
    assert os.listdir(folder) == []


def test_interruption_leaves_nothing_and_exits_130(run: Run, folder: Path, broken: Break) -> None:
    broken(KeyboardInterrupt)
    done = run("convert", "--arch", TINY, *SHAPE)
    assert done.exit_code == 130
    assert "Traceback" not in done.output
    assert os.listdir(folder) == []


def test_bug_is_called_one_and_traced_only_when_asked(run: Run, folder: Path, broken: Break) -> None:
    broken(ZeroDivisionError("division by zero"))
    done = run("convert", "--arch", TINY, *SHAPE)
    assert done.exit_code == 2
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "this is a bug in bcos-fx" in done.stderr
    assert "Traceback" not in done.output
    assert "Traceback" in run("--debug", "convert", "--arch", TINY, *SHAPE).stderr


def test_failure_while_writing_leaves_no_file(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    done = run("convert", "--arch", TINY, *SHAPE, "--recipe", "equivalent")
    assert done.exit_code == 2
    assert "No space left" in done.stderr
    assert os.listdir(folder) == []


def test_same_arguments_give_the_same_bytes(run: Run, folder: Path, weights: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        assert run("convert", weights, "--arch", TINY, *SHAPE, "-o", name).exit_code == 0
    assert (folder / "a.safetensors").read_bytes() == (folder / "b.safetensors").read_bytes()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """What --arch timm:tiny builds: a network that records its normalisation and size."""
    made = tiny_model.build()
    made.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 12, 10)}
    monkeypatch.setattr("bcos_fx.cli.network.build_architecture", lambda arch: made)
    return made


@pytest.mark.parametrize("given", [(), ("--mean", "auto")])
def test_recorded_normalisation_and_size_are_taken(
    given: tuple[str, ...], run: Run, folder: Path, recorded: torch.nn.Module
) -> None:
    done = run("plan", "--arch", "timm:tiny", *given, "--json")
    report = json.loads(done.stdout)
    assert (report["options"]["mean"], report["options"]["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert report["inputs"]["x"].startswith("(N, 3, 12, 10)")
    assert any(
        "records its normalization, which was taken: mean and std are 0.1, 0.2, 0.3" in n for n in report["notes"]
    )


@pytest.mark.parametrize("given", [("--mean", "0,0,0", "--std", "1,1,1"), ("--input", "none"), ("--recipe", "clip")])
def test_what_is_chosen_goes_before_what_is_recorded(
    given: tuple[str, ...], run: Run, folder: Path, recorded: torch.nn.Module
) -> None:
    done = run("plan", "--arch", "timm:tiny", *given, "--json")
    if "clip" in given:  # a recipe with other statistics than the network's is a question for the user
        assert (done.exit_code, "the module records (0.1, 0.2, 0.3)" in done.stderr) == (2, True)
        return
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["options"]["mean"] != [0.1, 0.2, 0.3]
    assert any("NOT taken" in note for note in report["notes"]) == ("none" not in given)


def test_random_weights_are_reported_first(run: Run, folder: Path, weights: Path, recorded: torch.nn.Module) -> None:
    done = run("convert", "--arch", "timm:tiny", "--recipe", "equivalent", "--json")
    warning = "RANDOM WEIGHTS: timm:tiny names no weights"
    assert json.loads(done.stdout)["report"]["notes"][0].startswith(warning)
    assert done.stderr.startswith(f"warning: {warning}")
    assert warning in load("tiny.bcos.safetensors").report.to_text().replace("\n    ", " ")
    assert "RANDOM" not in run("plan", "weights.pth", "--arch", TINY, *SHAPE).output


def test_the_library_takes_a_record_only_when_asked(recorded: torch.nn.Module) -> None:
    x = torch.rand(2, 3, 8, 8)
    assert bcosify(recorded, example_inputs=x, mean="auto").report.options["mean"] == [0.1, 0.2, 0.3]
    report = bcosify(recorded, example_inputs=x).report
    assert report.options["mean"] == []
    assert any("NOT taken" in note for note in report.notes)
