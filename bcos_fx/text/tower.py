"""What a text tower is: texts in, one vector each out."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError

_SHOWN = 60


class TextTower(ABC):
    """A frozen text tower with its tokenizer.

    Args:
        name: as it is loaded by, such as ``open_clip:ViT-B-32@openai``.
        module: what holds its weights, in eval mode.
        context: the longest text in tokens, with those that mark its beginning and end.
    """

    def __init__(self, name: str, module: nn.Module, context: int) -> None:
        self.name = name
        self.module = module.requires_grad_(False).eval()
        self.context = context

    @abstractmethod
    def length(self, text: str) -> int:
        """Return how many tokens a text takes, with those that mark its beginning and end."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return a vector for each text, (N, D), of any length; texts fit the context."""

    @cached_property
    def fingerprint(self) -> str:
        """A SHA-256 of the name and all weights: what an embedding in the cache belongs to."""
        digest = hashlib.sha256(self.name.encode())
        for name, value in self.module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def check(self, text: str) -> None:
        """Check that a text is one, and fits.

        Raises:
            UsageError: it is empty, or longer than the context.
        """
        if not isinstance(text, str):
            raise UsageError(f"{text!r} is not a text", where=self.name)
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
        if not text.strip():
            raise UsageError("a text is empty", where=self.name, hint="give the text to look for")
        if (tokens := self.length(text)) > self.context:
            raise UsageError(
                f"the text {shown!r} takes {tokens} tokens, the tower {self.context}",
                where=self.name,
                hint="shorten it: what is cut off would have no say",
            )


class TokenTower(TextTower):
    """A tower made of three functions."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        context: int,
        *,
        length: Callable[[str], int],
        tokenize: Callable[[list[str]], object],
        embed: Callable[[object], Tensor],
    ) -> None:
        super().__init__(name, module, context)
        self._length, self._tokenize, self._embed = length, tokenize, embed

    def length(self, text: str) -> int:
        """Return how many tokens a text takes."""
        return self._length(text)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return a vector for each text, (N, D)."""
        with torch.no_grad():
            return self._embed(self._tokenize(list(texts)))
