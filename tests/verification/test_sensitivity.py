"""Differences that rounding alone explains accuse nobody, and prove nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.verification import verify
from bcos_fx.verification.samples import gather, nudge


class Chaotic(nn.Module):
    """The logistic map at its most chaotic, where every step doubles an error."""

    def __init__(self, steps: int, *, regrouped: bool = False, error: float = 0.0) -> None:
        super().__init__()
        self.steps, self.regrouped, self.error = steps, regrouped, error

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.steps):
            x = 3.99 * (x - x * x) if self.regrouped else 3.99 * x * (1 - x)
        return x + self.error


@pytest.fixture
def images() -> Tensor:
    return 0.1 + 0.8 * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_chaotic_networks_rounding_is_not_a_difference(images: Tensor) -> None:
    result = verify(Chaotic(32), Chaotic(32, regrouped=True), images, gradients=False)
    assert not result
    row = next(row for row in result.comparisons if row.name == "eval, batch 1")
    assert row.verdict == "not tested"
    assert 0 < row.error <= 10 * row.sensitivity
    assert "differs from itself" in result.detail


def test_an_error_that_rounding_does_not_explain_is_a_difference(images: Tensor) -> None:
    result = verify(Chaotic(32), Chaotic(32, regrouped=True, error=1e-3), images, gradients=False)
    assert {row.verdict for row in result.comparisons} == {"different"}
    assert all(0 < row.sensitivity < 1e-5 for row in result.comparisons)


def test_a_calm_network_answers_for_its_errors(images: Tensor) -> None:
    result = verify(Chaotic(2), Chaotic(2, regrouped=True, error=2e-9), images)
    assert result.comparisons[0].verdict == "different"
    assert verify(Chaotic(2), Chaotic(2, regrouped=True), images)


class Coarse(nn.Module):
    """A gate in float32, as transformers compute attention's softmax, on a value or on stored numbers alone."""

    def __init__(self, *, on: str, error: float = 0.0) -> None:
        super().__init__()
        self.on, self.error = on, error
        self.register_buffer("stored", torch.linspace(1, 2, 8, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid((x if self.on == "value" else self.stored).float()).to(x.dtype)
        return x * gate * (1 + self.error)


def test_values_that_pass_through_float32_are_judged_as_such(images: Tensor) -> None:
    result = verify(Coarse(on="value"), Coarse(on="value", error=1e-7), images)
    assert result
    assert result.tolerance == 1e-4
    assert not verify(Coarse(on="value"), Coarse(on="value", error=1e-3), images)
    assert not verify(Coarse(on="value"), Coarse(on="value", error=1e-7), images, tolerance=1e-9)
    exact = verify(Coarse(on="value"), Coarse(on="value"), images)
    assert (bool(exact), exact.tolerance) == (True, 1e-9)


def test_stored_numbers_in_float32_excuse_nothing(images: Tensor) -> None:
    result = verify(Coarse(on="stored"), Coarse(on="stored", error=1e-7), images)
    assert not result
    assert result.tolerance == 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_nudge_is_one_unit_in_the_last_place(dtype: torch.dtype) -> None:
    values = torch.tensor([1.5, -3.0, 1e-3], dtype=dtype).repeat(40, 1)
    moved = nudge(gather((values, torch.arange(40))), seed=0)
    steps = (moved.tensors[0] - values) / (torch.finfo(dtype).eps * 2 ** values.abs().log2().floor())
    assert set(steps.abs().flatten().tolist()) == {1.0}
    assert (steps > 0).any()
    assert (steps < 0).any()
    assert torch.equal(moved.tensors[1], torch.arange(40))
