"""Texts on the command line: embedding them, and explaining by them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bcos_fx.text import TextEmbeddings
from tests.cli.conftest import Run


@pytest.fixture
def photograph(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


@pytest.fixture
def texts(folder: Path) -> Path:
    vectors = torch.nn.functional.normalize(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    return TextEmbeddings(("a bird", "sky", "sea"), vectors, "made-up").save(folder / "texts.safetensors")


def test_texts_are_explained(run: Run, artifact: Path, photograph: Path, texts: Path) -> None:
    words = ("explain", artifact, photograph, "--text-embeddings", texts, "--json")
    done = run(*words, "--text", "a bird", "--text", "sea", "--power", "2")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)["images"]
    assert row["names"] == ["a bird", "sea"]
    assert all(-1 <= score <= 1 for score in row["output"])
    assert max(map(abs, row["residual"])) < 1e-6
    assert not Path("explanation.png").exists()
    one = run(*words, "--text", "sky")
    assert json.loads(one.stdout)["images"][0]["names"] == ["sky"]
    everything = run(*words)
    assert json.loads(everything.stdout)["images"][0]["names"] == ["a bird", "sky", "sea"]


def test_texts_that_cannot_be_explained(run: Run, artifact: Path, photograph: Path, texts: Path) -> None:
    words = ("explain", artifact, photograph)
    stored = ("--text-embeddings", texts)
    for more, said in (
        (("--text", "sky"), "need a text tower"),
        (("--text", "sky", "--text-tower", "minilmm"), "no text tower"),
        ((*stored, "--text", "skyy"), "did you mean 'sky'"),
        ((*stored, "--text-tower", "minilm"), "already"),
        ((*stored, "--templates", "imagenet"), "already"),
        ((*stored, "--target", "1"), "classes and texts"),
        ((*stored, "--power", "0"), "power is 0"),
        ((*stored, "--location", "top"), "location is"),
    ):
        done = run(*words, *more)
        assert done.exit_code == 2, done.output
        assert said in done.stderr, said


def test_embeddings_of_another_size(run: Run, artifact: Path, photograph: Path, folder: Path) -> None:
    TextEmbeddings(("sky",), torch.ones(1, 7), "made-up").save(folder / "wide.safetensors")
    done = run("explain", artifact, photograph, "--text-embeddings", "wide.safetensors")
    assert done.exit_code == 2
    assert "have 7 numbers" in done.stderr


def test_embed(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tests.text.towers import WIDTH, write_transformers_clip

    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    (folder / "tower").mkdir()
    write_transformers_clip(folder / "tower")
    (folder / "classes.txt").write_text("bird\nsky\n", encoding="utf-8")
    tower = ("--text-tower", "transformers:CLIPTextModelWithProjection@tower")
    (folder / "forms.txt").write_text("a photo of a {}\n", encoding="utf-8")
    done = run("embed", "classes.txt", *tower, "--templates", "forms.txt", "-o", "classes.safetensors")
    assert done.exit_code == 0, done.output
    assert f"2 embeddings of {WIDTH} numbers" in done.stdout
    found = TextEmbeddings.load(folder / "classes.safetensors")
    assert (found.names, found.templates) == (("bird", "sky"), ("a photo of a {}",))
    assert (folder / "cache" / "bcos_fx" / "text.sqlite").exists()
    for words, said in (
        ((*tower,), "nothing to embed"),
        ((), "name a file of class names"),
        (("classes.txt", "--text", "sky", *tower), "a file of class names and --text"),
        (("classes.txt",), "need a text tower"),
        (("--text", "bird " * 20, *tower), "tokens"),
    ):
        done = run("embed", *words)
        assert done.exit_code == 2
        assert said in done.stderr
