"""Small classifiers with what makes captum stumble, and the slow ways to their maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)


class Residual(nn.Module):
    """ReLU as one module that serves twice and as a function, a max pooling whose windows overlap, a residual."""

    def __init__(self, activation: str = "relu") -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.classifier = nn.Linear(6, 4)
        self.activation = activation
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.first(x)))
        x = self.relu(self.norm(self.second(x))) + x
        x = getattr(F, self.activation)(x - 0.2)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def residual(activation: str = "relu", seed: int = 0) -> Residual:
    torch.manual_seed(seed)
    return Residual(activation).double().eval()


def some_images(count: int = 2, size: int = 12, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normalised(x: Tensor) -> Tensor:
    mean, std = (torch.tensor(v, dtype=x.dtype).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (x - mean) / std


def logits(network: nn.Module, images: Tensor) -> Tensor:
    return network(normalised(images))
