"""One score beside several stored numbers (ordinal regression): sums and choices that make more numbers of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.anyone.by_hand import Case, check_at_b_2, check_equivalent, numbers

# name -> what makes three numbers of one score (N, 1) and stored numbers (3,)
BESIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "thresholds": lambda score, stored: score + stored,
    "thresholds first": lambda score, stored: stored + score,
    "in order": lambda score, stored: score - stored.exp().cumsum(0),
    "distances": lambda score, stored: stored - score,
    "expanded": lambda score, stored: score.expand(-1, 3) + stored,
    "in a row": lambda score, stored: score + stored[None],
    "weighted": lambda score, stored: score * stored + stored,
    "larger": lambda score, stored: torch.maximum(score, stored - 5),
    "mixed": lambda score, stored: torch.where(score > stored, score, 0.1 * score) + stored,
    "stacked": lambda score, stored: torch.stack([score + stored, score - stored], 1).amax(1),
}


class Ordinal(nn.Module):
    """A score by layers, and numbers that are stored as a parameter or as a buffer."""

    def __init__(self, beside: Callable[[Tensor, Tensor], Tensor], *, trained: bool) -> None:
        super().__init__()
        self.first, self.score, self.beside = nn.Linear(4, 6), nn.Linear(6, 1, bias=False), beside
        stored = torch.linspace(0.4, -0.3, 3)
        self.stored = nn.Parameter(stored) if trained else nn.Buffer(stored)

    def forward(self, x: Tensor) -> Tensor:
        return self.beside(self.score(self.first(x).relu()), self.stored)


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("trained", [True, False])
def test_one_score_and_stored_numbers(name: str, trained: bool) -> None:
    case = Case(lambda: Ordinal(BESIDE[name], trained=trained), {"x": numbers(3, 4)}, (1,))
    check_equivalent(case)
    check_at_b_2(case)
