from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.testing import randomise_
from bcos_fx.verification import verify
from tests.verification.subject import After, Before, Subject, made, some_photos, verdicts

DTYPES = [torch.float64, torch.float32]


@pytest.fixture
def subject() -> Subject:
    return made()


@pytest.fixture
def photos() -> Tensor:
    return some_photos()


def eps_dropped(net: Subject) -> nn.Module:
    net.norm.eps = 1e-12
    return net


def bias_dropped(net: Subject) -> nn.Module:
    net.grouped.bias = None
    return net


def weight_transposed(net: Subject) -> nn.Module:
    net.square.weight.data = net.square.weight.data.T.clone()
    return net


def kernel_flipped(net: Subject) -> nn.Module:
    net.first.weight.data = net.first.weight.data.flip(-1)
    return net


def scaled(net: Subject) -> nn.Module:
    net.norm.weight.data *= 1.01
    return net


def padding_lost(net: Subject) -> nn.Module:
    net.first.padding = (0, 0)
    return net


def padding_mode_lost(net: Subject) -> nn.Module:
    net.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="replicate")
    return net.train(False)


def groups_mixed(net: Subject) -> nn.Module:
    net.grouped.weight.data = net.grouped.weight.data.roll(4, 0)
    return net


def precision_lost(net: Subject) -> nn.Module:
    return Before(net, lambda x: x.to(torch.bfloat16).to(x.dtype))


def batch_coupled(net: Subject) -> nn.Module:
    net.norm.running_mean = net.norm.running_var = None
    return net


def ten_times(net: Subject) -> nn.Module:
    return After(net, lambda y: 10 * y)


def outputs_permuted(net: Subject) -> nn.Module:
    return After(net, lambda y: y.flip(1))


def samples_permuted(net: Subject) -> nn.Module:
    return After(net, lambda y: y.flip(0))


def one_sample_wrong(net: Subject) -> nn.Module:
    return After(net, lambda y: y + 0.01 * (torch.arange(len(y)) == 4).to(y)[:, None])


def broadcast_shape(net: Subject) -> nn.Module:
    return After(net, lambda y: y[None])


def another_structure(net: Subject) -> nn.Module:
    return After(net, lambda y: (y, y))


def not_finite(net: Subject) -> nn.Module:
    return After(net, lambda y: y.masked_fill(torch.arange(4) == 1, math.nan))


def infinite(net: Subject) -> nn.Module:
    return After(net, lambda y: y.masked_fill(torch.arange(4) == 1, math.inf))


def fails(net: Subject) -> nn.Module:
    return Before(net, lambda x: x[:, :2])


def nothing(net: Subject) -> nn.Module:
    return After(net, lambda y: None)


def gradient_halved(net: Subject) -> nn.Module:
    return Before(net, lambda x: x + (x.detach() - x) * 0.5)


def gradient_cut(net: Subject) -> nn.Module:
    return Before(net, lambda x: x.detach())


VALUE_MUTANTS = [
    eps_dropped,
    bias_dropped,
    weight_transposed,
    kernel_flipped,
    scaled,
    padding_lost,
    padding_mode_lost,
    groups_mixed,
    precision_lost,
    batch_coupled,
    ten_times,
    outputs_permuted,
    samples_permuted,
    one_sample_wrong,
    broadcast_shape,
    another_structure,
    not_finite,
    infinite,
    fails,
    nothing,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", [True, False], ids=["photos", "made up"])
@pytest.mark.parametrize("mutant", VALUE_MUTANTS)
def test_wrong_rewrite_is_rejected(
    subject: Subject, photos: Tensor, mutant: Callable[[Subject], nn.Module], given: bool, dtype: torch.dtype
) -> None:
    wrong = mutant(copy.deepcopy(subject))
    result = verify(subject, wrong, photos if given else None, dtype=dtype, gradients=False)
    assert not result
    assert result.tested
    assert result.error > result.tolerance
    assert verdicts(result)["eval, batch 5"] == "different"
    assert result.detail.startswith("different: ")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mutant", [gradient_halved, gradient_cut])
def test_wrong_gradient_is_rejected(
    subject: Subject, photos: Tensor, mutant: Callable[[Subject], nn.Module], dtype: torch.dtype
) -> None:
    wrong = mutant(copy.deepcopy(subject))
    result = verify(subject, wrong, photos, dtype=dtype)
    assert not result
    assert [name for name, verdict in verdicts(result).items() if verdict != "equal"] == ["input gradient"]
    assert verify(subject, wrong, photos, dtype=dtype, gradients=False)


def test_single_precision_inside_is_rejected_in_double(subject: Subject) -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float().to(x.dtype)

    wrong = nn.Sequential(Single(), copy.deepcopy(subject))
    assert not verify(subject, wrong)
    assert verify(subject, wrong, dtype=torch.float32)


def test_default_eps_is_noticed() -> None:
    original = randomise_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 0).eval()
    wrong = copy.deepcopy(original)
    wrong[1].eps = 0.0
    assert not verify(original, wrong, torch.rand(4, 3, 8, 8))
