"""A network that converts in a fraction of a second, and factories for ``--arch``."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """(N, 3, 8, 8) to three logits, with a branch; statistics are set so that outputs differ between images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.branch = nn.Conv2d(4, 4, 1, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.conv(x)))
        y = y + self.branch(y)
        return self.fc(self.pool(y).flatten(1))


class Twofold(nn.Module):
    """Returns a dict, as segmentation models do."""

    def __init__(self) -> None:
        super().__init__()
        self.tiny = Tiny()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.tiny(x), "aux": x.mean((1, 2, 3))}


class Constant(Tiny):
    """The same output for every input, but for a billionth: nothing that is run can tell rewrites apart."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(1e-9 * x)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


def build_twofold() -> nn.Module:
    torch.manual_seed(0)
    return Twofold().eval()


def build_constant() -> nn.Module:
    torch.manual_seed(0)
    return Constant().eval()


class Rounded(Tiny):
    """Begins with a step, which no weight of the input explains."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((4 * x).round())


def build_rounded() -> nn.Module:
    torch.manual_seed(0)
    return Rounded().eval()


def build_softmax() -> nn.Module:
    return nn.Sequential(build(), nn.Softmax(1)).eval()


def fails() -> nn.Module:
    raise ValueError("no data here")
