"""Where a number stopped being finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def broken_tensor(module: nn.Module) -> str | None:
    """Return the name of the first parameter or buffer that holds NaN or infinity, or None."""
    for name, tensor in module.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return name
    return None


@torch.no_grad()
def culprit(network: nn.Module, images: Tensor) -> str:
    """Return which layer made the first value that is not finite, for these images."""
    if not bool(torch.isfinite(images).all()):
        return "the images themselves hold NaN or infinity"
    broken = broken_tensor(network)
    if broken is not None:
        return f"{broken} holds NaN or infinity"
    broken_layers: list[str] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not broken_layers and isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                broken_layers.append(f"the layer {name} ({type(module).__name__})")

        return hook

    leaves = [(name, module) for name, module in network.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(look(name)) for name, module in leaves]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return broken_layers[0] if broken_layers else "the loss itself: all layers are finite"
