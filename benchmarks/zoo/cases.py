"""Networks to be examined: each by its name, with inputs that it takes and the part of its output that is meant."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx import example
from bcos_fx.checkpoint import build_architecture
from bcos_fx.errors import UsageError
from bcos_fx.verification.samples import synthetic_images

_SAMPLES = 4
_TOKENS = 12
_FRAMES = 16
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
# What an output of several parts is taken for, the most telling first.
_OUTPUTS = ("logits", "image_embeds", "pooler_output", "last_hidden_state", "out", 0)
_FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, LookupError)


@dataclass(frozen=True)
class ModelCase:
    """A network that is to be examined.

    Attributes:
        module: in eval mode.
        inputs: what it takes, by name: a few samples that differ strongly.
        output: which part of its output is meant, or None where that is one tensor.
        options: of the conversion, such as ``input="none"`` for what is no image.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    output: int | str | None
    options: dict[str, Any]


def build(name: str, *, side: int | None = None) -> ModelCase:
    """Build the network that ``name`` names, with random weights, and inputs for it.

    Args:
        name: as :func:`bcos_fx.checkpoint.build_architecture` takes it.
        side: the least of the images, in pixels, doubled until the network takes it; None: its own.

    Raises:
        CheckpointError, MissingExtraError: there is no such network, or its package is not installed.
        UsageError: it takes none of the inputs that were tried.
    """
    module = _built(name)
    first = next(iter(inspect.signature(module.forward).parameters))
    failure: Exception | None = None
    for inputs, options in _candidates(module, first, side):
        try:
            with torch.no_grad():
                result = module(**inputs)
        except _FAILURES as error:
            failure = failure or error  # the first inputs are the likeliest
            module = _built(name)  # some keep what they read from the inputs that they failed on
            continue
        return ModelCase(module, inputs, _output(result), options)
    raise UsageError(f"the network takes none of the inputs that were tried: {failure}", where=name)


def _built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_architecture(name).eval()


def _candidates(module: nn.Module, first: str, side: int | None) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Yield inputs that the network may take, and options of a conversion that go with them."""
    config = getattr(module, "config", None)
    if getattr(module, "main_input_name", "") == "input_ids":
        # A token's number is no quantity that could be explained by: its embedding is.
        width = getattr(config, "embedding_size", None) or config.hidden_size  # type: ignore[union-attr]
        embeddings = _made_up((_TOKENS, int(width))) - 0.5
        yield {"inputs_embeds": embeddings, "attention_mask": _padded()}, {"input": "none"}
        yield {"inputs_embeds": embeddings}, {"input": "none"}
        return
    for shape in _image_shapes(module, side):
        yield {first: _made_up(shape)}, dict(_IMAGENET) if shape[0] == 3 and len(shape) == 3 else {"input": "none"}


def _image_shapes(module: nn.Module, side: int | None) -> Iterator[tuple[int, ...]]:
    own = _own_shape(module)
    while side is not None and side < max(own[1:]):
        yield (own[0], side, side)
        side *= 2
    yield own
    yield (own[0], _FRAMES // 2, own[1] // 2, own[2] // 2)
    yield (own[0], _FRAMES, *own[1:])
    yield (own[0], _FRAMES, *own[1:])[1:]


def _own_shape(module: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of the images that a network says it takes."""
    config = getattr(module, "config", None)
    recorded = getattr(module, "pretrained_cfg", None) or {}
    if "input_size" in recorded:
        channels, height, width = recorded["input_size"]
        return channels, height, width
    size = getattr(config, "image_size", None) or getattr(module, "image_size", None) or example.IMAGE_SIZES[0]
    height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(config, "num_channels", 3)), height, width


def _made_up(shape: tuple[int, ...]) -> Tensor:
    return synthetic_images(shape, _SAMPLES, seed=0).tensors[0].float()


def _padded() -> Tensor:
    """Attention masks (N, tokens): some sequences shorter than others."""
    lengths = torch.arange(_TOKENS, _TOKENS - _SAMPLES, -1)
    return (torch.arange(_TOKENS) < lengths.unsqueeze(1)).long()


def _output(result: Any) -> int | str | None:
    if isinstance(result, Tensor):
        return None
    for wanted in _OUTPUTS:
        try:
            if isinstance(example.selected(result, wanted), Tensor):
                return wanted
        except (LookupError, AttributeError, TypeError):
            continue
    raise UsageError(f"the network returns a {type(result).__name__}, and no part of it is a tensor")
