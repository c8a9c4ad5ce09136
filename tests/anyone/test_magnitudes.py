"""Norms, spreads and distances as values: by Euler's theorem the gradient of what grows as its input does is W(x)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import VerificationError


class Measured(nn.Module):
    """A hidden layer, and what is measured of it; ``prototypes`` are parameters (4, 8)."""

    def __init__(self, end: Callable[[Measured, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.end = nn.Linear(6, 8), nn.Linear(8, 4), end
        self.prototypes = nn.Parameter(torch.randn(4, 8))
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self, torch.relu(self.first(x)))


def pairs(h: Tensor) -> Tensor:
    return h.unflatten(1, (4, 2))


# What grows as its input does: W is the gradient, and so is each constant's share.
HOMOGENEOUS: dict[str, Callable[[Measured, Tensor], Tensor]] = {
    "norm": lambda m, h: pairs(h).norm(dim=2),
    "norm of order 1": lambda m, h: torch.norm(pairs(h), p=1, dim=2),
    "largest": lambda m, h: torch.linalg.vector_norm(pairs(h), float("inf"), 2),
    "matrix norm": lambda m, h: torch.linalg.matrix_norm(h.view(-1, 2, 2, 2), ord="nuc"),
    "standard deviation": lambda m, h: pairs(h).std(2),
    "statistics pooling": lambda m, h: m.last(torch.cat([pairs(h).mean(2), torch.std(pairs(h), dim=2)], 1)),
    "distances to prototypes": lambda m, h: -torch.cdist(h, m.prototypes),
    "distance": lambda m, h: torch.dist(h, m.prototypes[:1]).expand(1, 4),
    "hypotenuse": lambda m, h: torch.hypot(h[:, :4], h[:, 4:]),
    "magnitude spectrum": lambda m, h: torch.fft.rfft(h, dim=1).abs(),
    "norm of a spectrum": lambda m, h: torch.linalg.norm(torch.fft.rfft(h, dim=1).unflatten(1, (5, 1)), dim=2),
}
# name -> what is measured, and a function whose gradient is W: what only weights something is held fixed
HELD: dict[str, tuple[Callable[[Measured, Tensor], Tensor], Callable[[Measured, Tensor], Tensor]]] = {
    "variance": (
        lambda m, h: pairs(h).var(2, unbiased=False),
        lambda m, h: (pairs(h).diff(dim=2) * pairs(h).diff(dim=2).detach()).squeeze(2) / 4,
    ),
    "power spectrum": (
        lambda m, h: torch.fft.rfft(h, dim=1).abs().pow(2),
        lambda m, h: (torch.fft.rfft(h, dim=1) * torch.fft.rfft(h.detach(), dim=1).conj()).real,
    ),
    "pairwise distance": (
        lambda m, h: F.pairwise_distance(h[:, None], m.prototypes[None]),
        lambda m, h: (h[:, None] - m.prototypes).norm(dim=2) * quotient(h[:, None].detach(), m.prototypes.detach()),
    ),
    "a module of distances": (
        lambda m, h: nn.PairwiseDistance(keepdim=True)(h[:, None], m.prototypes[None]).squeeze(2),
        lambda m, h: (h[:, None] - m.prototypes).norm(dim=2) * quotient(h[:, None].detach(), m.prototypes.detach()),
    ),
    "weighted by a norm": (
        lambda m, h: m.last(h) * h.norm(dim=1, keepdim=True),
        lambda m, h: m.last(h) * h.norm(dim=1, keepdim=True).detach(),
    ),
    "a norm weighted": (
        lambda m, h: h.norm(dim=1, keepdim=True) * m.last(h),
        lambda m, h: m.last(h) * h.norm(dim=1, keepdim=True).detach(),
    ),
    "divided by a deviation": (
        lambda m, h: m.last((h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True)),
        lambda m, h: m.last((h - h.mean(1, keepdim=True)) / h.std(1, keepdim=True).detach()),
    ),
    "scaled by a layer of a deviation": (
        lambda m, h: m.last(h) * F.linear(pairs(h).std(2), m.prototypes[:, :4]),
        lambda m, h: m.last(h) * F.linear(pairs(h).std(2), m.prototypes[:, :4]).detach(),
    ),
}


def quotient(h: Tensor, prototypes: Tensor) -> Tensor:
    return F.pairwise_distance(h, prototypes) / (h - prototypes).norm(dim=2)


def given(samples: int = 3) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(3)).double()


def check(name: str, end: Callable[[Measured, Tensor], Tensor], held: Callable[[Measured, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    network = Measured(end)
    x = given(1 if name == "distance" else 3).requires_grad_()
    (expected,) = torch.autograd.grad(held(network, torch.relu(network.first(x)))[:, 1].sum(), x)
    found = bcos_fx.explain(network, x.detach(), 1)
    torch.testing.assert_close(found.output, network(x)[:, 1].detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.input_weights, expected, rtol=1e-9, atol=1e-12)
    assert found.complete


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_what_grows_as_its_input_is_explained_by_its_gradient(name: str) -> None:
    check(name, HOMOGENEOUS[name], HOMOGENEOUS[name])


@pytest.mark.parametrize("name", HELD)
def test_what_is_a_weight_beside_it_is_held_fixed(name: str) -> None:
    check(name, *HELD[name])


@pytest.mark.parametrize("name", ["statistics pooling", "distances to prototypes", "variance", "pairwise distance"])
def test_a_converted_network_is_explained_alike(name: str) -> None:
    torch.manual_seed(0)
    network = Measured(HOMOGENEOUS.get(name) or HELD[name][0])
    made = bcos_fx.bcosify(network, example_inputs=given(), recipe="equivalent", input="none")
    expected, found = (bcos_fx.explain(each, given(), 1) for each in (network, made))
    torch.testing.assert_close(found.input_weights, expected.input_weights, rtol=1e-9, atol=1e-12)
    assert found.complete


def test_a_siamese_distance_is_explained_by_both_images() -> None:
    class Siamese(Measured):
        def forward(self, x: Tensor, other: Tensor) -> Tensor:
            return F.pairwise_distance(torch.relu(self.first(x)), torch.relu(self.first(other)))

    torch.manual_seed(0)
    network = Siamese(lambda m, h: h)
    found = bcos_fx.explain(network, given(), others=[given().flip(0) + 1], source=["x", "other"])
    assert found.complete


@pytest.mark.parametrize(
    "end",
    [lambda m, h: pairs(h).norm(p=0, dim=2), lambda m, h: torch.cdist(h, m.prototypes, p=0.0)],
    ids=["norm", "distance"],
)
def test_a_count_is_no_norm(end: Callable[[Measured, Tensor], Tensor]) -> None:
    with pytest.raises(VerificationError, match="counts numbers"):
        bcos_fx.explain(Measured(end), given(), 1)


def test_where_two_things_are_equal_their_distance_says_nothing() -> None:
    network = Measured(lambda m, h: F.pairwise_distance(h[:, None], torch.cat([h[:, None], h[:, None] + 1], 1)))
    found = bcos_fx.explain(network, given(), 0)
    assert not found.complete
    assert bool(found.input_weights.isfinite().all())
