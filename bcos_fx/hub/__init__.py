"""Networks on the Hugging Face hub: one file that runs no code, beside a card that states what was proved of it."""

from __future__ import annotations

from bcos_fx.hub.card import card
from bcos_fx.hub.repository import from_pretrained, push_to_hub, save_pretrained, weights_of

__all__ = ["card", "from_pretrained", "push_to_hub", "save_pretrained", "weights_of"]
