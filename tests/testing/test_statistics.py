from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError
from bcos_fx.testing import norm_statistics_from_data_, randomise_


class Fresh(nn.Module):
    """With all that constructors leave useless: layer scale, zeroed last norm, zeroed head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.first = nn.BatchNorm2d(6, momentum=0.3)
        self.inner = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(6)
        self.layer_scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 4)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(self.conv(x)))
        x = x + self.layer_scale * self.last(self.inner(x))
        return self.head(self.drop(x.mean((2, 3))))


@pytest.fixture
def photos() -> Tensor:
    return torch.rand(8, 3, 9, 9)


def test_randomised_network_varies(photos: Tensor) -> None:
    network = Fresh().eval()
    assert float(network(photos).detach().std(0).max()) == 0
    assert randomise_(network, 1) is network
    outputs = network(photos).detach()
    assert float((outputs.amax(0) - outputs.amin(0)).max()) > 1e-2 * float(outputs.abs().max())
    assert float(network.layer_scale.detach().abs().mean()) > 0.1
    assert float(network.last.weight.detach().abs().mean()) > 0.1
    assert float(network.first.running_mean.abs().max()) > 0
    assert float(network.first.running_var.min()) >= 0.5


def test_randomising_is_reproducible_and_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    first, again = Fresh(), Fresh()
    torch.set_rng_state(before)
    randomise_(first, 1)
    randomise_(again, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))
    assert not torch.equal(randomise_(again, 2).conv.weight, first.conv.weight)


def test_weights_keep_activations_of_order_one() -> None:
    deep = randomise_(nn.Sequential(*(layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.ReLU()))), 0)
    out = deep(torch.randn(32, 64)).detach()
    assert 0.2 < float(out.square().mean().sqrt()) < 5


def test_statistics_are_those_of_the_data_in_order(photos: Tensor) -> None:
    """Each norm sees what eval mode will feed it: its predecessors normalised by the same batch."""
    network = norm_statistics_from_data_(randomise_(Fresh().double(), 0), photos.double()).eval()
    seen = network.conv(photos.double())
    assert torch.allclose(network.first.running_mean, seen.mean((0, 2, 3)), rtol=1e-12)
    assert torch.allclose(network.first.running_var, seen.transpose(0, 1).flatten(1).var(1), rtol=1e-12)
    # By the batch's biased variance, which eval mode replaces by the stored unbiased one.
    batch = copy.deepcopy(network.first).train()
    seen = network.inner(torch.relu(batch(seen)))
    assert torch.allclose(network.last.running_mean, seen.mean((0, 2, 3)), rtol=1e-10)


def test_what_a_norm_saw_before_is_forgotten(photos: Tensor) -> None:
    once, twice = randomise_(Fresh(), 0), randomise_(Fresh(), 0)
    norm_statistics_from_data_(once, photos)
    norm_statistics_from_data_(norm_statistics_from_data_(twice, photos + 3), photos)
    assert all(torch.equal(a, b) for a, b in zip(once.buffers(), twice.buffers(), strict=True))


def test_a_norm_called_twice_gets_the_average() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x + 4) + self.norm(x)

    x = torch.tensor([[0.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    network = norm_statistics_from_data_(Twice().double(), x)
    assert network.norm.running_mean is not None
    assert network.norm.running_mean.tolist() == [3.0, 5.0]


def test_nothing_but_statistics_changes(photos: Tensor) -> None:
    network = randomise_(Fresh(), 0).train()
    network.last.eval()
    flags = [module.training for module in network.modules()]
    parameters = [p.clone() for p in network.parameters()]
    before = torch.get_rng_state()
    norm_statistics_from_data_(network, (photos,))
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(parameters, network.parameters(), strict=True))
    assert (network.first.momentum, network.last.momentum) == (0.3, 0.1)


def test_one_value_per_channel_is_refused_and_all_is_restored() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    with pytest.raises(UsageError, match="no statistics"):
        norm_statistics_from_data_(network, torch.rand(1, 3))
    assert network[1].momentum == 0.1
    assert network[0].training
