"""The inputs that networks are compared on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bcos_fx import example
from bcos_fx.conversion.records import Preserved
from bcos_fx.tracing.inputs import ExampleInputs
from bcos_fx.verification.samples import synthetic_images


def comparison_inputs(stage: Preserved, count: int) -> tuple[Tensor, ...]:
    """Return inputs of the converted network: the user's images, or made-up ones; other inputs as in the example."""
    conversion, given = stage.traced.conversion, examples(stage)
    if conversion.images is not None:
        return (_like_network(stage, conversion.images[:count]),)
    if not conversion.whole and len(stage.specs) == 1 and given[0].is_floating_point():
        made_up = synthetic_images(stage.specs[0].shape[1:], count, seed=0)
        if not stage.specs[0].encoded:  # no image: values of both signs
            made_up = made_up.map(lambda x: 2 * x - 1)
        return tuple(_like_network(stage, x) for x in made_up.arguments if isinstance(x, Tensor))
    return given


def drift_batches(stage: Preserved) -> list[list[tuple[Tensor, ...]]]:
    """Return choices of test inputs, the preferred one first: for a large network one sample, which halves the work.

    The last choice is of batches as large as the example: an exported program may take no other.
    """
    conversion = stage.traced.conversion
    full = conversion.method == "full"
    count = 8 if conversion.images is not None else 4
    inputs = comparison_inputs(stage, count if full else 2)
    size = stage.specs[0].shape[0] if stage.specs[0].shape else 0
    if len(inputs) > 1 or conversion.whole or not 0 < size <= len(inputs[0]):
        return [[inputs]]
    batches: list[tuple[Tensor, ...]] = [(part,) for part in torch.split(inputs[0], size) if len(part) == size]
    return [batches] if full else [[(inputs[0][:1],)], batches]


def example_for_original(stage: Preserved, inputs: Sequence[Tensor]) -> ExampleInputs:
    """Return inputs of the converted network as an example for the original: in its form, two samples at least."""
    whole = stage.traced.conversion.whole
    pairs = [torch.cat([x, x]) if len(x) == 1 and not whole else x for x in inputs]
    triples = zip(stage.specs, pairs, examples(stage), strict=True)
    originals: ExampleInputs = example.like(
        stage.traced.inputs, [spec.original(x.detach()).to(old) for spec, x, old in triples]
    )
    return originals


def examples(stage: Preserved) -> tuple[Tensor, ...]:
    """Return the tensors that the module was traced with."""
    return tuple(stage.traced.example.named.values())


def _like_network(stage: Preserved, x: Tensor) -> Tensor:
    like = next(stage.traced.graph_module.parameters(), examples(stage)[0])
    return x.to(dtype=like.dtype, device=like.device)
