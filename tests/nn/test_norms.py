"""Norms: torch's function by default, the uncentred form against its definition."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcos_fx import nn as bnn
from bcos_fx.errors import UsageError
from bcos_fx.nn import functional
from bcos_fx.nn.construction import rebuilt

CLOSE = {"rtol": 1e-11, "atol": 1e-12}
BATCH_SHAPES = {1: [(6, 3), (4, 3, 5)], 2: [(4, 3, 5, 2)], 3: [(2, 3, 2, 3, 4)]}
BATCH = {
    1: (nn.BatchNorm1d, bnn.BatchNormUncentred1d),
    2: (nn.BatchNorm2d, bnn.BatchNormUncentred2d),
    3: (nn.BatchNorm3d, bnn.BatchNormUncentred3d),
}


def trained_batch_norm(rank: int, **options: Any) -> nn.Module:
    module = BATCH[rank][0](3, **options, dtype=torch.float64)
    for _ in range(3):
        module(3 * torch.randn(BATCH_SHAPES[rank][-1], dtype=torch.float64) + 2)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.5)
    return module.eval()


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None, "eps": 0.1}])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_batch_norm_is_torchs_in_eval(rank: int, options: dict[str, Any]) -> None:
    plain = trained_batch_norm(rank, **options)
    layer = BATCH[rank][1].from_plain(plain)
    assert not layer.training
    assert layer.weight is plain.weight
    assert layer.bias is plain.bias
    assert (layer.eps, layer.momentum, layer.affine) == (plain.eps, plain.momentum, plain.affine)
    assert torch.equal(layer.num_batches_tracked, plain.num_batches_tracked)
    assert layer.running_mean is plain.running_mean
    assert set(layer.state_dict()) == set(plain.state_dict())
    for shape in BATCH_SHAPES[rank]:
        x = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(layer(x), plain(x))
        unshifted = rebuilt(layer, shift=False)
        assert (unshifted.bias, unshifted.running_mean, unshifted.constant()) == (None, None, None)
        constant = layer.constant().view(-1, *[1] * (len(shape) - 2))
        torch.testing.assert_close(unshifted(x) + constant, plain(x), **CLOSE)


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_batch_norm_in_training_divides_and_does_not_centre(rank: int, momentum: float | None) -> None:
    plain = BATCH[rank][0](3, momentum=momentum, dtype=torch.float64)
    layer = BATCH[rank][1].from_plain(copy.deepcopy(plain))
    assert layer.training
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.normal_()
    bias, mean = layer.bias.clone(), layer.running_mean.normal_().clone()
    for _ in range(3):
        x = 2 * torch.randn(BATCH_SHAPES[rank][-1], dtype=torch.float64) + 5
        rows = x.transpose(0, 1).flatten(1)
        deviation = ((rows - rows.mean(1, keepdim=True)).square().mean(1) + layer.eps).sqrt()
        shape = (1, 3, *[1] * rank)
        constant = layer.bias - layer.weight * mean / (layer.running_var + layer.eps).sqrt()
        expected = x * (layer.weight / deviation).view(shape) + constant.view(shape)
        torch.testing.assert_close(layer(x), expected, **CLOSE)
        plain(x)
        torch.testing.assert_close(layer.running_var, plain.running_var, **CLOSE)
    assert torch.equal(layer.bias, bias)
    assert torch.equal(layer.running_mean, mean)
    assert torch.equal(layer.num_batches_tracked, plain.num_batches_tracked)


@pytest.mark.parametrize("piece", [4, 1 << 18])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_training_gradient_runs_through_the_variance(
    layout: torch.memory_format, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functional, "_PIECE", piece)
    layer = bnn.BatchNormUncentred2d(3, dtype=torch.float64)
    x = (torch.randn(2, 3, 2, 3, dtype=torch.float64) + 2).contiguous(memory_format=layout).requires_grad_()
    variance = x.detach().var((0, 2, 3))
    layer(x)
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * variance, **CLOSE)
    flat = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    for module, given in ((layer, x), (bnn.BatchNormUncentred1d(3, dtype=torch.float64), flat)):
        assert torch.autograd.gradcheck(module, (given,))
        assert torch.autograd.gradgradcheck(module, (given,))


def test_the_constant_has_gradients_in_training() -> None:
    layer = bnn.BatchNormUncentred1d(3, dtype=torch.float64)
    layer.running_mean.normal_()
    layer(torch.randn(5, 3, dtype=torch.float64)).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 5.0, dtype=torch.float64))


def test_batch_norm_refusals() -> None:
    with pytest.raises(UsageError, match="running statistics"):
        bnn.BatchNormUncentred2d.from_plain(nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(UsageError, match="exactly"):
        bnn.BatchNormUncentred2d.from_plain(nn.BatchNorm1d(3))
    with pytest.raises(UsageError, match="more than one value"):
        bnn.BatchNormUncentred1d(3)(torch.randn(1, 3))
    with pytest.raises(UsageError, match="shape"):
        bnn.BatchNormUncentred2d(3)(torch.randn(4, 3))


def test_sync_batch_norm_conversion_leaves_it_alone() -> None:
    layer = bnn.BatchNormUncentred2d(3)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(layer) is layer


def centring_norms() -> list[tuple[Any, nn.Module, tuple[int, ...]]]:
    shapes = {1: (4, 6, 5), 2: (3, 6, 4, 5), 3: (2, 6, 3, 2, 4)}
    instance = {
        1: (bnn.InstanceNorm1d, nn.InstanceNorm1d),
        2: (bnn.InstanceNorm2d, nn.InstanceNorm2d),
        3: (bnn.InstanceNorm3d, nn.InstanceNorm3d),
    }
    rows: list[tuple[Any, nn.Module, tuple[int, ...]]] = [
        (bnn.LayerNorm, nn.LayerNorm(5), (4, 3, 5)),
        (bnn.LayerNorm, nn.LayerNorm((3, 5), eps=0.1, bias=False), (4, 3, 5)),
        (bnn.LayerNorm, nn.LayerNorm(5, elementwise_affine=False), (5,)),
        (bnn.GroupNorm, nn.GroupNorm(2, 6, eps=0.1), (4, 6)),
        (bnn.GroupNorm, nn.GroupNorm(3, 6), (2, 6, 4, 3)),
        (bnn.GroupNorm, nn.GroupNorm(1, 6, affine=False), (2, 6, 4)),
    ]
    for rank, (ours, plain) in instance.items():
        rows.append((ours, plain(6, affine=True, eps=0.1), shapes[rank]))
        rows.append((ours, plain(6), shapes[rank]))
        rows.append((ours, plain(6, affine=True), shapes[rank][1:]))
    for _, module, _ in rows:
        for parameter in module.double().parameters():
            nn.init.normal_(parameter, 0.5)
    return rows


def slow_statistics(plain: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of x as the norm sees it, both in x's shape."""
    if isinstance(plain, nn.LayerNorm):
        dims = len(plain.normalized_shape)
        rows = x.reshape(*x.shape[: x.dim() - dims], -1).reshape(-1, *plain.normalized_shape).flatten(1)
    elif isinstance(plain, nn.GroupNorm):
        rows = x.reshape(x.shape[0] * plain.num_groups, -1)
    else:
        rank = int(type(plain).__name__[-2])
        rows = x.reshape(-1, x[(0,) * (x.dim() - rank)].numel())
    mean = rows.mean(1, keepdim=True)
    deviation = ((rows - mean).square().mean(1, keepdim=True) + plain.eps).sqrt()
    return mean.expand_as(rows).reshape(x.shape), deviation.expand_as(rows).reshape(x.shape)


