"""Products of a tensor with itself, however they are written: one of the two factors weights the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.anyone.by_hand import Case, check_at_b_2, check_equivalent, gate, numbers

W = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
# name -> the product of a (4, 4) tensor with itself, whose factors are the same object but for the reference
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "second moments": lambda h, g: torch.einsum("nc,nd->cd", g, h) / h.shape[1],
    "list of operands": lambda h, g: torch.einsum("nc,nd->cd", [g, h]),
    "squared norms": lambda h, g: torch.einsum("nc,nc->n", h, g),
    "function": lambda h, g: torch.matmul(g, h),
    "method": lambda h, g: g.matmul(h),
    "operator": lambda h, g: g @ h,
    "matrices": lambda h, g: torch.mm(g, mat2=h),
    "keywords": lambda h, g: torch.mm(input=g, mat2=h),
    "vecdot": lambda h, g: torch.linalg.vecdot(h, g),
    "inner": lambda h, g: torch.inner(h, g),
    "kron": lambda h, g: h.kron(g),
    "bilinear": lambda h, g: F.bilinear(h, g, W),
    "tensordot": lambda h, g: torch.tensordot(h, g, 1),
}


class Moments(nn.Module):
    """A layer, a product of what it gives with itself, and a layer."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.product = nn.Linear(3, 4), product
        self.last = nn.Linear(product(W[0], W[0]).numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.last(self.product(h, gate(h)).flatten())


@pytest.mark.parametrize("name", PRODUCTS)
def test_one_factor_weights_the_other(name: str) -> None:
    case = Case(lambda: Moments(PRODUCTS[name]), {"x": numbers(4, 3)}, (1,), {"batch_axis": None})
    check_equivalent(case)
    check_at_b_2(case)
