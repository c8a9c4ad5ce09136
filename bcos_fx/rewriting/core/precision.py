"""Rewriting in float64, whatever the network's own precision.

A preserving rule may have to compute a new tensor (a kernel with a normalization inside it, the length of a
weight). Done in float64 and rounded once at the end, such a tensor is as exact as the network's precision allows,
and the proof can be held to float64 before that rounding.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn


class Precision:
    """The floating-point types of a network's tensors, so that they can be raised and restored.

    Args:
        network: its types are read now.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._dtypes = {name: t.dtype for name, t in _tensors(network).items() if t.is_floating_point()}
        counted = Counter(self._dtypes.values())
        self._usual = counted.most_common(1)[0][0] if counted else torch.get_default_dtype()

    def raise_(self) -> None:
        """Turn every floating-point tensor into float64, in place."""
        self._network.double()

    def restore_(self) -> None:
        """Give every tensor its own type again, in place; a new one gets the type that most had."""
        if set(self._dtypes.values()) <= {self._usual}:
            self._network.to(self._usual)
            return
        for path, module in self._network.named_modules():
            names = {name: f"{path}.{name}" if path else name for name in (*module._parameters, *module._buffers)}
            for name, qualified in names.items():
                tensor = getattr(module, name)
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.to(self._dtypes.get(qualified, self._usual))


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    named = dict(network.named_parameters(remove_duplicate=False))
    return named | dict(network.named_buffers(remove_duplicate=False))
