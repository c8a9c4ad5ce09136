"""Products of values: which factor is taken for the gate, why, and that sums add up whichever it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.explanation.certify import certify
from tests.explanation.view_networks import Net

Middle = Callable[[Net, Tensor, Tensor], Tensor]

# expression -> what becomes of (N, 6, 6) and (N, 6, 6), the layer that weights the other, words of the reason
PRODUCTS: dict[str, tuple[Middle, str, str]] = {
    "u * v": (lambda n, u, v: u * v, "b", "by convention (mul): both factors are values, and the second"),
    "u * relu(v)": (lambda n, u, v: u * v.relu(), "relu", "it passed an activation"),
    "relu(u) * v": (lambda n, u, v: u.relu() * v, "relu", "it passed an activation"),
    "gelu(u) * relu(v)": (lambda n, u, v: n.gelu(u) * v.relu(), "relu", "by convention"),
    "u @ v": (lambda n, u, v: u @ v, "a", "(matmul): both factors are values, and the first"),
    "bmm": (lambda n, u, v: torch.bmm(u, v), "a", "(matmul): both factors are values, and the first"),
    "einsum": (
        lambda n, u, v: torch.einsum("nij,njk->nik", u, v),
        "a",
        "(einsum): both factors are values, and the first",
    ),
    "linear attention": (
        lambda n, u, v: u @ (u.softmax(-1).transpose(1, 2) @ v),
        "a",
        "(matmul): both factors are values, and the first",
    ),
}


def network(middle: Middle) -> nn.Module:
    torch.manual_seed(0)
    return (
        Net(
            lambda n, x: n.c(middle(n, n.a(x), n.b(x))),
            a=nn.Linear(6, 6),
            b=nn.Linear(6, 6),
            c=nn.Linear(6, 2),
            gelu=nn.GELU(),
        )
        .double()
        .eval()
    )


@pytest.mark.parametrize("name", PRODUCTS)
def test_one_factor_is_the_gate_and_the_certificate_says_why(name: str) -> None:
    middle, gate, words = PRODUCTS[name]
    certification = certify(network(middle), torch.rand(3, 6, 6, dtype=torch.float64))
    (choice,) = certification.choices
    assert (choice.gate, words in choice.why) == (gate, True), choice
    assert certification.ok, certification.to_text()
    assert certification.completeness is not None
    assert certification.completeness.verdict == "complete", certification.to_text()


@pytest.mark.parametrize(
    "middle",
    [
        lambda n, u, v: torch.einsum("nij,njk,nki->nik", u, u, u),
        lambda n, u, v: torch.einsum("nij,njk,nik->nik", u, v, u + v),
    ],
)
def test_nothing_is_chosen_where_there_is_no_pair(middle: Middle) -> None:
    certification = certify(network(middle), torch.rand(3, 6, 6, dtype=torch.float64))
    assert not certification.ok
    assert "nothing tells the gate" in certification.breaks[0].reason


def test_a_square_is_a_ratio_in_every_spelling() -> None:
    x = torch.rand(3, 6, 6, dtype=torch.float64)
    middles: list[Middle] = [lambda n, u, v: u * u, lambda n, u, v: u.pow(2), lambda n, u, v: u.square()]
    found = [bcos_fx.explain(network(middle), x, 1) for middle in middles]
    for each in found:
        assert each.complete
        torch.testing.assert_close(each.input_weights, found[1].input_weights, rtol=1e-9, atol=1e-12)
