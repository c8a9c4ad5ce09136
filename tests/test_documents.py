"""Every command and example in README and docs runs as it stands there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image

from bcos_fx.cli import app
from bcos_fx.text import TextEmbeddings
from bcos_fx.training.recipe import load_training
from tests.evaluation import toy
from tests.forks import run_code

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# (\w+\.(?:py|toml))\n")
_LINK = re.compile(r"\]\((?!https?:)([^)#]+)\)")
_ONE_AFTER_ANOTHER = """
import shlex, sys
from bcos_fx.cli import main
if __name__ == "__main__":  # not in processes that a command starts
    for command in sys.argv[1:]:
        print(f"$ {command}", flush=True)
        sys.argv = shlex.split(command)
        try:
            main()
        except SystemExit as end:
            if end.code:
                sys.exit(f"exit code {end.code}: {command}")
"""
# The library of an extra that a document's Python is about.
_NEEDED = {"baselines.md": "captum", "finetuning.md": "lightning", "language_models.md": "transformers"}
# What the README's Python takes as given.
_GIVEN = """
import torch
from torch import nn
torch.manual_seed(0)
network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(8, 5)).eval()
images = torch.rand(4, 3, 32, 32)
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""


def blocks(language: str) -> list[tuple[Path, str]]:
    return [
        (path, code)
        for path in DOCUMENTS
        for found, code in _FENCE.findall(path.read_text(encoding="utf-8"))
        if found == language
    ]


def imported(code: str) -> set[str]:
    """The libraries that an example imports."""
    nodes = list(ast.walk(ast.parse(code)))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module is not None}
    return {name.partition(".")[0] for name in named}


def files_of(document: Path) -> dict[str, str]:
    """Name -> content of the files that a document shows: blocks whose first line is a comment with a file's name."""
    shown = [code for language in ("toml", "python") for path, code in blocks(language) if path == document]
    return {found[1]: code for code in shown if (found := _FILE.match(code))}


def commands() -> list[tuple[Path, str]]:
    lines = [(path, line.partition("#")[0].strip()) for path, code in blocks("sh") for line in code.splitlines()]
    return [(path, line) for path, line in lines if line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the documents speak of."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    from torchvision.models import resnet18

    torch.save(resnet18(weights=None).state_dict(), tmp_path / "checkpoint.pth")
    pixels = (torch.rand(300, 400, 3) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    for number in range(8):
        place = tmp_path / ("train", "val")[number // 4] / f"class_{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((torch.rand(70, 90, 3) * 255).byte().numpy()).save(place / f"{number}.jpg")
    for name, content in files_of(ROOT / "docs" / "rules.md").items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    toy.write_network(tmp_path / "network.safetensors")
    toy.write_images(tmp_path / "validation.npz", 200)
    (tmp_path / "original.py").write_text(toy.FACTORY, encoding="utf-8")
    toy.write_network(tmp_path / "clip.safetensors")
    embedder = toy.write_embedder(tmp_path / "embedder.safetensors")
    toy.texts_of_colours(embedder).save(tmp_path / "classes.safetensors")
    toy.write_images(tmp_path / "train.npz", 60)
    names = ("a green bird", "sky")
    TextEmbeddings(names, torch.eye(2, toy.CLASSES), "made up").save(tmp_path / "texts.safetensors")
    return tmp_path


def options(word: str) -> set[str]:
    """What a command of ours takes."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return {option for parameter in commands[word].params for option in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("line", [line for _, code in blocks("console") for line in code.splitlines()])
def test_commands_that_need_weights_from_elsewhere_are_ones(line: str) -> None:
    """They stand in blocks of their own and cannot run here; their options exist."""
    tool, word, *rest = shlex.split(line)
    assert tool == "bcos-fx"
    assert {part for part in rest if part.startswith("-")} <= options(word)


def commands_of(path: Path) -> list[str]:
    """The document's own commands, after those of the README that write a file that it speaks of."""
    own = [command for document, command in commands() if document == path and command.startswith("bcos-fx")]
    if path == README:
        return own
    named = {word for command in own for word in shlex.split(command)}
    return [
        c for d, c in commands() if d == README and shlex.split(c)[-2:-1] == ["-o"] and shlex.split(c)[-1] in named
    ] + own


@pytest.mark.vision
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", dict.fromkeys(path for path, _ in commands()), ids=lambda path: path.name)
def test_the_commands_of_a_document_run_one_after_another(path: Path, folder: Path) -> None:
    """In one folder, for some read what others wrote; and in one process, for each would import all again."""
    done = run_code(_ONE_AFTER_ANOTHER, folder, *commands_of(path), timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", [c for _, c in commands() if not c.startswith("bcos-fx")])
def test_other_commands_are_targets_of_the_makefile(command: str) -> None:
    """They make environments, and one runs these tests; here it is shown that they exist."""
    tool, *words = shlex.split(command)
    assert tool in ("make", "python"), f"nothing runs {command!r}"
    if tool == "make":
        done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    else:
        assert (ROOT / words[0]).is_file()


@pytest.mark.parametrize(
    ("path", "code"),
    [(path, code) for path, code in blocks("python") if not _FILE.match(code)],
    ids=lambda value: getattr(value, "name", "code"),
)
def test_an_example_in_python_runs(path: Path, code: str, tmp_path: Path) -> None:
    own = {Path(name).stem for name in files_of(path)}
    for library in sorted({_NEEDED.get(path.name, "torch"), *imported(code)} - own):
        pytest.importorskip(library)
    for name, content in files_of(path).items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    done = run_code(_GIVEN + code, tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "graph.png" not in code or (tmp_path / "graph.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in _LINK.findall(path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_recipe_of_one_s_own_is_one(tmp_path: Path) -> None:
    recipes = [code for path, code in blocks("toml") if path.name == "finetuning.md"]
    found = []
    for place, recipe in enumerate(recipes):
        path = tmp_path / f"own{place}.toml"
        path.write_text(recipe, encoding="utf-8")
        found.append(load_training(path))
    everything, tapering = found
    assert everything.epochs == 20
    assert len(everything.rises) == 2
    assert tapering.losses == load_training("matched").losses
    assert tapering.tapers == load_training("matched").tapers
