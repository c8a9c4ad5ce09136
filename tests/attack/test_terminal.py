"""Names that a terminal would obey: no command and no error prints them as they are."""

from __future__ import annotations

import ast
import io
import json
import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text

from bcos_fx.cli import app
from bcos_fx.data import decoding
from bcos_fx.errors import UsageError
from bcos_fx.escaping import shown
from bcos_fx.terminal import EscapingConsole
from bcos_fx.text.embedding import TextEmbeddings
from tests.attack import hostile_model
from tests.attack.hostile_model import HOSTILE
from tests.cli.conftest import SHAPE, TINY

_JOINERS = "\u200c\u200d"
ARCH = f"{hostile_model.__file__}:build"


def obeyed(text: str) -> set[str]:
    """The characters of a text that a terminal would obey or hide."""
    kinds = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return {c for c in text if unicodedata.category(c) in kinds and c not in "\n\t" + _JOINERS}


def test_every_character_that_is_obeyed_is_escaped_and_no_other_changed() -> None:
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if obeyed(character):
            assert shown(character).isascii()
            assert shown(character).startswith("\\")
        elif unicodedata.category(character) != "Cn":  # characters to come may be like their neighbours
            assert shown(character) == character
    assert obeyed(HOSTILE)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_characters_gets_escapes(encoding: str) -> None:
    shown(f"µ 界 \udcff {HOSTILE}", encoding).encode(encoding)


def test_an_error_is_escaped_and_its_place_is_one_line() -> None:
    error = UsageError(HOSTILE, where=f"{HOSTILE}\nerror: false", hint=HOSTILE)
    assert not obeyed(str(error))
    assert len(str(error).splitlines()) == 3
    assert error.what == HOSTILE  # what programs read stays as it was
    assert len(str(UsageError("a" * 20_000_000))) < 5000


@pytest.mark.parametrize("terminal", [True, False])
def test_the_console_escapes_everything_that_it_prints(terminal: bool) -> None:
    stream = io.StringIO()
    console = EscapingConsole(file=stream, force_terminal=terminal, color_system=None, width=300)
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE, Text(HOSTILE, style="bold"))
    for printed in (HOSTILE, Text(HOSTILE), table, [HOSTILE], {HOSTILE: HOSTILE}):
        console.print(printed)
    assert not obeyed(stream.getvalue()) - ({"\x1b"} if terminal else set())
    assert "]0;owned" in stream.getvalue()
    assert "\x1b]0" not in stream.getvalue()
    assert "\x1b[2J" not in stream.getvalue()
    assert stream.getvalue().count("[bold red]") >= 6, "names are not markup"


def test_nothing_else_prints(root: Path) -> None:
    """What writes to the terminal is `echo`, and a console that escapes."""
    allowed = {"cli/console.py", "terminal.py", "cli/interruption.py"}
    found = set()
    for path in (root / "bcos_fx").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("typer.echo", "typer.secho", "click.echo", "print", "Console", "rich.print", "pprint") or (
                called.startswith(("sys.stdout.", "sys.stderr.")) and called.endswith("write")
            ):
                found.add(str(path.relative_to(root / "bcos_fx")))
    assert found <= allowed
    assert "cli/console.py" in found


# ---------------------------------------------------------------- every command


