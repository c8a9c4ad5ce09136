"""Small networks to explain, and slow references that import nothing from bcos_fx."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bcos_fx

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


class Small(nn.Module):
    """Convolutions, batch norm, a residual, max pooling and a linear head; selections only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = x + F.relu(self.branch(x))
        return self.fc(x.mean((2, 3)))


class Tokens(nn.Module):
    """An embedding, positions, attention, a layer norm and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.positions = nn.Parameter(torch.randn(1, 5, 6))
        self.values = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.of_embeddings(self.embedding(tokens))

    def of_embeddings(self, x: Tensor) -> Tensor:
        x = x + self.positions
        x = x + F.scaled_dot_product_attention(x, x, self.values(x))
        return self.head(self.norm(x).mean(1))


class Embedded(nn.Module):
    """The same on embeddings."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.inner = tokens

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.of_embeddings(x)


def small() -> nn.Module:
    torch.manual_seed(0)
    network = Small()
    norm: Any = network.stem[1]
    norm.running_mean.copy_(torch.linspace(-0.3, 0.3, 8))
    norm.running_var.copy_(torch.linspace(0.5, 2, 8))
    return network.double().eval()


def converted(recipe: str = "equivalent", **options: Any) -> Any:
    settings = {"mean": MEAN, "std": STD, "example_inputs": images(2), "verified": False}
    return bcos_fx.bcosify(small(), recipe=recipe, **{**settings, **options})


def images(count: int = 3, side: int = 12) -> Tensor:
    return torch.rand(count, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=x.dtype).view(3, 1, 1) for values in (MEAN, STD))
    return (x - mean) / std


def slow_colours(weights: Tensor, contributions: Tensor, smooth: int, percentile: float) -> Tensor:
    """The coloured explanation of one image, pixel by pixel, from the papers' description."""
    channels, height, width = weights.shape[0] // 2, *weights.shape[1:]
    picture = torch.zeros(4, height, width, dtype=torch.float64)
    raw = torch.zeros(height, width, dtype=torch.float64)
    for i in range(height):
        for j in range(width):
            vector = [float(v) for v in weights[:, i, j]]
            largest = max(abs(v) for v in vector) or 1.0
            cut = [max(v / largest, 0.0) for v in vector]
            for c in range(3):
                k = c if channels == 3 else 0
                both = cut[k] + cut[k + channels]
                picture[c, i, j] = cut[k] / both if both else 0.0
            length = sum(v * v for v in vector) ** 0.5
            raw[i, j] = length if float(contributions[i, j]) > 0 else 0.0
    reach = smooth // 2
    for i in range(height):
        for j in range(width):
            window = raw[max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            picture[3, i, j] = float(window.sum()) / (2 * reach + 1) ** 2  # zeros beyond the border count
    ordered = picture[3].flatten().sort().values
    place = percentile / 100 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    full = float(ordered[low] + (ordered[high] - ordered[low]) * (place - low)) or float(ordered[-1]) or 1.0
    picture[3] = (picture[3] / full).clamp(0, 1)
    return picture
