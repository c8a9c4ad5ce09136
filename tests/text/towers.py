"""Small text towers: made up, of open_clip and of transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from bcos_fx.text.tower import TokenTower

WIDTH, CONTEXT = 8, 12
SMALL_CLIP = {
    "embed_dim": WIDTH,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def _vector(text: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


class Counting(TokenTower):
    """A tower whose vector of a text is drawn by it; counts what it embeds. A token is a word."""

    def __init__(self, name: str = "made-up") -> None:
        self.embedded: list[str] = []
        super().__init__(
            name,
            nn.Linear(2, 2),
            CONTEXT,
            length=lambda text: len(text.split()) + 2,
            tokenize=lambda texts: texts,
            embed=self._embed_texts,
        )
        nn.init.constant_(self.module.weight, 1.0)
        nn.init.constant_(self.module.bias, 0.0)

    def _embed_texts(self, texts: object) -> Tensor:
        assert isinstance(texts, list)
        self.embedded += texts
        return torch.stack([_vector(text) for text in texts])


def register_small_clip(folder: Path) -> str:
    """Tell open_clip of a small model, and return its name."""
    import open_clip

    path = folder / "bcos-fx-small.json"
    path.write_text(json.dumps(SMALL_CLIP), encoding="utf-8")
    open_clip.add_model_config(path)
    return path.stem


def write_transformers_clip(folder: Path) -> None:
    """Write a small CLIP text model with a tokenizer of a few words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, PreTrainedTokenizerFast

    words = ["<start>", "<end>", "<unk>", "a", "green", "bird", "sky", "photo", "of"]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<end>", eos_token="<end>", unk_token="<unk>"
    ).save_pretrained(folder)
    settings = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        projection_dim=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    )
    CLIPTextModelWithProjection(settings).save_pretrained(folder)
