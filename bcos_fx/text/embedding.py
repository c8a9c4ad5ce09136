"""From texts and class names to vectors, and a file of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor
from torch.nn import functional

from bcos_fx.budgets import check_safetensors_header, parse_json
from bcos_fx.errors import ArtifactError, UsageError
from bcos_fx.files import replacing
from bcos_fx.text.cache import TextCache
from bcos_fx.text.templates import PLACE, check_templates
from bcos_fx.text.tower import TextTower

_KEY = "text_embeddings"
_BATCH = 64


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """Vectors of texts or classes, with what they are of.

    Attributes:
        names: of the K texts or classes.
        vectors: (K, D) float32, each of length 1.
        tower: name of the text tower.
        templates: what the names were put into; ``("{}",)`` for texts that were taken as they are.
    """

    names: tuple[str, ...]
    vectors: Tensor
    tower: str
    templates: tuple[str, ...] = (PLACE,)

    def __post_init__(self) -> None:
        if self.vectors.dim() != 2 or len(self.vectors) != len(self.names) or not self.names:
            raise UsageError(
                f"{len(self.names)} names and embeddings of shape {tuple(self.vectors.shape)} do not fit",
                hint="give (K, D) for K names",
            )
        if not bool(torch.isfinite(self.vectors).all()):
            raise UsageError("a text embedding holds NaN or infinity", where=self.tower)

    @property
    def width(self) -> int:
        """D, the size of a vector."""
        return int(self.vectors.shape[1])

    def save(self, path: Path) -> Path:
        """Write all to one ``.safetensors`` file, whole or not at all.

        Raises:
            ArtifactError: the place cannot be written to.
        """
        facts = {"names": self.names, "tower": self.tower, "templates": self.templates}
        contents = safetensors_bytes(
            {"vectors": self.vectors.cpu().contiguous()}, {_KEY: json.dumps(facts, sort_keys=True)}
        )
        with replacing(path, "the text embeddings", error=ArtifactError) as stream:
            stream.write(contents)
        return path

    @classmethod
    def load(cls, path: Path) -> TextEmbeddings:
        """Read what :meth:`save` wrote; nothing in the file is run.

        Raises:
            ArtifactError: there is no such file, or it holds something else.
        """
        try:
            # Before safetensors allocates what the header claims.
            check_safetensors_header(Path(path), ArtifactError)
            with safe_open(path, framework="pt") as opened:
                facts = parse_json((opened.metadata() or {})[_KEY], "the header", ArtifactError, str(path))
                vectors = opened.get_tensor("vectors")
            names, templates = (tuple(str(text) for text in facts[key]) for key in ("names", "templates"))
            return cls(names, vectors, str(facts["tower"]), templates)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                "the file holds no text embeddings" if Path(path).is_file() else "there is no such file",
                where=str(path),
                hint="they are written by TextEmbeddings.save",
            ) from error


def embed_texts(tower: TextTower, texts: Sequence[str], *, cache: TextCache | None = None) -> Tensor:
    """Embed texts.

    Args:
        tower: a text tower.
        texts: at least one; each is embedded once, however often it stands there.
        cache: where vectors are looked up and kept; None: nowhere.

    Returns:
        (N, D) float32 on the CPU, each row of length 1.

    Raises:
        UsageError: there are no texts, one is empty, or one is longer than the tower's context.
    """
    if isinstance(texts, str) or not texts:
        raise UsageError("there are no texts to embed" if not texts else "one text was given alone", hint="give a list")
    different = list(dict.fromkeys(texts))
    for text in different:
        tower.check(text)
    vectors_of = {} if cache is None else cache.get(tower.fingerprint, different)
    missing = [text for text in different if text not in vectors_of]
    for first in range(0, len(missing), _BATCH):
        batch = missing[first : first + _BATCH]
        vectors = dict(zip(batch, functional.normalize(tower.encode(batch).float().cpu(), dim=1), strict=True))
        # Batch by batch, so that an interrupted run keeps what it has embedded.
        if cache is not None:
            cache.put(tower.fingerprint, vectors)
        vectors_of |= vectors
    return torch.stack([vectors_of[text] for text in texts])


def class_embeddings(
    tower: TextTower,
    names: Sequence[str],
    templates: Sequence[str] = (PLACE,),
    *,
    cache: TextCache | None = None,
) -> TextEmbeddings:
    """Embed classes: each as the normalized mean of its embedded prompts (Radford et al., ICML 2021, section 3.1.4).

    Args:
        tower: a text tower.
        names: of the classes.
        templates: sentences with {} where the name goes.
        cache: as for :func:`embed_texts`.

    Raises:
        UsageError: there are no classes or templates, a template has no place for the name, or a prompt is too long.
    """
    if isinstance(names, str) or not names:
        raise UsageError("there are no class names", hint="name at least one class")
    forms = tuple(templates)
    check_templates(forms)
    prompts = [form.replace(PLACE, name) for name in names for form in forms]
    vectors = embed_texts(tower, prompts, cache=cache)
    means = vectors.view(len(names), len(forms), -1).mean(1)
    return TextEmbeddings(tuple(names), functional.normalize(means, dim=1), tower.name, forms)
