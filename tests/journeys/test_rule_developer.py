"""A developer of rules adds a layer of their own and a rule, with the mistakes that one makes on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.journeys.conftest import Run

LAYER = """
from pathlib import Path

import torch
from torch import Tensor, nn

from bcos_fx import rules


@rules.op("flower.Squeeze")
class Squeeze(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.abs())


@rules.builder("flower-relu")
def relu(build: rules.Build) -> nn.Module:
    return nn.ReLU()


rules.load(Path(__file__).with_suffix(".toml"))


def build() -> nn.Module:
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GELU(), Squeeze(), nn.Conv2d(8, 8, 3), nn.GELU("tanh"), *head).eval()
"""
OP = """
[op.flower_squeeze]
class = "ratio"
modules = ["flower.Squeeze"]
"""
RULE = """
[[rule]]
name = "gelu-to-relu"
phase = "align"
preserves = "never"
source = "an experiment"
why = "What passes a ReLU keeps its weight."
[rule.match.gelu]
op = "gelu"
where = { approximate = "none" }
[rule.replace.relu]
build = "flower-relu"
inputs = "gelu.input"
"""


@pytest.fixture
def files(tmp_path: Path) -> None:
    """The layer, its declaration and a rule; the same with mistakes; a photograph."""
    claims = {
        "flower": OP,
        "linear": OP.replace('"ratio"', '"linear"'),  # which it is not
        "same_name": OP.replace("flower_squeeze", "squeeze"),
    }
    for name, declaration in claims.items():
        (tmp_path / f"{name}.py").write_text(LAYER)
        (tmp_path / f"{name}.toml").write_text(declaration)
    (tmp_path / "gelu.toml").write_text(RULE)
    (tmp_path / "misspelled.toml").write_text(RULE.replace("preserves", "preserve"))
    (tmp_path / "no_such_op.toml").write_text(RULE.replace('op = "gelu"', 'op = "glue"'))
    (tmp_path / "claims.toml").write_text(RULE.replace('"never"', '"always"').replace('"align"', '"canonical"'))
    Image.effect_noise((64, 64), 80).save(tmp_path / "photo.png")


def convert(run: Run, name: str, *words: str) -> tuple[int, str, str]:
    shape = "--input-shape", "3,32,32"
    done = run(
        "convert", "--arch", f"{name}.py:build", *shape, "--recipe", "equivalent", "-o", "out.safetensors", *words
    )
    return done.code, done.out, done.error


@pytest.mark.usefixtures("files")
def test_a_layer_of_one_s_own(run: Run, tmp_path: Path) -> None:
    code, _, error = convert(run, "same_name")
    assert code == 2
    assert "error: two ops are named 'squeeze'" in error
    assert "try: rename yours" in error

    code, out, error = convert(run, "linear")
    assert code == 1
    assert "explainable no, because" in out
    assert "but a sum of two inputs does not give the sum of their results" in out
    assert "the file was written, but the network is NOT EXPLAINABLE" in error
    (tmp_path / "out.safetensors").unlink()

    code, out, error = convert(run, "flower")
    assert code == 0, error
    assert "EQUAL worst relative error" in out
    assert "explainable yes" in out

    unknown = run("check", "out.safetensors")
    assert unknown.code == 2
    assert "the file holds ops that this program has not registered: 'flower_squeeze'" in unknown.error
    assert "on the command line: --import FILE.py" in unknown.error
    known = run("check", "out.safetensors", "--import", "flower.py")
    assert known.code == 0, known.error
    assert "contributions complete" in known.out


@pytest.mark.usefixtures("files")
def test_a_rule_of_one_s_own(run: Run) -> None:
    for file, sentence, hint in (
        ("misspelled.toml", "error: the key 'preserves' is missing", "'preserve' is there"),
        ("no_such_op.toml", "'glue' is not a known op", "did you mean 'gelu'?"),
        ("gelu.tml", "error: the rule file cannot be read", "did you mean 'gelu.toml'?"),
    ):
        code, out, error = convert(run, "flower", "--rules", file)
        assert (code, out) == (2, ""), file
        assert sentence in error
        assert hint in error
    forgotten = run("rules", "gelu-to-relu", "--rules", "gelu.toml")
    assert forgotten.code == 2
    assert "'flower-relu' is not a known builder" in forgotten.error
    assert "once the file that registers it is imported (--import FILE.py)" in forgotten.error

    why = run(
        *("rules", "gelu-to-relu", "--rules", "gelu.toml", "--import", "flower.py"),
        *("--explain", "flower.py:build", "--input-shape", "3,32,32"),
    )
    assert why.code == 0, why.error
    assert "has approximate 'tanh', the rule wants 'none'" in why.out

    code, out, error = convert(run, "flower", "--rules", "claims.toml")
    assert (code, out) == (1, "")
    assert "error: the rewritten network is not the original: different" in error
    assert "rule 'gelu-to-relu' (claims.toml:2) at node" in error

    code, out, error = convert(run, "flower", "--rules", "gelu.toml")
    assert code == 0, error
    assert "gelu-to-relu 1 align neither: changes it" in out
    assert "Nearly matched, and why not rule why not nodes gelu-to-relu" in out
    explained = run("explain", "out.safetensors", "photo.png", "--import", "flower.py", "-o", "photo_shown.png")
    assert explained.code == 0, explained.error
    ((output, pixels, constants, residual),) = explained.sums()
    assert output == pytest.approx(pixels + constants, abs=2e-3 * (abs(pixels) + abs(constants)))
    assert abs(residual) < 1e-5
