"""Dynamic weights W(x), and the gradients that they are read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Select = Callable[[Tensor], Tensor]
"""From the explained value (N, ...) to the numbers to be explained (N, K)."""


@dataclass(frozen=True)
class SourceWeights:
    """W(x) with respect to one of the sources; tensors detached.

    Attributes:
        start: (N, ...) what the weights act on, such as the encoded images.
        weights: (N, K, ...) W(x), in start's shape for each number.
    """

    start: Tensor
    weights: Tensor

    @property
    def contributions(self) -> Tensor:
        """(N, K) Σ W(x)·x."""
        return (self.weights * self.start.unsqueeze(1)).flatten(2).sum(2)


@dataclass(frozen=True)
class DynamicWeights:
    """Dynamic weights and constants of some numbers, as a view computes them; all tensors detached.

    Attributes:
        value: (N, ...) the whole explained value.
        output: (N, K) the explained numbers.
        sources: name -> W(x) with respect to it, for each source in the order that was asked for.
        constants: source -> (N, K), the contribution of each constant that the numbers depend on.
    """

    value: Tensor
    output: Tensor
    sources: Mapping[str, SourceWeights]
    constants: Mapping[str, Tensor]

    @property
    def start(self) -> Tensor:
        """(N, ...) what the weights of the first source act on."""
        return next(iter(self.sources.values())).start

    @property
    def weights(self) -> Tensor:
        """(N, K, ...) W(x) of the first source."""
        return next(iter(self.sources.values())).weights

    def by_source(self) -> dict[str, DynamicWeights]:
        """Return for each source its own weights, with what the other sources contribute among the constants."""
        by_source = {}
        for name, source in self.sources.items():
            others = {as_constant(n): other.contributions for n, other in self.sources.items() if n != name}
            by_source[name] = replace(self, sources={name: source}, constants={**self.constants, **others})
        return by_source

    @classmethod
    def joined(cls, parts: Sequence[DynamicWeights]) -> DynamicWeights:
        """Join what was computed for several batches of one network."""
        constants = {name: torch.cat([part.constants[name] for part in parts]) for name in parts[0].constants}
        sources = {
            name: SourceWeights(
                torch.cat([part.sources[name].start for part in parts]),
                torch.cat([part.sources[name].weights for part in parts]),
            )
            for name in parts[0].sources
        }
        value, output = torch.cat([part.value for part in parts]), torch.cat([part.output for part in parts])
        return cls(value, output, sources, constants)


def as_constant(source: str) -> str:
    """Return the name that a source's contributions have among the constants of another one's explanation."""
    return f"the source {source}"


def for_autograd(value: object) -> Any:
    """Return a tensor that autograd may use, whatever mode the caller made it in; without the caller's graph."""
    if not isinstance(value, Tensor):
        return value
    # A clone leaves inference mode; detaching drops the caller's own graph, into which no gradient may flow.
    return value.clone() if value.is_inference() else value.detach()


def gradients(numbers: Tensor, leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradient of each of the (N, K) numbers by each leaf (N, ...), as (N, K, ...); None where unused."""
    columns = numbers.shape[1]
    # One backward pass for each of the K numbers: samples do not depend on each other, so their sum serves all N.
    rows = [
        torch.autograd.grad(
            numbers[:, k].sum(), leaves, retain_graph=k + 1 < columns, allow_unused=True, materialize_grads=False
        )
        for k in range(columns)
    ]
    return [
        # Some numbers may depend on a leaf that others do not.
        None
        if all(g is None for g in row)
        else torch.stack([torch.zeros_like(leaf) if g is None else g for g in row], 1)
        for leaf, row in zip(leaves, zip(*rows, strict=True), strict=True)
    ]
