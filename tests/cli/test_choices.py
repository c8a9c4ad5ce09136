"""Options that take one of a few values: a mistyped one is refused by the option's name, with the nearest and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
import typer.main
from PIL import Image

import bcos_fx
from bcos_fx.cli import app
from bcos_fx.cli.request import recipes
from bcos_fx.evaluation.registry import BASELINES
from bcos_fx.explanation.render.style import PANELS
from bcos_fx.text.embedding import TextEmbeddings
from tests.cli import tiny_model
from tests.cli.conftest import SHAPE, TINY, Run

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
CONVERTING = ("weights.pth", "--arch", TINY, *SHAPE)
TEXTS = ("--text", "sky", "--text-embeddings", "texts.safetensors")
# What else a command is given; what an option needs besides.
WORDS: dict[str, tuple[str, ...]] = {
    "convert": CONVERTING,
    "plan": CONVERTING,
    "finetune": ("tiny.safetensors", "--data", "photographs", "--recipe", "bcosification", "-o", "tuned.safetensors"),
    "explain": ("tiny.safetensors", "photo.png"),
    "evaluate": ("tiny.safetensors", "--data", "photographs"),
    "report": ("tiny.safetensors", "photo.png", "-o", "report.html"),
    "rules": (),
    "calibrate": ("tiny.safetensors", "--data", "photographs"),
}
BESIDE = {("explain", "--location"): TEXTS, ("evaluate", "--location"): ("--text-embeddings", "texts.safetensors")}
# Values that a library, a folder or a program's parts decide, and so the help does not list one by one.
ELSEWHERE = {
    "--recipe": recipes(""),
    "--panels": PANELS,
    "--baselines": [*BASELINES, "all"],
    "--metric": ["accuracy", "gridpg", "deletion", "insertion", "zeroshot", "linear-probe", "all"],
    "--logger": ["csv", "tensorboard", "wandb", "mlflow"],
    "--accelerator": ["auto", "cpu", "gpu", "mps"],
    "--cmap": list(matplotlib.colormaps),
    "--device": ["cpu"],
}
# Texts of any content: names, places, numbers, lists, and words with a grammar of their own.
FREE = set(
    "--arch --key --b --eps --leaf-module --output-key --mean --std --input-shape --batch-axis --license --source "
    "--text --text-tower --templates --target --against --output --font --original --grid --date --explain".split()
)


def _listed(option: Any) -> list[str]:
    """The values that an option's help lists."""
    return str(option.metavar or "").split("|") if "|" in str(option.metavar or "") else []


def _cases() -> list[tuple[str, str, list[str]]]:
    found = []
    for command, made in COMMANDS.items():
        for option in made.params:
            if option.param_type_name != "option" or "str" not in str(option.type_descriptor.annotation):
                continue
            name = max(option.opts, key=len)
            values = ELSEWHERE.get(name, []) or ([] if name in FREE else _listed(option))
            if values:
                found.append((command, name, list(values)))
            else:
                assert name in FREE, f"{command} {name} is neither free text nor lists its values"
    return found


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files for every command."""
    folder = tmp_path_factory.mktemp("choices")
    Image.effect_noise((9, 9), 80).convert("RGB").save(folder / "photo.png")
    for name in ("a", "b", "c"):
        (folder / "photographs" / name).mkdir(parents=True)
        Image.effect_noise((9, 9), 80).convert("RGB").save(folder / "photographs" / name / "photo.png")
    torch.save(tiny_model.build().state_dict(), folder / "weights.pth")
    model = bcos_fx.bcosify(tiny_model.build(), example_inputs=torch.rand(2, 3, 8, 8), recipe="equivalent")
    bcos_fx.save(model, folder / "tiny.safetensors")
    TextEmbeddings(("sky",), torch.tensor([[1.0, 0.0, 0.0]]), "none", ("{}",)).save(folder / "texts.safetensors")
    return folder


@pytest.mark.parametrize(("command", "option", "values"), _cases())
def test_a_mistyped_choice_is_refused_by_the_options_name(
    run: Run, given: Path, monkeypatch: pytest.MonkeyPatch, command: str, option: str, values: list[str]
) -> None:
    monkeypatch.chdir(given)
    before = sorted(given.rglob("*"))
    for value in values[:2]:
        typo = value[:-1] if len(value) > 3 else f"{value}_"
        done = run(command, *WORDS[command], *BESIDE.get((command, option), ()), option, typo)
        assert done.exit_code == 2, done.output
        assert f"{option} is {typo!r}" in done.stderr, done.stderr
        assert "Traceback" not in done.output
        assert len(values) > 12 or all(known in done.stderr for known in values), done.stderr
        assert f"did you mean {value!r}?" in done.stderr or len(value) < 4, done.stderr
    assert sorted(given.rglob("*")) == before
