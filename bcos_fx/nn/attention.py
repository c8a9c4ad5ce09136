"""Softmax attention between projections: what is left of ``nn.MultiheadAttention`` without its linear layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from bcos_fx.errors import UsageError


class Attention(nn.Module):
    """Scaled dot product attention of several heads (Vaswani et al., NeurIPS 2017, section 3.2.1); it has no weights.

    Every sample of the result is a sum of values, weighted by a softmax over queries and keys. With these weights held
    fixed it is linear in the values.

    Args:
        num_heads: parts into which the last dimension is cut; each attends alone.
        batch_first: samples come first and positions second; otherwise the other way round.
        dropout: probability with which a weight is dropped in train mode.

    Raises:
        UsageError: no head, or a probability outside [0, 1].
    """

    def __init__(self, num_heads: int, *, batch_first: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        if num_heads < 1:
            raise UsageError(f"num_heads is {num_heads}", where="Attention", hint="give a positive number")
        if not 0 <= dropout <= 1:
            raise UsageError(f"dropout is {dropout}", where="Attention", hint="give a probability in [0, 1]")
        self.num_heads = num_heads
        self.batch_first = batch_first
        self.dropout = dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend.

        Args:
            query: (N, L, E) if ``batch_first``, else (L, N, E); or (L, E) of one sample.
            key: likewise, of S positions.
            value: likewise, of S positions.

        Returns:
            A new tensor of the query's shape, of the value's width.
        """
        query, key, value = (self._heads(tensor) for tensor in (query, key, value))
        drop = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=drop)
        joined = attended.transpose(-3, -2).flatten(-2)
        return joined if self.batch_first or joined.dim() == 2 else joined.transpose(0, 1)

    def _heads(self, x: Tensor) -> Tensor:
        """Cut (…, positions, E) into (…, heads, positions, E / heads), samples first."""
        if x.dim() == 3 and not self.batch_first:
            x = x.transpose(0, 1)
        return x.reshape(*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads).transpose(-3, -2)

    def extra_repr(self) -> str:
        """The options."""
        return f"num_heads={self.num_heads}, batch_first={self.batch_first}, dropout={self.dropout:g}"
