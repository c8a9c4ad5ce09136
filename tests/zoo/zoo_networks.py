"""Networks for the zoo's tests; the zoo builds them by the path of this file."""

from __future__ import annotations

import os
import time

import torch
from torch import Tensor, nn


class Convolutional(nn.Sequential):
    """What works."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
        self.image_size = 32


class Coarse(Convolutional):
    """Takes images of 64 pixels, and of its own 96."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 96

    def forward(self, input: Tensor) -> Tensor:
        if input.shape[-1] not in (64, 96):
            raise ValueError("another size")
        return super().forward(input)


class Mixed(Convolutional):
    """Converts, and is not dynamic linear."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + y.floor()


class Undecided(Convolutional):
    """Cannot be traced: control flow depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if y.sum() > 0 else -y


class Named(Convolutional):
    """Returns a dict."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        return {"features": pixels, "logits": super().forward(pixels)}


class Kept(nn.LSTM):
    """Calls the kernel itself, which stays whole."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = x.new_zeros(1, x.shape[0], self.hidden_size)
        weights = self._flat_weights
        return torch.lstm(x, (first, first), weights, True, 1, 0.0, self.training, False, self.batch_first)


class Recurrent(nn.Module):
    """Has a part that tracing cannot look into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.fc = nn.Conv2d(3, 8, 4, stride=4), Kept(8, 6, batch_first=True), nn.Linear(6, 5)
        self.image_size = 32

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(self.conv(x).flatten(2).transpose(1, 2))[0].mean(1))


def endless() -> nn.Module:
    time.sleep(600)
    return Convolutional()


def greedy() -> nn.Module:
    kept = [torch.ones(2**26) for _ in range(40)]
    time.sleep(600)
    return nn.Linear(len(kept), 1)


def crashing() -> nn.Module:
    os._exit(3)
