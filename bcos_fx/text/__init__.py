"""The text side of image-text models: frozen towers, prompt templates, and embeddings of texts and classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bcos_fx.lazy import lazily

if TYPE_CHECKING:
    from bcos_fx.text.cache import TextCache
    from bcos_fx.text.embedding import TextEmbeddings, class_embeddings, embed_texts
    from bcos_fx.text.loading import load_text_tower
    from bcos_fx.text.templates import imagenet_templates, read_templates
    from bcos_fx.text.tower import TextTower

__all__ = [
    "TextCache",
    "TextEmbeddings",
    "TextTower",
    "class_embeddings",
    "embed_texts",
    "imagenet_templates",
    "load_text_tower",
    "read_templates",
]

__getattr__ = lazily(
    __name__,
    {
        "TextCache": "bcos_fx.text.cache",
        "TextEmbeddings": "bcos_fx.text.embedding",
        "TextTower": "bcos_fx.text.tower",
        "class_embeddings": "bcos_fx.text.embedding",
        "embed_texts": "bcos_fx.text.embedding",
        "imagenet_templates": "bcos_fx.text.templates",
        "load_text_tower": "bcos_fx.text.loading",
        "read_templates": "bcos_fx.text.templates",
    },
)
