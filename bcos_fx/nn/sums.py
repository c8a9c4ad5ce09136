"""Sums as modules."""

from __future__ import annotations

from torch import Tensor, nn


class Sum(nn.Module):
    """x + y."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add two tensors that broadcast to each other; a new tensor."""
        return x + y


class InPlaceSum(nn.Module):
    """x + y, written over x: for an x that nothing else reads, of the sum's own shape."""

    inplace = True  # as torch's own modules declare it, for those who trace a network

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add y, broadcastable to x, to x; x itself is returned, changed (a new tensor once ``inplace`` is off)."""
        return x.add_(y) if self.inplace else x + y
