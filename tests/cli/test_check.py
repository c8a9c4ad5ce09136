"""check and inspect."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

import bcos_fx
from tests.cli import tiny_model
from tests.cli.conftest import SHAPE, TINY, Run


def test_artifact_alone_restates_its_proof(run: Run, artifact: Path) -> None:
    done = run("check", artifact)
    assert done.exit_code == 0, done.output
    assert "equal: worst relative error" in done.stdout
    said = json.loads(run("check", artifact, "--json").stdout)
    assert (said["verdict"], said["intact"]) == ("equal", True)


def test_unverified_artifact_does_not_pass(run: Run, weights: Path) -> None:
    assert run("convert", weights, "--arch", TINY, *SHAPE, "--no-verify", "-o", "u.safetensors").exit_code == 0
    done = run("check", "u.safetensors")
    assert done.exit_code == 1
    assert "not verified" in done.stdout
    assert "compare it with its original: bcos-fx check ORIGINAL u.safetensors" in done.stdout


def test_a_proof_of_other_weights_does_not_decide(run: Run, weights: Path) -> None:
    assert run("convert", weights, "--arch", TINY, *SHAPE, "--no-verify", "-o", "u.safetensors").exit_code == 0
    network = bcos_fx.load("u.safetensors")
    figures = dataclasses.replace(network.report.figures, trained=1)
    trained = network.with_report(dataclasses.replace(network.report, figures=figures))
    bcos_fx.save(trained, "trained.safetensors")
    done = run("check", "trained.safetensors")
    assert done.exit_code == 0, done.stdout
    assert "not verified" in done.stdout
    assert "Its weights were fine-tuned since" in done.stdout


def test_original_and_converted_are_equal(run: Run, artifact: Path) -> None:
    done = run("check", "weights.pth", artifact, "--arch", TINY)
    assert done.exit_code == 0, done.output
    assert "input gradient" in done.stdout
    assert json.loads(run("check", "weights.pth", artifact, "--arch", TINY, "--json").stdout)["verdict"] == "equal"


def test_an_original_alone_is_measured_where_its_shape_is_given(run: Run, weights: Path) -> None:
    measured = json.loads(run("check", weights, "--arch", TINY, *SHAPE, "--json").stdout)["certificate"]
    assert measured["completeness"]["verdict"] == "complete"
    done = run("check", weights, "--arch", TINY, "--input-shape", "8,8,8")
    assert done.exit_code == 2
    assert "8 channels" in done.output


def test_normalisation_of_the_artifact_is_known(run: Run, weights: Path) -> None:
    statistics = ("--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4")
    words = ("convert", weights, "--arch", TINY, *SHAPE, "--recipe", "equivalent", *statistics, "-o", "n.safetensors")
    assert run(*words).exit_code == 0
    assert run("check", weights, "n.safetensors", "--arch", TINY).exit_code == 0
    assert run("check", "n.safetensors", "n.safetensors").exit_code == 0


def test_other_weights_are_different(run: Run, folder: Path, artifact: Path) -> None:
    other = tiny_model.build()
    with torch.no_grad():
        other.get_parameter("fc.weight")[0, 0] += 1e-3
    torch.save(other.state_dict(), folder / "other.pth")
    done = run("check", "other.pth", artifact, "--arch", TINY)
    assert done.exit_code == 1
    assert "different" in done.stdout


def test_changed_function_is_different_and_said_to_be_meant(run: Run, weights: Path) -> None:
    assert run("convert", weights, "--arch", TINY, *SHAPE, "-o", "c.safetensors").exit_code == 0
    done = run("check", weights, "c.safetensors", "--arch", TINY)
    assert done.exit_code == 1
    assert "rules that change the function" in done.stdout


def test_checkpoint_alone_cannot_be_checked(run: Run, weights: Path) -> None:
    done = run("check", weights)
    assert done.exit_code == 2
    assert "not a converted network" in done.stderr


def test_altered_artifact_is_refused(run: Run, artifact: Path) -> None:
    data = bytearray(artifact.read_bytes())
    data[-1] ^= 1
    artifact.write_bytes(data)
    assert run("check", artifact).exit_code == 2
    shown = run("inspect", artifact)
    assert shown.exit_code == 2
    assert "ALTERED" in shown.stdout


def test_inspect_artifact(run: Run, artifact: Path) -> None:
    done = run("inspect", artifact)
    assert done.exit_code == 0, done.output
    for shown in ("equivalent", "100.0%", "bcos_conv2d", "whole", "equal, worst relative error"):
        assert shown in done.stdout
    (said,) = json.loads(run("inspect", artifact, "--json").stdout)
    assert said["bcos_fx"]["ops"]["bcos_conv2d"] == 3
    assert said["bcos_fx"]["intact"] is True
    assert said["bcos_fx"]["verification"]["ok"] is True


def test_inspect_several_files(run: Run, folder: Path, artifact: Path) -> None:
    torch.save(tiny_model.build(), folder / "module.pt")
    done = run("inspect", "weights.pth", "module.pt", artifact)
    assert done.exit_code == 0, done.output
    assert "conv.weight" in done.stdout
    assert "pickled" in done.stdout
    assert len(json.loads(run("inspect", "weights.pth", artifact, "--json").stdout)) == 2


def test_inspect_finds_damage_and_nan(run: Run, folder: Path, weights: Path) -> None:
    (folder / "empty.pt").write_bytes(b"")
    assert run("inspect", "empty.pt").exit_code == 2
    state = torch.load(weights)
    state["conv.bias"][0] = float("inf")
    torch.save(state, folder / "inf.pth")
    assert run("inspect", "inf.pth").exit_code == 2
    assert run("inspect", "weights.pth").exit_code == 0
    assert run("inspect", "wieghts.pth").exit_code == 2
