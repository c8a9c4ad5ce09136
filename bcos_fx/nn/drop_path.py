"""Paths that are left out at random in train mode."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from bcos_fx.errors import UsageError


class DropPath(nn.Module):
    """Multiply samples by 0 at random in train mode, and by a constant otherwise; the identity in eval mode.

    Stochastic depth (Huang et al., ECCV 2016, section 3), known as ``DropPath`` in timm and ``StochasticDepth`` in
    torchvision.

    Args:
        p: probability of 0.
        mode: whether each sample (``row``) or the batch as a whole (``batch``) is drawn for.
        scale_by_keep: divide what is kept by 1 - p, so that the mean stays.

    Raises:
        UsageError: a probability outside [0, 1], or another mode.
    """

    def __init__(self, p: float, mode: Literal["row", "batch"] = "row", *, scale_by_keep: bool = True) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise UsageError(f"p is {p}", where="DropPath", hint="give a probability in [0, 1]")
        if mode not in ("row", "batch"):
            raise UsageError(f"mode is {mode!r}", where="DropPath", hint='choose "row" or "batch"')
        self.p = p
        self.mode = mode
        self.scale_by_keep = scale_by_keep

    def forward(self, input: Tensor) -> Tensor:
        """Return a tensor of the input's shape (N, ...)."""
        if not self.training or not self.p:
            return input
        samples = input.shape[0] if self.mode == "row" else 1
        kept = input.new_empty((samples, *(1,) * (input.dim() - 1))).bernoulli_(1 - self.p)
        if self.scale_by_keep and self.p < 1:
            kept = kept / (1 - self.p)
        return input * kept

    def extra_repr(self) -> str:
        """Return the options."""
        return f"p={self.p:g}, mode={self.mode}, scale_by_keep={self.scale_by_keep}"
