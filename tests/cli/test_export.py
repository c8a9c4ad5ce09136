"""``bcos-fx export``: what it writes, says and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import bcos_fx
from tests.cli.conftest import Run


def test_an_explanation_is_written_checked_and_told_of(run: Run, artifact: Path) -> None:
    done = run("export", artifact, "--explanation", "-o", "tiny.pt2", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["outputs"] == ["logits", "contributions", "constants", "weights"]
    assert found["inputs"] == {"x": "(N, 3, 8, 8) float32", "target": "(N) int64"}
    assert found["check"]["completeness"] == "complete"
    assert found["size"] == Path("tiny.pt2").stat().st_size
    x = torch.rand(1, 3, 8, 8)
    logits, contributions, _, _ = torch.export.load("tiny.pt2").module()(x, torch.tensor([2]))
    expected = bcos_fx.explain(bcos_fx.load(artifact), x, 2)
    torch.testing.assert_close(contributions, expected.contributions)
    torch.testing.assert_close(logits, expected.scores)


def test_what_cannot_be_done_is_refused_in_the_command_line_s_words(run: Run, artifact: Path) -> None:
    assert run("export", artifact).exit_code == 2
    done = run("export", artifact, "-o", "tiny.onx")
    assert (done.exit_code, done.stdout) == (2, "")
    assert ".onnx" in done.stderr
    done = run("export", artifact, "--source", "conv", "-o", "tiny.pt2")
    assert "--explanation" in done.stderr
    assert done.exit_code == 2
    Path("there.pt2").touch()
    done = run("export", artifact, "-o", "there.pt2")
    assert "--force" in done.stderr
    assert not Path("there.pt2").read_bytes()
