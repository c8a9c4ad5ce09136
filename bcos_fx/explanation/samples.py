"""Which samples are explained at once, and where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bcos_fx.errors import UsageError, check_count
from bcos_fx.escaping import amount
from bcos_fx.explanation.foreign import agree
from bcos_fx.explanation.view import ExplanationView

# The rest is for what the caller holds, and for what an operation needs while it runs.
_SHARE_OF_MEMORY = 0.4
_FIRST_TWO = (slice(2), slice(1), slice(1, 2))  # together, and each of them


@contextmanager
def naming_samples() -> Iterator[None]:
    """Raise an error that names ``batch_axis`` for shapes that fail within: the samples may lie elsewhere.

    Raises:
        UsageError: in place of PyTorch's own error.
    """
    try:
        yield
    # It is a RuntimeError too, and the samples are where they should be.
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        raise UsageError(
            f"the network does not take its input sample by sample: {str(error).partition(chr(10))[0]}",
            hint="the first dimension holds the samples; batch_axis= names another, or None for none",
        ) from error


def has_samples(value: object, images: Tensor) -> bool:
    """Return whether a value holds one entry for each of the images."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(images)


def check_rows(view: ExplanationView, value: Tensor, samples: int) -> None:
    """Check that what is explained holds its samples in its first dimension.

    Raises:
        UsageError: it does not, as after ``squeeze()``, which takes the dimension of one sample away.
    """
    if value.shape[:1] != (samples,):
        raise UsageError(
            f"for {amount(samples, 'sample')} the explained value has shape {tuple(value.shape)}: its first dimension "
            "does not hold the samples",
            where=view.end.meta.get("source"),
            hint="write squeeze(dim) for squeeze(), or explain two samples at once; "
            "batch_axis=None takes the input as one sample as a whole",
        )


def of_samples(target: Any, place: slice, samples: int) -> Any:
    """Return the part of a target that belongs to some samples."""
    rows = isinstance(target, list) or (isinstance(target, Tensor) and target.dim() > 0)
    return target[place] if rows and len(target) == samples else target


def check_apart(view: ExplanationView, inputs: list[Tensor]) -> None:
    """Check that what the network returns for one sample does not depend on the others of its batch.

    Args:
        view: of the network.
        inputs: as the view takes them, (N, ...).

    Raises:
        UsageError: it does; names the line where one value is made of all samples.
    """
    if len(inputs[0]) == 1:
        return
    parts = [[x[place] if has_samples(x, inputs[0]) else x for x in inputs] for place in _FIRST_TWO]
    with naming_samples():
        together, *alone = view.value_together(parts[0]), *map(view.own_value, parts[1:])
    if not agree(torch.cat(alone), together):
        raise UsageError(
            "what the network returns for one sample depends on the others of its batch",
            where=view.where_mixed(),
            hint="batch_axis=None explains the batch as a whole, with target=(sample, class); "
            "or give one sample at a time, images[:1]",
        )


def chunks(view: ExplanationView, images: Tensor, batch_size: int | None) -> list[slice]:
    """Return which samples are explained at once: as many as fit into memory, one where they cannot be told apart.

    Raises:
        UsageError: ``batch_size`` is not a number of samples.
    """
    samples = len(images)
    if batch_size is not None:
        check_count("batch_size", batch_size, hint="give an integer of at least 1, or leave it out")
    # Where samples depend on each other, W(x) of a batch would mix them; alone each is explained rightly.
    size = samples if batch_size is None else batch_size
    if samples > 1 and not view.separable:
        size = 1
    elif batch_size is None and samples > 1:
        size = max(1, min(samples, int(_SHARE_OF_MEMORY * _free_memory(images) / _bytes_per_sample(view, images))))
    return [slice(first, min(first + size, samples)) for first in range(0, samples, size)]


def _bytes_per_sample(view: ExplanationView, images: Tensor) -> float:
    """Estimate the most that a backward pass keeps per sample: the values of all nodes, as in the example run."""
    shapes = [node.meta.get("shape") for node in view.graph_module.graph.nodes]
    example = view.inputs[0].meta.get("shape") or images.shape
    # Sizes grow with the area of the image: those of the example run are scaled to this one.
    numbers = sum(torch.Size(shape).numel() for shape in shapes if shape)
    return max(1.0, numbers * images.element_size() / torch.Size(example).numel() * images[0].numel())


def _free_memory(images: Tensor) -> float:
    if images.is_cuda:
        return float(torch.cuda.mem_get_info(images.device)[0])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else 4e9
