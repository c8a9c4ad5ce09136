"""Sums as modules."""

from __future__ import annotations

from torch import Tensor, nn


class Sum(nn.Module):
    """x + y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add two tensors that broadcast to each other; a new tensor."""
        return x + y


class InPlaceSum(nn.Module):
    """x + y, written over x: for an x that nobody else reads, of the sum's own shape."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add y, broadcastable to x, to x; x itself is returned, changed."""
        return x.add_(y)
