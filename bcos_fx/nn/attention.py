"""Softmax attention whose weights are dropped at random in train mode, and the heads that it works on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from bcos_fx.errors import UsageError


class Attention(nn.Module):
    """Scaled dot product attention (Vaswani et al., NeurIPS 2017, section 3.2.1); it has no weights of its own.

    Every sample of the result is a sum of values, weighted by a softmax over queries and keys. With these weights held
    fixed it is linear in the values.

    Args:
        dropout: probability with which a weight is dropped in train mode.
        is_causal: each query attends to the keys up to its own position only.
        scale: what scores are multiplied by; 1/sqrt(E) if None.
        enable_gqa: several heads of queries share one of keys and values.

    Raises:
        UsageError: a probability outside [0, 1].
    """

    def __init__(
        self, dropout: float = 0.0, *, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= dropout <= 1:
            raise UsageError(f"dropout is {dropout}", where="Attention", hint="give a probability in [0, 1]")
        self.dropout = dropout
        self.is_causal = is_causal
        self.scale = scale
        self.enable_gqa = enable_gqa

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (..., L, E).
            key: (..., S, E).
            value: (..., S, V).
            attn_mask: broadcasts to (..., L, S): what is added to the scores, or False where no query attends.

        Returns:
            A new tensor (..., L, V).
        """
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask,
            self.dropout if self.training else 0.0,
            self.is_causal,
            scale=self.scale,
            enable_gqa=self.enable_gqa,
        )

    def extra_repr(self) -> str:
        """Return the options."""
        return f"dropout={self.dropout:g}, is_causal={self.is_causal}, scale={self.scale}, enable_gqa={self.enable_gqa}"


class Heads(nn.Module):
    """The last dimension cut into heads, and all dimensions in the order that attention wants.

    Args:
        sizes: what the last dimension is cut into; their product is its size.
        order: of the dimensions after that, as ``torch.permute`` takes it.
    """

    def __init__(self, sizes: Sequence[int], order: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.order = tuple(order)

    def forward(self, x: Tensor) -> Tensor:
        """Return a view of x, such as (N, heads, L, E / heads) of (N, L, E)."""
        return torch.unflatten(x, -1, self.sizes).permute(self.order)

    def extra_repr(self) -> str:
        """Return the options."""
        return f"sizes={self.sizes}, order={self.order}"
