"""Whatever is given in a network's place, each command names what it is and what to do, as the command line does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.cli import tiny_model
from tests.cli.conftest import Run
from tests.cli.test_choices import COMMANDS

# Commands that read a converted network -> words beside it.
READING = {
    "explain": ("photo.png",),
    "report": ("photo.png", "-o", "report.html"),
    "serve": ("--no-browser", "--port", "0"),
    "export": ("-o", "network.onnx"),
    "evaluate": ("--data", "photographs"),
    "calibrate": ("--data", "photographs"),
    "finetune": ("--data", "photographs", "-o", "tuned.safetensors"),
    "publish": ("folder",),
    "check": (),
}
OTHERS = {"convert", "plan", "embed", "inspect", "rules", "recipes", "demo"}
"""They read no converted network, or any file."""


def _image(form: str) -> Callable[[Path], None]:
    return lambda path: Image.effect_noise((9, 9), 80).convert("RGB").save(path, format=form)


def _damaged(path: Path) -> None:
    save_file(tiny_model.build().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-40])


GIVEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    **{form: (_image(form), "an image", "the network first") for form in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")},
    "text": (lambda path: path.write_text("words\n"), "a text file", "bcos-fx convert wrote"),
    "empty": (lambda path: path.write_bytes(b""), "an empty file", "again"),
    "ONNX": (lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch"), "ONNX", "bcos-fx convert"),
    "PDF": (lambda path: path.write_bytes(b"%PDF-1.7\n"), "a PDF document", "bcos-fx convert wrote"),
    "state dict": (lambda path: torch.save(tiny_model.build().state_dict(), path), "a state dict", "--arch"),
    "tensors": (lambda path: save_file(tiny_model.build().state_dict(), path), "safetensors", "--arch"),
    "module": (lambda path: torch.save(tiny_model.build(), path), "a pickled object", "--arch"),
    "cut off": (_damaged, "cut off", "again"),
    "folder": (lambda path: path.mkdir(), "a directory", "name a file"),
    "nothing": (lambda path: None, "no such file", "did you mean"),
}


def test_every_command_is_known_to_read_a_network_or_not() -> None:
    assert set(READING) | OTHERS == set(COMMANDS)


@pytest.mark.parametrize("command", READING)
def test_what_is_no_network(run: Run, folder: Path, command: str) -> None:
    _image("PNG")(folder / "photo.png")
    for name, (make, is_called, to_do) in GIVEN.items():
        place = folder / f"given-{name.replace(' ', '-')}"
        make(place)
        before = sorted(folder.rglob("*"))
        done = run(command, place.name, *READING[command])
        assert done.exit_code == 2, (name, done.output)
        assert is_called in done.stderr, (name, done.stderr)
        assert to_do in done.stderr, (name, done.stderr)
        assert "bcosify" not in done.stderr
        assert "Traceback" not in done.output
        assert sorted(folder.rglob("*")) == before, name
