"""Texts and classes to vectors, their file, their cache, and what is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.text import TextCache, TextEmbeddings, class_embeddings, embed_texts, imagenet_templates, read_templates
from tests.text.towers import WIDTH, Counting


def test_vectors_have_length_one_and_each_text_is_embedded_once() -> None:
    tower = Counting()
    found = embed_texts(tower, ["sky", "a bird", "sky"])
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert torch.equal(found[0], found[2])
    assert tower.embedded == ["sky", "a bird"]


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts() -> None:
    tower, forms = Counting(), ("a photo of a {}.", "the {}, a kind of {}")
    found = class_embeddings(tower, ["bird", "sky"], forms)
    assert tower.embedded == [
        "a photo of a bird.",
        "the bird, a kind of bird",
        "a photo of a sky.",
        "the sky, a kind of sky",
    ]
    slow = torch.stack([functional.normalize(tower.encode([text])[0], dim=0) for text in tower.embedded[:2]]).mean(0)
    torch.testing.assert_close(found.vectors[0], slow / slow.norm())
    assert (found.names, found.tower, found.templates) == (("bird", "sky"), "made-up", forms)


def test_the_templates_of_imagenet() -> None:
    found = imagenet_templates()
    assert len(set(found)) == 80
    assert all(form.count("{}") == 1 for form in found)
    assert {"a photo of a {}.", "itap of my {}.", "a tattoo of the {}."} <= set(found)
    assert read_templates("imagenet") == found


def test_a_file_keeps_everything(tmp_path: Path) -> None:
    found = class_embeddings(Counting(), ["bird", "ciel à la plage"], ("a {}",))
    again = TextEmbeddings.load(found.save(tmp_path / "texts.safetensors"))
    assert (again.names, again.tower, again.templates) == (found.names, found.tower, found.templates)
    assert torch.equal(again.vectors, found.vectors)
    assert again.width == WIDTH


def test_the_cache_saves_the_work_of_the_same_tower_alone(tmp_path: Path) -> None:
    cache, first, second = TextCache(tmp_path / "deep" / "texts.sqlite"), Counting(), Counting()
    before = embed_texts(first, ["sky", "bird"], cache=cache)
    after = embed_texts(second, ["bird", "sky", "sea"], cache=cache)
    assert second.embedded == ["sea"]
    assert torch.equal(before, after[[1, 0]])
    trained = Counting()
    trained.module.weight.data[0, 0] += 1
    embed_texts(trained, ["sky"], cache=cache)
    embed_texts(renamed := Counting("another"), ["sky"], cache=cache)
    assert trained.embedded == renamed.embedded == ["sky"]


def test_the_default_cache_is_in_the_user_s_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert TextCache().path == tmp_path / "bcos_fx" / "text.sqlite"


def test_a_cache_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "texts.sqlite"
    path.write_bytes(b"something else, and longer than a page" * 200)
    with pytest.raises(UsageError, match="cannot be used") as caught:
        TextCache(path).get("tower", ["sky"])
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


@pytest.mark.parametrize(
    ("names", "forms", "said"),
    [
        ([], ("{}",), "no class names"),
        ("bird", ("{}",), "no class names"),
        (["bird"], (), "no templates"),
        (["bird"], ("a photo",), "no place for a name"),
        (["bird", " "], ("{}",), "a text is empty"),
        (["word " * 11], ("{}",), r"takes 13 tokens, the tower 12"),
        (["word " * 10], ("a {}",), r"takes 13 tokens, the tower 12"),
    ],
)
def test_what_cannot_be_embedded(names: list[str], forms: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        class_embeddings(Counting(), names, forms)


def test_no_texts_and_one_alone() -> None:
    with pytest.raises(UsageError, match="no texts"):
        embed_texts(Counting(), [])
    with pytest.raises(UsageError, match="given alone"):
        embed_texts(Counting(), "sky")


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="holds no text embeddings"):
        TextEmbeddings.load(tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="no such file"):
        TextEmbeddings.load(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="cannot be read"):
        read_templates(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no templates"):
        read_templates(tmp_path / "empty.txt")


def test_names_and_vectors_that_do_not_fit() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        TextEmbeddings(("bird",), torch.ones(2, 3), "made-up")
    with pytest.raises(UsageError, match="NaN"):
        TextEmbeddings(("bird",), torch.full((1, 3), float("nan")), "made-up")
