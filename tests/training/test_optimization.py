"""Clipping against a loop over units, rates by hand, groups by name."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bcos_fx.training.optimization import clip_adaptively_, make_optimizer, parameter_groups, rate
from bcos_fx.training.recipe import Optimizer


def slow_clipped(weight: Tensor, gradient: Tensor, clipping: float) -> Tensor:
    """Unit by unit: a unit is a slice along the first axis, or a whole vector."""
    clipped = gradient.clone()
    longer = [size for size in weight.shape if size > 1]
    for unit in [...] if len(longer) <= 1 else range(len(weight)):
        norm = math.sqrt(sum(v * v for v in gradient[unit].flatten().tolist()))
        most = clipping * max(math.sqrt(sum(v * v for v in weight[unit].flatten().tolist())), 1e-3)
        if norm > most:
            clipped[unit] = gradient[unit] * (most / norm)
    return clipped


@given(
    st.sampled_from([(), (1,), (4,), (1, 5), (4, 1), (3, 5), (4, 2, 3, 3), (4, 1, 1, 1), (3, 4, 2)]),
    st.sampled_from([0.01, 0.3, 10.0]),
    st.integers(0, 99),
)
def test_clipping_is_that_of_a_loop_over_units(shape: tuple[int, ...], clipping: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameter = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    if len(shape) > 1:
        parameter.data[0] = 0  # a unit of norm 0 can be moved nevertheless
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    if shape:
        gradient[-1] = 0
    parameter.grad = gradient.clone()
    clip_adaptively_([parameter, nn.Parameter(torch.ones(2))], clipping)
    assert torch.allclose(parameter.grad, slow_clipped(parameter.detach(), gradient, clipping), rtol=1e-12)


def test_a_small_entry_of_a_vector_is_not_clipped_by_itself() -> None:
    """A norm's weight with one entry near 0: its gradient is held against the whole vector, as published."""
    parameter = nn.Parameter(torch.ones(16, dtype=torch.float64))
    parameter.data[0] = 1e-4
    parameter.grad = torch.zeros(16, dtype=torch.float64)
    parameter.grad[0] = 5e-3
    clip_adaptively_([parameter], 0.01)
    assert float(parameter.grad[0]) == 5e-3
    parameter.grad[0] = 1.0
    clip_adaptively_([parameter], 0.01)
    assert float(parameter.grad[0]) == pytest.approx(0.01 * float(parameter.detach().norm()), rel=1e-12)


def test_clipping_changes_no_short_gradient_and_no_direction() -> None:
    parameter = nn.Parameter(torch.full((1, 4), 100.0))
    parameter.grad = torch.tensor([[0.1, -0.2, 0.3, 0.4]])
    before = parameter.grad.clone()
    clip_adaptively_([parameter], 0.01)
    assert torch.equal(parameter.grad, before)
    parameter.grad *= 1000
    clip_adaptively_([parameter], 0.01)
    assert torch.allclose(parameter.grad.norm(), torch.tensor(2.0))  # 0.01 * |w| = 0.01 * 200
    assert torch.allclose(parameter.grad / parameter.grad.norm(), before / before.norm())


def test_rates_by_hand() -> None:
    options = Optimizer(warmup=1.0, schedule="cosine")
    rates = [rate(step, options, steps=12, steps_per_epoch=2) for step in range(13)]
    assert rates[:2] == pytest.approx([1 / 3, 2 / 3])
    assert rates[2] == 1
    assert rates[7] == pytest.approx(0.5)
    assert rates[12] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(rates[2:]))
    assert [rate(step, Optimizer(schedule="constant"), 9, 3) for step in range(9)] == [1.0] * 9


def test_only_weights_decay_and_b_has_its_own_rate() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    network[2].bias.requires_grad_(False)
    pressure = nn.Parameter(torch.tensor(1.0))
    options = Optimizer(lr=0.1, weight_decay=0.02, lr_of_b=5)
    groups = {group["name"]: group for group in parameter_groups(network, [pressure], options)}
    assert groups["weights"]["params"] == [network[0].weight, network[2].weight]
    assert groups["weights"]["weight_decay"] == 0.02
    assert groups["norms and biases"]["params"] == [network[0].bias, network[1].weight, network[1].bias]
    assert groups["norms and biases"]["weight_decay"] == groups["B"]["weight_decay"] == 0
    assert groups["B"]["lr"] == 0.5
    assert "B" not in [group["name"] for group in parameter_groups(network, [], options)]


def test_a_head_has_its_own_rate_and_every_parameter_one_group() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    options = Optimizer(lr=0.1, weight_decay=0.5, lr_of_head=4.0)
    groups = {group["name"]: group for group in parameter_groups(network, [], options, network[2])}
    assert {name: [p.shape for p in group["params"]] for name, group in groups.items()} == {
        "weights": [(4, 3)],
        "norms and biases": [(4,), (4,), (4,)],
        "weights of the head": [(2, 4)],
        "norms and biases of the head": [(2,)],
    }
    optimizer = make_optimizer(list(groups.values()), options)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [
        (0.1, 0.5),
        (0.1, 0.0),
        (0.4, 0.5),
        (0.4, 0.0),
    ]


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_optimisers_by_name(name: str, kind: str) -> None:
    options = Optimizer(name=name, lr=0.1, momentum=0.8)
    made = make_optimizer(parameter_groups(nn.Linear(2, 2), [], options), options)
    assert type(made).__name__ == kind
    assert made.param_groups[0]["lr"] == 0.1
    assert name != "sgd" or made.param_groups[0]["momentum"] == 0.8
