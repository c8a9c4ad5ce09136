"""The options about texts of the command line, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

TOWERS = "open_clip:NAME@TAG, open_clip:NAME+FILE, transformers:CLASS@FOLDER or minilm"
TEMPLATES = "a file with one a line and {} where the name goes, or imagenet, the 80 templates of CLIP"


@dataclass(frozen=True)
class TextOptions:
    """Texts or class names, and what embeds them."""

    names: tuple[str, ...] = ()
    tower: str | None = None
    stored: Path | None = None
    templates: str | None = None
