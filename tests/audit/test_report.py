"""The report on one decision: what it contains, that it says the truth, and that it can be made again."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

import bcos_fx
from bcos_fx.audit import Audit, audit
from bcos_fx.audit.page import page
from bcos_fx.cli.commands import app
from bcos_fx.errors import UsageError
from bcos_fx.network import BcosNetwork, Origin, TrainingRun
from tests.small_networks import MEAN, STD, cnn, images

NAMES = ("<script>alert(1)</script>", "tench, fish", "evil\u202etxt", "dog", "cat & $x$")
RUN = TrainingRun("flowers", 12, "matched", 3, {"loss": "off-label-bce"}, "test", 0.5, 0.75)


def network(*last: nn.Module, names: tuple[str, ...] = NAMES, **options: Any) -> BcosNetwork:
    torch.manual_seed(0)
    body = cnn()
    with torch.no_grad():
        body[0].weight.mul_(20)  # so that the image counts for more than 1 % beside the constants
    module = nn.Sequential(body, *last).eval()
    given: dict[str, Any] = {"mean": MEAN, "std": STD, "recipe": "equivalent", "example_inputs": images(4)}
    return bcos_fx.bcosify(module, class_names=names, **given | options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(place / "photo.png")
    origin = Origin("torchvision:resnet18", "weights.pth", "b" * 64, "apache-2.0")
    bcos_fx.save(network().with_record(origin=origin), place / "model.safetensors")
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> Audit:
    return audit(folder / "model.safetensors", folder / "photo.png", date="2026-11-30")


def rows(found: Audit, title: str) -> tuple[tuple[str, ...], ...]:
    return next(section.rows for section in found.sections if section.title == title)


def test_probabilities_are_those_of_the_network(folder: Path, found: Audit) -> None:
    model = bcos_fx.load(folder / "model.safetensors")
    with torch.no_grad():
        shares = model(model.preprocess(folder / "photo.png"))[0].softmax(0)
    order = shares.argsort(descending=True).tolist()
    assert found.prediction == NAMES[order[0]]
    assert list(found.probabilities) == [NAMES[index] for index in order[:3]]
    assert list(found.probabilities.values()) == pytest.approx([float(shares[index]) for index in order[:3]])


def test_sums_add_up_and_the_difference_is_that_of_the_scores(found: Audit) -> None:
    table = rows(found, "Completeness")
    for _, score, own, constants, gap, _, verdict in table:
        assert float(score) == pytest.approx(float(own) + float(constants) + float(gap), abs=1e-4)
        assert verdict == "complete"
    assert float(table[-1][1]) == pytest.approx(float(table[0][1]) - float(table[1][1]), abs=1e-4)
    assert found.complete
    total = sum(float(row[1]) for row in rows(found, "Constants"))
    assert total == pytest.approx(float(table[0][3]), rel=1e-3, abs=1e-3)


def test_files_are_named_by_their_digests(folder: Path, found: Audit) -> None:
    facts = dict(rows(found, "The network")) | dict(rows(found, "Files, versions and limits"))
    for label, name in (("SHA-256", "model.safetensors"), ("SHA-256 of the image", "photo.png")):
        assert facts[label] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert facts["licence"] == "apache-2.0"
    assert f"torch {torch.__version__}" in facts["made with"]
    assert "14 x 10 pixels" in facts["image"]


def test_the_page_needs_nothing_else_and_obeys_no_name(found: Audit) -> None:
    text = page(found).decode()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\u202e" not in text
    assert not re.search(r"https?:|(?:src|href)=\"(?!data:)", text.replace("http-equiv", ""))
    for word in ("DYNAMIC LINEAR", "EQUAL", "2026-11-30", "tench, fish", "Why this and not the other"):
        assert word in text


def run(folder: Path, *words: str) -> Any:
    paths = (folder / "model.safetensors", folder / "photo.png")
    result = CliRunner().invoke(app, ["report", *map(str, paths), *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.parametrize("form", ["html", "pdf"])
def test_a_report_can_be_made_again(folder: Path, tmp_path: Path, form: str) -> None:
    if form == "pdf":
        pytest.importorskip("matplotlib")
    out = tmp_path / f"a.{form}"
    done = run(folder, "-o", str(out), "--date", "2026-11-30", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["complete"] is True
    first = out.read_bytes()
    assert first.startswith(b"%PDF" if form == "pdf" else b"<!DOCTYPE html>")
    assert b"/Type3" not in first
    assert run(folder, "-o", str(out), "--date", "2026-11-30").exit_code == 2
    assert run(folder, "-o", str(out), "--date", "2026-11-30", "-f").exit_code == 0
    assert out.read_bytes() == first
    assert run(folder, "-o", str(out), "--date", "2026-12-01", "-f").exit_code == 0
    assert out.read_bytes() != first


def test_classes_are_compared_by_name_or_index(folder: Path) -> None:
    paths = (folder / "model.safetensors", folder / "photo.png")
    made = audit(*paths, target="fish", against=["dog", 4], top=1)
    titles = [section.title for section in made.sections]
    assert "Why this and not the other: tench, fish - dog" in titles
    assert "Why this and not the other: tench, fish - cat & $x$" in titles
    assert "Why tench, fish" in titles
    for wrong in (
        {"target": "snail"},
        {"against": [9]},
        {"top": 0},
        {"confidence": "vote"},
        {"date": "another day"},
        {"date": "30.11.2026"},
        {"date": "2026-13-01"},
    ):
        with pytest.raises(UsageError):
            audit(*paths, **wrong)


def test_probabilities_follow_the_loss_of_the_training(folder: Path, tmp_path: Path) -> None:
    model = bcos_fx.load(folder / "model.safetensors").with_record(training=(RUN,))
    path = bcos_fx.save(model, tmp_path / "trained.safetensors")
    made = audit(path, folder / "photo.png")
    with torch.no_grad():
        scores = model(model.preprocess(folder / "photo.png"))[0].sort(descending=True).values
    assert list(made.probabilities.values()) == pytest.approx(scores.sigmoid()[:3].tolist())
    asked = audit(path, folder / "photo.png", confidence="softmax")
    assert list(asked.probabilities.values()) == pytest.approx(scores.softmax(0)[:3].tolist())
    proof = next(section for section in made.sections if section.title.startswith("Equivalence"))
    assert "fine-tuned afterwards" in proof.text


def test_of_a_network_that_ends_in_softmax_the_scores_are_explained(folder: Path, tmp_path: Path) -> None:
    model = network(nn.Softmax(1))
    path = bcos_fx.save(model, tmp_path / "softmax.safetensors")
    made = audit(path, folder / "photo.png")
    with torch.no_grad():
        shares = model(model.preprocess(folder / "photo.png"))[0].sort(descending=True).values
    assert list(made.probabilities.values()) == pytest.approx(shares[:3].tolist(), rel=1e-4)
    assert made.complete


def test_one_score_alone_is_a_report_too(folder: Path, tmp_path: Path) -> None:
    path = bcos_fx.save(network(nn.Linear(5, 1), names=("defect",)), tmp_path / "one.safetensors")
    made = audit(path, folder / "photo.png")
    assert made.prediction == "defect"
    assert not any(section.title.startswith("Why this") for section in made.sections)


def test_a_conversion_that_was_not_verified_is_an_alert(folder: Path, tmp_path: Path) -> None:
    path = bcos_fx.save(network(verified=False), tmp_path / "unverified.safetensors")
    alerts = [section.alert for section in audit(path, folder / "photo.png").sections]
    assert any(alert.startswith("NOT VERIFIED") for alert in alerts)


def test_what_cannot_be_reported_is_named(folder: Path, tmp_path: Path) -> None:
    assert "-o NAME.html" in run(folder, "-o", str(tmp_path / "a.docx")).stderr
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    maps = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=images(), verified=False)
    path = bcos_fx.save(maps, tmp_path / "maps.safetensors")
    with pytest.raises(UsageError):
        audit(path, folder / "photo.png")
    with pytest.raises(UsageError, match="one photograph"):
        audit(folder / "model.safetensors", folder)
