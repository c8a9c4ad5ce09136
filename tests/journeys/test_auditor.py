"""An engineer has to answer for one decision before an auditor, who makes the report again."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
from pathlib import Path

import pytest

from bcos_fx.artifact import example_path
from tests.journeys.conftest import Run

pytestmark = pytest.mark.vision
REPORT = ("report", "network.safetensors", "jeep.jpg", "--date", "2026-11-30")


@pytest.fixture
def evidence(tmp_path: Path, photograph: Path) -> None:
    """The network, the photograph, a copy of the network with one bit changed, and a file that is not a photograph."""
    shutil.copy(example_path(), tmp_path / "network.safetensors")
    shutil.copy(photograph, tmp_path / "jeep.jpg")
    content = bytearray(example_path().read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "altered.safetensors").write_bytes(content)
    (tmp_path / "notes.jpg").write_text("not a photograph")


@pytest.mark.usefixtures("evidence")
def test_one_decision_is_reported_and_checked(run: Run, tmp_path: Path) -> None:
    seen = run("inspect", "network.safetensors")
    assert seen.code == 0
    for fact in ("Apache-2.0", "10: tench, English springer", "matched", "91.06%"):
        assert fact in seen.out

    certified = run("check", "network.safetensors")
    assert certified.code == 0
    assert "whole; its contents fit their checksum" in certified.out
    assert "dynamic linear: output = W(x)·inputs + constants" in certified.out
    assert "contributions complete" in certified.out

    written = run(*REPORT, "-o", "decision.html")
    assert written.code == 0, written.error
    page = (tmp_path / "decision.html").read_text(encoding="utf-8")
    for name in ("network.safetensors", "jeep.jpg"):
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() in page
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)
    text = " ".join(html.unescape(re.sub("<[^>]*>", " ", page)).split())
    assert "garbage truck" in text
    assert "It does not show that the answer is right" in text
    assert "2026-11-30" in text

    again = run(*REPORT, "-o", "again.html", "--json")
    assert again.code == 0
    assert json.loads(again.out)["prediction"] == "garbage truck"
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "decision.html").read_bytes()


@pytest.mark.usefixtures("evidence")
def test_what_cannot_be_reported_is_refused_in_a_sentence(run: Run, tmp_path: Path) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    altered = run("check", "altered.safetensors")
    assert altered.code == 2
    assert "the file was damaged or altered: its contents do not fit its checksum" in altered.error
    for words, sentence in (
        (("altered.safetensors", "jeep.jpg", "-o", "x.html"), "the file was damaged or altered"),
        (("network.safetensors", "notes.jpg", "-o", "x.html"), "no image of a known kind"),
        (("network.safetensors", "jeep.jpg", "-o", "x.docx"), ".html"),
        (("network.safetensors", "jeep.jpg", "-o", "x.html", "--against", "garbage"), "'garbage truck'"),
        (("network.safetensors", "jeep.jpg", "-o", "jeep.jpg"), "a report cannot be written as .jpg"),
    ):
        refused = run("report", *words)
        assert (refused.code, refused.out) == (2, ""), words
        assert sentence in refused.error
    assert {path.name for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("evidence")
def test_why_this_and_not_that(run: Run) -> None:
    why = run(
        "explain", "network.safetensors", "jeep.jpg", "--target", "garbage truck", "--against", "church", "-o", "w.png"
    )
    assert why.code == 0, why.error
    assert "garbage truck - church" in why.out
    ((output, pixels, constants, residual),) = why.sums()
    assert constants == 0, "the constant is the same for every class"
    assert output == pytest.approx(pixels, rel=1e-3)
    assert abs(residual) < 1e-4