class Files:
    """Files with hostile names and contents, in a folder."""

    def __init__(self, folder: Path, artifact: Path) -> None:
        self.folder, self.artifact = folder, artifact
        self.missing = folder / f"missing{HOSTILE}.pt"
        self.model = folder / f"model{HOSTILE}.safetensors"
        self.model.write_bytes(artifact.read_bytes())
        self.weights = folder / f"weights{HOSTILE}.pt"
        torch.save({f"layer{HOSTILE}.weight": torch.rand(2, 2), f"note{HOSTILE}": f"n{HOSTILE}"}, self.weights)
        self.nested = folder / "nested.pt"
        torch.save(
            {f"a{HOSTILE}": {"x.weight": torch.rand(2)}, f"b{HOSTILE}": {"x.weight": torch.rand(2)}}, self.nested
        )
        self.pickle = folder / "pickled.pt"
        self.pickle.write_bytes(b"\x80\x04\x8c\x05os" + HOSTILE.encode()[:3] + b"\x8c\x01a\x93.")
        self.photos = folder / f"photos{HOSTILE}"
        self.photos.mkdir()
        for name in (f"a{HOSTILE}.png", "b\udcff.png"):
            pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(os.fsencode(self.photos / name), "PNG")
        (self.photos / f"broken{HOSTILE}.png").write_bytes(b"none")
        self.classes = folder / f"classes{HOSTILE}.json"
        self.classes.write_text(json.dumps([f"cat{HOSTILE}", "dog\ud800", "bird"]))
        self.data = folder / "data"
        for number, name in enumerate((f"cat{HOSTILE}", "dog", "bird")):
            (self.data / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (number * 90, 50, 50)).save(self.data / name / f"x{HOSTILE}.png")
        (self.data / "dog" / f"broken{HOSTILE}.png").write_bytes(b"none")
        self.rules = folder / f"rules{HOSTILE}.toml"
        self.rules.write_text(f"[recipe]\nname = {json.dumps(HOSTILE)}\n{json.dumps('k' + HOSTILE)} = 1\n")
        self.texts = folder / "texts.safetensors"
        TextEmbeddings((f"a{HOSTILE}", "b"), torch.eye(2, 3), f"tower{HOSTILE}").save(self.texts)

    def commands(self) -> Iterator[tuple[str | Path, ...]]:
        folder = self.folder
        yield "convert", self.missing, "--arch", ARCH
        yield "convert", self.weights, "--arch", TINY, *SHAPE
        yield "convert", self.nested, "--arch", TINY, *SHAPE
        yield "convert", self.weights, "--arch", f"torchvision:{HOSTILE}"
        yield "convert", self.weights, "--arch", TINY, "--key", HOSTILE
        yield "convert", "--arch", ARCH, *SHAPE, "--rules", self.rules
        yield "convert", "--arch", ARCH, *SHAPE, "--recipe", HOSTILE
        yield "convert", "--arch", ARCH, *SHAPE, "-o", folder / f"out{HOSTILE}.safetensors", "--nodes"
        yield "plan", "--arch", ARCH, *SHAPE
        yield "plan", self.missing, "--arch", ARCH
        yield "check", self.model
        yield "check", self.missing
        yield "check", self.weights
        yield "check", self.model, self.missing
        yield "calibrate", self.model, "--data", self.photos, "-o", folder / f"calibrated{HOSTILE}.safetensors"
        yield "calibrate", self.model, "--data", self.missing
        yield "finetune", self.model, "--data", self.missing, "-o", folder / "o.safetensors"
        yield "finetune", self.missing, "--data", self.data, "-o", folder / "o.safetensors"
        yield "embed", self.missing, "--text-tower", HOSTILE
        yield "embed", self.classes, "--text-tower", f"open_clip:{HOSTILE}"
        yield "explain", self.model, self.photos, "--classes", self.classes, "-o", folder / f"e{HOSTILE}.html"
        yield "explain", self.model, self.photos, "--classes", self.classes, "--target", HOSTILE
        yield "explain", self.model, self.photos, "--classes", self.classes, "-o", folder / f"e{HOSTILE}.png"
        yield "explain", self.model, self.missing
        yield "explain", self.model, self.photos, "--text", HOSTILE, "--text-embeddings", self.texts
        yield "evaluate", self.model, "--data", self.data, "--classes", self.classes, "--out", folder / f"r{HOSTILE}"
        yield "evaluate", self.model, "--data", self.data, "--out", folder / "r", "--metric", "accuracy"
        yield "evaluate", self.missing, "--data", self.data
        photo = self.photos / f"a{HOSTILE}.png"
        yield "report", self.model, photo, "--classes", self.classes, "-o", folder / f"report{HOSTILE}.html"
        yield "report", self.model, photo, "--classes", self.classes, "--against", HOSTILE, "-o", folder / "r.html"
        yield "report", self.missing, photo, "-o", folder / "r.html"
        yield "publish", self.model, folder / f"card{HOSTILE}"
        yield "publish", self.model, folder / "card", "--measured", self.classes
        yield "serve", self.missing, "--no-browser"
        yield "publish", self.missing, folder / "card"
        yield "export", self.missing, "-o", folder / "network.onnx"
        yield "inspect", self.weights
        yield "inspect", self.nested
        yield "inspect", self.pickle
        yield "inspect", self.model
        yield "inspect", self.classes
        yield "inspect", self.missing
        yield "inspect", self.weights, "--json"
        yield "rules", HOSTILE
        yield "rules", "--rules", self.rules
        yield "recipes", HOSTILE
        yield "recipes", self.rules
        yield "demo", "--out", self.weights
        yield (HOSTILE,)
        yield "inspect", f"--{HOSTILE}"
        yield "inspect", self.weights, "--key", "a", f"-{HOSTILE}"
        yield "convert", "--side", HOSTILE


def test_no_command_prints_them(run: Any, artifact: Path, folder: Path) -> None:
    repeated, usage, commands = 0, 0, set()
    for words in Files(folder, artifact).commands():
        done = run(*words)
        said = done.stdout + done.stderr
        assert not obeyed(said), (words[0], ascii(said)[:2000])
        assert "bug" not in done.stderr, done.stderr
        # Folded at the width of a piped console, so the name can be cut by line breaks.
        repeated += "evil[boldred]" in "".join(said.split()).replace("│", "")
        commands.add(str(words[0]))
        usage += "Usage: " in said
    assert repeated >= 30
    assert usage == 4, "the last four words are wrong usage, and the others are not"
    assert commands >= {str(command.name) for command in app.registered_commands}


def test_what_is_logged_is_escaped(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Logging prints as it is: one place logs, and it escapes."""
    files = [path for path in (root / "bcos_fx").rglob("*.py") if 'getLogger("bcos_fx")' in path.read_text()]
    assert [path.name for path in files] == ["decoding.py"]
    decoding.note("a file \x1b[2Jnamed\nso")
    assert caplog.messages == [r"note: a file \x1b[2Jnamed\nso"]
    assert logging.getLogger("bcos_fx").handlers == []
