"""A small network that the checks of the checker break, and ways to wrap it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from bcos_fx.testing import randomise_
from bcos_fx.verification import Verification


class Subject(nn.Module):
    """Small, with everything that the mutants break; any input size."""

    input_shape = (3, 12, 10)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.drop = nn.Dropout(0.2)
        self.square = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.grouped(nn.functional.max_pool2d(x, 2)))
        return self.head(torch.relu(self.square(self.drop(x.mean((2, 3))))))


class After(nn.Module):
    """A network with something done to its output."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.network = network
        self.change = change

    def forward(self, x: Tensor) -> object:
        return self.change(self.network(x))


class Before(nn.Module):
    """A network with something done to its input."""

    def __init__(self, network: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.change = change

    def forward(self, x: Tensor) -> object:
        return self.network(self.change(x))


def made(seed: int = 3) -> Subject:
    """A subject with random weights and statistics, in eval mode."""
    return randomise_(Subject(), seed).eval()


def some_photos() -> Tensor:
    """Nine samples, one more than the default batch sizes use up."""
    return torch.rand(9, 3, 12, 10, generator=torch.Generator().manual_seed(1))


def verdicts(result: Verification) -> dict[str, str]:
    return {row.name: row.verdict for row in result.comparisons}
