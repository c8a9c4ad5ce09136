"""Dynamic weights W(x), and the gradients that they are read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Select = Callable[[Tensor], Tensor]
"""From the explained value (N, ...) to the numbers to be explained (N, K)."""


@dataclass(frozen=True)
class SourceWeights:
    """W(x) with respect to one of the sources; tensors detached.

    Attributes:
        start: (N, ...) what the weights act on: the encoded images, say.
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
    """What a view says of some numbers; all tensors detached.

    Attributes:
        start: (N, ...) what the weights of the first source act on: the encoded images, say.
        value: (N, ...) the whole explained value.
        output: (N, K) the explained numbers.
        weights: (N, K, ...) W(x) of the first source, in start's shape for each number.
        constants: source -> (N, K), the contribution of each constant that the numbers depend on.
        further: the weights of the other sources, by name, where outputs are explained by several.
    """

    start: Tensor
    value: Tensor
    output: Tensor
    weights: Tensor
    constants: Mapping[str, Tensor]
    further: Mapping[str, SourceWeights] = field(default_factory=dict)

    @property
    def parts(self) -> list[SourceWeights]:
        """The weights of all sources, in order."""
        return [SourceWeights(self.start, self.weights), *self.further.values()]

    def by_source(self, names: Sequence[str]) -> dict[str, DynamicWeights]:
        """Return for each source its own weights, with what the other sources contribute among the constants.

        Args:
            names: of the sources, in order.
        """
        parts = dict(zip(names, self.parts, strict=True))
        if len(parts) == 1:
            return {names[0]: self}
        made = {}
        for name, part in parts.items():
            others = {as_constant(other): parts[other].contributions for other in parts if other != name}
            constants = {**self.constants, **others}
            made[name] = replace(self, start=part.start, weights=part.weights, constants=constants, further={})
        return made

    @classmethod
    def joined(cls, parts: Sequence[DynamicWeights]) -> DynamicWeights:
        """Join what was computed for several batches of one network."""

        def cat(name: str) -> Tensor:
            return torch.cat([getattr(part, name) for part in parts])

        constants = {name: torch.cat([part.constants[name] for part in parts]) for name in parts[0].constants}
        further = {
            name: SourceWeights(
                torch.cat([part.further[name].start for part in parts]),
                torch.cat([part.further[name].weights for part in parts]),
            )
            for name in parts[0].further
        }
        return cls(cat("start"), cat("value"), cat("output"), cat("weights"), constants, further)


def as_constant(source: str) -> str:
    """Return the name that a source's contributions have among the constants of another one's explanation."""
    return f"the source {source}"


def for_autograd(value: object) -> Any:
    """Return a tensor that autograd may use, whatever mode the caller made it in; without the caller's graph."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.is_inference() else value.detach()


def or_zeros(weights: Tensor | None, leaf: Tensor, numbers: Tensor) -> Tensor:
    """Return the weights of a leaf, 0 where nothing carries its value to the numbers."""
    return leaf.new_zeros(leaf.shape[0], numbers.shape[1], *leaf.shape[1:]) if weights is None else weights


def gradients(numbers: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor | None]:
    """Return the gradient of each of the (N, K) numbers by each leaf (N, ...), as (N, K, ...); None where unused."""
    columns = numbers.shape[1]
    rows = [
        torch.autograd.grad(
            numbers[:, k].sum(), leaves, retain_graph=k + 1 < columns, allow_unused=True, materialize_grads=False
        )
        for k in range(columns)
    ]
    return [_stacked(found) for found in zip(*rows, strict=True)]


def _stacked(found: tuple[Tensor | None, ...]) -> Tensor | None:
    present = [gradient for gradient in found if gradient is not None]
    if not present:
        return None
    return torch.stack([present[0].new_zeros(present[0].shape) if g is None else g for g in found], dim=1)
