"""Whatever is wrong with what is given: exit code 2, one message that helps, no traceback, no file."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli import tiny_model
from tests.cli.conftest import SHAPE, TINY, Run


def refused(run: Run, folder: Path, *words: str | Path, says: str) -> str:
    """Run a command that must fail as bad input does, and return its message."""
    before = sorted(os.listdir(folder))
    result = run(*words)
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert "bug" not in result.output
    assert result.stdout == ""
    assert sorted(os.listdir(folder)) == before
    return str(result.stderr)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--scale", "cosin"), "did you mean 'cosine'?"),
        (("--input", "folder"), "did you mean 'folded'?"),
        (("--channels", "bgrr"), "did you mean 'bgr'?"),
        (("--train", "evalgraph"), "eval-graph"),
        (("--recipe", "equivalnt"), "did you mean 'equivalent'?"),
        (("--recipe", "equivalent", "--b", "2"), "fixes --b"),
        (("--b", "two"), "--b is 'two'"),
        (("--b", "0.5"), "B is 0.5"),
        (("--b", "layer4.*="), "--b is 'layer4.*='"),
        (("--b", "1", "--b", "2"), "--b was given 2 times"),
        (("--mean", "0.5,x,0.5", "--std", "1,1,1"), "--mean is '0.5,x,0.5'"),
        (("--mean", "0.5,0.5,0.5"), "without std"),
        (("--mean", "0.5,0.5,0.5", "--std", "1,1"), "std has 2"),
        (("--mean", "auto"), "keeps no record"),
        (("--mean", "auto", "--std", "1,1,1"), "leave --std out"),
        (("--pixel-max", "white"), "--pixel-max"),
        (("--input-shape", "3,8,0"), "--input-shape is '3,8,0'"),
        (("--input-shape", "5,8,8"), "5, 8, 8"),
        (("--input-shape", "3"), "try:   --input-shape gives the shape of samples: the layer"),
        (("--rules", "mine.toml"), "mine.toml"),
        (("--images", "photos"), "there is no data at photos"),
        (("--picture", "graph.gif"), ".svg"),
        (("--picture", "nowhere/graph.svg"), "there is no folder"),
        (("-o", "nowhere/out.safetensors"), "there is no folder"),
        (("-o", "weights.pth", "--force"), "the file to convert"),
        (("--aarch", "x"), "--arch"),
    ],
)
def test_wrong_option(run: Run, folder: Path, weights: Path, options: tuple[str, ...], says: str) -> None:
    shape = () if "--input-shape" in options else SHAPE
    refused(run, folder, "convert", weights, "--arch", TINY, *shape, *options, says=says)


def _state_of_another(path: Path) -> None:
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), path)


def _truncated(path: Path) -> None:
    torch.save(tiny_model.build().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-400])


def _with_nan(path: Path) -> None:
    state = tiny_model.build().state_dict()
    state["conv.weight"][0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_state_of_another, "missing from the file"),
        (_truncated, "damaged"),
        (_with_nan, "conv.weight"),
        (lambda path: torch.save(tiny_model.build(), path), "--trust-pickle"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("just words\n"), "text file"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch"), "ONNX"),
    ],
    ids=["another", "truncated", "nan", "pickled-module", "empty", "text", "directory", "onnx"],
)
def test_wrong_file(run: Run, folder: Path, make: Callable[[Path], object], says: str) -> None:
    make(folder / "model.pt")
    refused(run, folder, "convert", "model.pt", "--arch", TINY, *SHAPE, says=says)


def test_missing_file_names_the_nearest(run: Run, folder: Path, weights: Path) -> None:
    refused(run, folder, "convert", "weigths.pth", "--arch", TINY, says="did you mean 'weights.pth'?")


def test_torchscript_is_refused_even_if_trusted(run: Run, folder: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # TorchScript itself is deprecated
        torch.jit.trace(tiny_model.build(), torch.rand(1, 3, 8, 8)).save(str(folder / "model.pt"))
    for trust in ((), ("--trust-pickle",)):
        refused(run, folder, "convert", "model.pt", *SHAPE, *trust, says="TorchScript")


def test_weights_without_a_network(run: Run, folder: Path, weights: Path) -> None:
    refused(run, folder, "convert", weights, *SHAPE, says="give --arch")


def test_nothing_to_convert(run: Run, folder: Path) -> None:
    refused(run, folder, "convert", says="there is nothing to convert")


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("tiny", "names no architecture"),
        ("nopackage.anywhere:build", "there is no package"),
        (f"{tiny_model.__file__}:biuld", "did you mean 'build'?"),
        (f"{tiny_model.__file__}:fails", "ValueError: no data here"),
    ],
)
def test_wrong_network(run: Run, folder: Path, weights: Path, arch: str, says: str) -> None:
    refused(run, folder, "convert", weights, "--arch", arch, *SHAPE, says=says)


def test_converted_file_is_not_converted_again(run: Run, folder: Path, artifact: Path) -> None:
    refused(run, folder, "convert", artifact, "-o", "again.safetensors", says="already converted")


def test_files_are_not_overwritten_unasked(run: Run, folder: Path, artifact: Path) -> None:
    before = artifact.read_bytes()
    words = ("convert", "weights.pth", "--arch", TINY, *SHAPE, "-o", artifact.name)
    refused(run, folder, *words, says="--force")
    assert artifact.read_bytes() == before
    assert run(*words, "--force").exit_code == 0
    assert artifact.read_bytes() != before


def test_plan_refuses_what_convert_refuses_and_draws_nothing(run: Run, folder: Path, weights: Path) -> None:
    refused(run, folder, "plan", weights, "--arch", TINY, *SHAPE, "--scale", "cosin", says="did you mean 'cosine'?")
    refused(run, folder, "plan", weights, "--arch", TINY, *SHAPE, "--picture", "a.svg", says="plan writes nothing")


def test_images_that_are_none(run: Run, folder: Path, weights: Path) -> None:
    photos = folder / "photos"
    photos.mkdir()
    words = ("convert", weights, "--arch", TINY, *SHAPE, "--images", "photos")
    refused(run, folder, *words, says="there are no images")
    (photos / "a.png").write_bytes(b"no picture")
    refused(run, folder, *words, says="a.png")
