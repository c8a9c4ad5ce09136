"""What a run must have in common with the checkpoint that it resumes from, as plain data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sized
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from bcos_fx.data.datasets import DatasetSource, source_of
from bcos_fx.identity import digest_of_tensors, structure_of, values_of
from bcos_fx.training.recipe import Training


def identity(
    network: nn.Module,
    training: Training,
    *,
    original: nn.Module | None,
    data: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return names -> plain data: the network as training begins, its original, recipe, data and settings."""
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    described = None if original is None else {"structure": structure_of(original), "values": values_of(original)}
    facts = {
        "network": structure_of(network),
        "start weights": values_of(network),
        "frozen parameters": frozen,
        "original": described,
        "recipe": training.to_dict(),
        **data,
        "settings": dict(settings),
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts))
    return plain


def of_images(images: Tensor | None) -> str | None:
    """Return a digest of images that were given as a tensor."""
    return None if images is None else digest_of_tensors([("images", images)])


def name_of(function: object) -> str:
    """Return what a function is called, which is the same in every process."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def identity_of(data: object) -> dict[str, Any] | None:
    """Return what identifies images, in any form that training takes; None for no images."""
    if data is None:
        return None
    if not isinstance(data, DataLoader):
        return source_of(data).identity()
    batches = {"batches": len(data), "batch size": data.batch_size}
    if isinstance(data.dataset, Sized) and hasattr(data.dataset, "__getitem__"):
        return DatasetSource(data.dataset).identity() | batches
    return {"kind": type(data.dataset).__name__, **batches}