def shaped(parameter: Tensor, plain: nn.Module, x: Tensor) -> Tensor:
    if isinstance(plain, nn.LayerNorm):
        return parameter
    rank = x.dim() - 2 if isinstance(plain, nn.GroupNorm) else int(type(plain).__name__[-2])
    return parameter.view(-1, *[1] * rank)


def test_centred_norms_are_torchs_and_decompose() -> None:
    for cls, plain, shape in centring_norms():
        layer = cls.from_plain(plain.eval())
        assert not layer.training
        assert layer.weight is plain.weight
        assert layer.bias is plain.bias
        x = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(layer(x), plain(x))
        torch.testing.assert_close(layer.recompose(*layer.decompose(x)), plain(x), **CLOSE)


def test_uncentred_norms_keep_the_mean() -> None:
    for cls, plain, shape in centring_norms():
        layer = cls.from_plain(plain, centred=False)
        x = torch.randn(shape, dtype=torch.float64) + 3
        _, deviation = slow_statistics(plain, x)
        expected = x / deviation
        if plain.weight is not None:
            expected = expected * shaped(plain.weight, plain, x)
        if plain.bias is not None:
            expected = expected + shaped(plain.bias, plain, x)
        torch.testing.assert_close(layer(x), expected, **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_position_norm_normalises_each_position_by_itself(centred: bool, bias: bool) -> None:
    plain = nn.LayerNorm(6, eps=0.1, bias=bias, dtype=torch.float64)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, 0.5)
    layer = bnn.PositionNorm.from_plain(plain, centred=centred)
    assert layer.weight is plain.weight
    for shape in ((2, 6), (2, 6, 3), (2, 6, 3, 4)):
        x = torch.randn(shape, dtype=torch.float64) + 3
        expected = torch.empty_like(x)
        for place in itertools.product(range(2), *map(range, shape[2:])):
            index = (place[0], slice(None), *place[1:])
            column = x[index]
            deviation = ((column - column.mean()).square().mean() + 0.1).sqrt()
            expected[index] = (column - column.mean() if centred else column) / deviation * plain.weight
            if bias:
                expected[index] += plain.bias
        torch.testing.assert_close(layer(x), expected, **CLOSE)
        torch.testing.assert_close(layer.frozen(x), expected, **CLOSE)
    if bias:
        torch.testing.assert_close(layer.constant_like(x), plain.bias.view(6, 1, 1), **CLOSE)


