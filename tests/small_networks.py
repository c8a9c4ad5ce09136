"""Networks as users bring them, as small as they can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def images(count: int = 2, channels: int = 3, size: int = 8) -> Tensor:
    # The same in every process: tests that are named after their tensors are to have one name.
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def vectors(count: int = 2) -> Tensor:
    return torch.randn(count, 4)


def cnn(channels: int = 3) -> nn.Sequential:
    """A small classifier of images; its head comes after the pooling, as usual."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


class Calls(nn.Module):
    """A module whose forward is a function of the module and its arguments."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)
        self.eval()

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


class Pair(nn.Module):
    """Two inputs of one kind, each with a network of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = cnn(), cnn()
        self.eval()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        difference: Tensor = self.left(x) - self.right(y)
        return difference


class Scaled(nn.Module):
    """An argument beside the tensor, with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.eval()

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        scaled: Tensor = self.layer(x) * factor
        return scaled
