"""A classifier that is right by construction, and images for it: one bright colour channel per class pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES = 6


class Colours(nn.Module):
    """(N, 3, H, W) in [0, 1] to six logits: class c looks for one colour, and its evidence is where that colour is.

    Args:
        classes: how many.
        centred: take images minus 0.5.
    """

    def __init__(self, classes: int = CLASSES, *, centred: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            colours = palette(classes) - 0.5
            self.conv.weight.copy_(40 * colours.view(classes, 3, 1, 1))
            self.conv.bias.copy_((0 if centred else -20) * colours.sum(1) - 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.conv(x)).flatten(1)


def palette(classes: int) -> Tensor:
    """(classes, 3) colours: corners of the cube, without black and white."""
    corners = torch.tensor([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in range(1, 7)], dtype=torch.float32)
    return corners[:classes]


def images(count: int, size: int = 8, seed: int = 0) -> TensorDataset:
    """Noisy images of the palette's colours, labelled; the classes follow each other."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = 0.6 * (torch.rand(count, 3, size, size, generator=generator) - 0.5)
    return TensorDataset((palette(CLASSES)[labels].view(count, 3, 1, 1) + noise).clamp(0, 1), labels)
