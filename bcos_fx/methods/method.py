"""Ways of explaining, all of one shape, so that every measure takes every one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from bcos_fx.explanation.explain import explain
from bcos_fx.methods.zero_shot import ZeroShot

Maps = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Method:
    """A way of explaining, bound to the network that it explains.

    Attributes:
        name: as tables and plots show it.
        settings: what it was set to, by name; printed beside results.
        maps: from images (N, C, H, W) in [0, 1] and class indices (N, K) to contributions (N, K, H, W), signed, summed
            over channels, neither smoothed nor clamped. Measures do that, alike for all.
    """

    name: str
    settings: Mapping[str, object]
    maps: Maps


def dynamic_linear(model: nn.Module, *, batch_size: int | None = None) -> Method:
    """Return the contributions of the network's own dynamic linear map W(x), one forward pass for all K classes.

    Args:
        model: a converted network, a zero-shot classifier, or any dynamic linear module on images in [0, 1].
        batch_size: images that are computed at once; None: as many as fit into memory.
    """
    if isinstance(model, ZeroShot):
        return Method("B-cos", {}, model.contributions)

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        return explain(model, images, targets, batch_size=batch_size).contributions

    return Method("B-cos", {}, maps)
