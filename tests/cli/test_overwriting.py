"""Every command that writes files leaves those that are there, unless it is asked to replace them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from bcos_fx.cli import app
from bcos_fx.cli.demo import _WRITTEN
from tests.cli.conftest import SHAPE, TINY, Run

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

# Command -> words, with the file that is there already in the place of {}; MODEL, PHOTO and WEIGHTS exist.
WRITING = {
    "convert": ("WEIGHTS", "--arch", TINY, *SHAPE, "-o", "{}.safetensors"),
    "calibrate": ("MODEL", "--data", "PHOTO", "-o", "{}.safetensors"),
    "finetune": ("MODEL", "--data", "PHOTO", "-o", "{}.safetensors"),
    "embed": ("--text", "sky", "-o", "{}.safetensors"),
    "explain": ("MODEL", "PHOTO", "-o", "{}.html"),
    "export": ("MODEL", "-o", "{}.onnx"),
    "report": ("MODEL", "PHOTO", "-o", "{}.html"),
    "publish": ("MODEL", "{}/README.md"),
    "demo": ("--out", f"{{}}/{_WRITTEN[0]}"),
}
CONTINUING = {"evaluate"}
"""Takes up the results that its folder holds, of the same images and network alone; tests/evaluation shows it."""
READING = {"plan", "check", "serve", "inspect", "rules", "recipes"}


def test_every_command_is_known_to_write_or_not() -> None:
    assert {*WRITING, *CONTINUING, *READING} == set(COMMANDS)
    options = {name: {word for p in command.params for word in p.opts} for name, command in COMMANDS.items()}
    for name in {*WRITING, *CONTINUING}:
        assert {"-f", "--force", "--overwrite"} <= options[name], f"{name} writes, and has no --overwrite"
    for name in READING - {"plan"}:  # which takes what convert takes
        assert not options[name] & {"--overwrite", "-o", "--out"}, name


@pytest.mark.parametrize("name", WRITING)
def test_what_is_there_is_left(run: Run, artifact: Path, folder: Path, name: str) -> None:
    Image.effect_noise((9, 9), 80).convert("RGB").save(folder / "photo.png")
    there = folder / WRITING[name][-1].format("there")
    there.parent.mkdir(exist_ok=True)
    there.write_text("mine")
    given = {"MODEL": str(artifact), "PHOTO": "photo.png", "WEIGHTS": "weights.pth"}
    *words, last = WRITING[name]
    target = there if "/" not in last else there.parent
    done = run(name, *(given.get(word, word) for word in words), target)
    assert done.exit_code == 2, done.output
    assert "there already" in done.stderr, done.stderr
    assert "--overwrite" in done.stderr or "--force" in done.stderr, done.stderr
    assert there.read_text() == "mine"


@pytest.mark.parametrize("name", ["explain", "report", "publish"])
def test_what_is_there_is_replaced_when_asked(run: Run, artifact: Path, folder: Path, name: str) -> None:
    torch.manual_seed(0)
    Image.effect_noise((9, 9), 80).convert("RGB").save(folder / "photo.png")
    last = WRITING[name][-1]
    there = folder / last.format("there")
    there.parent.mkdir(exist_ok=True)
    there.write_text("mine")
    words = (artifact, "photo.png", "-o") if name != "publish" else (artifact,)
    done = run(name, *words, there if "/" not in last else there.parent, "--overwrite")
    assert done.exit_code in (0, 1), done.output
    assert there.read_text() != "mine"


def test_json_writes_no_picture(run: Run, artifact: Path, folder: Path) -> None:
    Image.effect_noise((9, 9), 80).convert("RGB").save(folder / "photo.png")
    before = sorted(path.name for path in folder.iterdir())
    for words in (("explain", artifact, "photo.png"), ("check", artifact), ("inspect", artifact)):
        done = run(*words, "--json")
        assert done.exit_code in (0, 1), done.output
    assert sorted(path.name for path in folder.iterdir()) == before
