"""The text side of image-text models: frozen towers, prompt templates, and embeddings of texts and classes."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "TextCache": "cache",
    "TextEmbeddings": "embedding",
    "TextTower": "tower",
    "class_embeddings": "embedding",
    "embed_texts": "embedding",
    "imagenet_templates": "templates",
    "load_text_tower": "loading",
    "read_templates": "templates",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bcos_fx.text' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bcos_fx.text.{_HOMES[name]}"), name)
