"""How the keys of known checkpoints look, for messages about those that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

LAYOUTS = {
    "plain weights of the architecture": "layer1.0.conv1.weight",
    "B-cosification, as its training saved it": "model.model.layer1.0.conv1.linear.weight",
    "B-cosification, the network alone": "model.layer1.0.conv1.linear.weight",
    "B-cos v2, a hub file": "layer1.0.conv1.linear.weight",
    "B-cos v2, a vision transformer": "0.transformer.encoder_0.attn.to_out.linear.weight",
}
"""Name of a known layout -> a key as it looks there."""


def nearest_layouts(key: str) -> Iterator[str]:
    """Yield the known layouts whose keys look most like this one, as text."""
    ranked = sorted(LAYOUTS.items(), key=lambda item: -difflib.SequenceMatcher(None, key, item[1]).ratio())
    for name, example in ranked[:2]:
        yield f"{name} ({example})"
