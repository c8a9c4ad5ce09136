"""What every layer with a dynamic weight offers: its value split into a linear part and a factor."""

from __future__ import annotations

from torch import Tensor, nn

from bcos_fx.errors import UsageError


def require_exactly(module: nn.Module, plain_class: type[nn.Module], target: type[nn.Module]) -> None:
    """Raise UsageError unless ``module`` is of exactly this class: a subclass may compute something else."""
    if type(module) is not plain_class:
        raise UsageError(
            f"{target.__name__}.from_plain takes exactly torch.nn.{plain_class.__name__}, "
            f"not {type(module).__module__}.{type(module).__qualname__}",
            hint="convert the layer by the rule for its own class",
        )


class DynamicLayer(nn.Module):
    """Base of layers that compute ``recompose(*decompose(x))``, where only the factor is not linear in x.

    Held constant, the factor makes the layer an affine map of x: the one that it applied to this x. That is
    what an explanation needs (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 3.2).

    A subclass of your own defines :meth:`decompose` and :meth:`recompose`, and :meth:`constant_like` if it adds a
    constant; ``docs/rules.md`` shows one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's value at x."""
        return self.recompose(*self.decompose(x))

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split the layer's value at x into a part linear in x and a factor broadcastable to it."""
        raise NotImplementedError

    def recompose(self, linear: Tensor, factor: Tensor) -> Tensor:
        """Multiply linear part and factor, and apply what is constant: the affine weight and the bias."""
        raise NotImplementedError

    def frozen(self, x: Tensor) -> Tensor:
        """Return the layer's value at x, equal to ``forward``'s, with the factor detached from the graph.

        The gradient of the result with respect to x is the dynamic weight W(x).
        """
        linear, factor = self.decompose(x)
        return self.recompose(linear, factor.detach())

    def constant_like(self, y: Tensor) -> Tensor:
        """Return the constant that ``forward`` adds, detached, shaped to broadcast to y, the layer's value."""
        raise NotImplementedError