@pytest.mark.parametrize("centred", [True, False])
def test_frozen_norms_are_linear(centred: bool) -> None:
    for cls, plain, shape in centring_norms():
        layer = cls.from_plain(plain, centred=centred)
        layer.bias = None
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        y = layer.frozen(x)
        torch.testing.assert_close(y, layer(x), **CLOSE)
        projection = torch.randn_like(y)
        (weight,) = torch.autograd.grad((y * projection).sum(), x)
        torch.testing.assert_close((weight * x).sum(), (y * projection).sum(), **CLOSE)


def test_rms_norm() -> None:
    for plain in (nn.RMSNorm(5), nn.RMSNorm((3, 5), eps=0.1), nn.RMSNorm(5, elementwise_affine=False)):
        plain.double()
        layer = bnn.RMSNorm.from_plain(plain)
        assert layer.weight is plain.weight
        x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
        assert torch.equal(layer(x), plain(x))
        frozen = layer.frozen(x)
        torch.testing.assert_close(frozen, plain(x), **CLOSE)
        (weight,) = torch.autograd.grad(frozen.sum(), x)
        torch.testing.assert_close((weight * x).sum(), frozen.sum(), **CLOSE)


def test_norms_without_bias_and_in_sixteen_bits() -> None:
    for layer in (
        bnn.LayerNorm(6, bias=False),
        bnn.GroupNorm(2, 6, bias=False, centred=False),
        bnn.InstanceNorm1d(6, affine=True, bias=False, centred=False),
    ):
        assert layer.bias is None
        x = torch.randn(2, 6, 6)
        exact = layer(x)
        low = layer.to(torch.bfloat16)(x.to(torch.bfloat16))
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.05)


def test_norm_refusals() -> None:
    with pytest.raises(UsageError, match="batch norm in eval"):
        bnn.InstanceNorm2d(3, track_running_stats=True)
    with pytest.raises(UsageError, match="batch norm in eval"):
        bnn.InstanceNorm2d.from_plain(nn.InstanceNorm2d(3, track_running_stats=True))
    with pytest.raises(UsageError, match="exactly"):
        bnn.LayerNorm.from_plain(nn.RMSNorm(3))
    with pytest.raises(UsageError, match="exactly"):
        bnn.RMSNorm.from_plain(nn.LayerNorm(3))


def test_a_batch_norm_of_half_inputs_keeps_a_factor_that_half_cannot_hold() -> None:
    layer = bnn.BatchNormUncentred2d(2, eps=1e-12, shift=False).eval()
    layer.running_var.fill_(1e-12)
    x = torch.full((1, 2, 3, 3), 1e-3, dtype=torch.float16)
    y = layer(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), layer(x.float()), rtol=1e-3, atol=0)
