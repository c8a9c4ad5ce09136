"""Input encoding, constant-free normalisation, folding, and the logit layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcos_fx import nn as bnn
from bcos_fx.errors import UsageError
from bcos_fx.nn.construction import constructor_options

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
AFFINES: dict[str, tuple[Any, Any]] = {
    "diagonal": ([[2.0, 0, 0], [0, 3.0, 0], [0, 0, 4.0]], [0.1, -0.2, 0.3]),
    "bgr": ([[0, 0, 1.0], [0, 1.0, 0], [1.0, 0, 0]], [0.1, -0.2, 0.3]),
    "grey": ([[0.3, 0.6, 0.1]], [-0.4]),
    "wider": ([[1.0, 0, 2], [0, 1, 0], [3, 0, 1], [0, 0, 1]], [1.0, 2, 3, 4]),
}


def images(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64)


def affine_images(x: Tensor, matrix: Any, offset: Any) -> Tensor:
    """x' channel by channel, with its constant."""
    rows = [
        sum((a * x[:, c] for c, a in enumerate(row)), start=torch.zeros_like(x[:, 0])) + m
        for row, m in zip(matrix, offset, strict=True)
    ]
    return torch.stack(rows, 1)


def test_encoding_doubles_the_channels() -> None:
    x = images(2, 3, 4, 5)
    e = bnn.InputEncoding()(x)
    assert torch.equal(e[:, :3], x)
    assert torch.equal(e[:, 3:], 1 - x)
    assert torch.equal(bnn.InputEncoding(dim=-1)(x)[..., 5:], 1 - x)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 7), (2, 3, 4, 5), (2, 3, 2, 3, 4)])
def test_normalisation_is_the_affine_map_without_a_constant(name: str, shape: tuple[int, ...]) -> None:
    matrix, offset = AFFINES[name]
    layer = bnn.InputNormalisation(matrix, offset, dtype=torch.float64)
    x = images(*shape)
    wanted = affine_images(x, matrix, offset)
    y = layer(bnn.InputEncoding()(x))
    torch.testing.assert_close(y, torch.cat([wanted, -wanted], 1), rtol=1e-14, atol=1e-14)
    assert not layer(torch.zeros(2, 6, *shape[2:], dtype=torch.float64)).any()
    assert not list(layer.parameters())


def test_offsets_stay_on_their_own_channel_when_the_map_is_diagonal() -> None:
    layer = bnn.InputNormalisation.from_mean_std(MEAN, STD, dtype=torch.float64)
    for row in range(3):
        touched = layer.encoded[row].nonzero().flatten().tolist()
        assert touched == [row, row + 3]
        assert layer.encoded[row, row] == pytest.approx((1 - MEAN[row]) / STD[row], rel=1e-14)
        assert layer.encoded[row, row + 3] == pytest.approx(-MEAN[row] / STD[row], rel=1e-14)


def test_normalisation_is_rounded_once_and_round_trips() -> None:
    layer = bnn.InputNormalisation.from_mean_std(MEAN, STD)
    exact = bnn.InputNormalisation.from_mean_std(MEAN, STD, dtype=torch.float64)
    assert torch.equal(layer.encoded, exact.encoded.float())
    assert torch.equal(layer.double().encoded, exact.encoded)
    assert not layer.state_dict()
    fresh = bnn.InputNormalisation(**constructor_options(layer)).double()
    e = torch.rand(1, 6, 2, 2, dtype=torch.float64)
    assert torch.equal(fresh(e), layer(e))


@pytest.mark.parametrize("name", AFFINES)
def test_widened_and_folded_kernels_read_what_the_kernel_read(name: str) -> None:
    matrix, offset = AFFINES[name]
    x = images(2, 3, 6, 5)
    e, wanted = bnn.InputEncoding()(x), affine_images(x, matrix, offset)
    weight = torch.randn(4, len(offset), 3, 3, dtype=torch.float64)
    expected = F.conv2d(wanted, weight, padding=1)
    layer = bnn.InputNormalisation(matrix, offset, dtype=torch.float64)
    widened, folded = bnn.widen(weight), bnn.fold(weight, matrix, offset)
    torch.testing.assert_close(F.conv2d(layer(e), widened, padding=1), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(F.conv2d(e, folded, padding=1), expected, rtol=1e-12, atol=1e-12)
    flat = torch.randn(4, len(offset), dtype=torch.float64)
    expected = wanted[:, :, 0, 0] @ flat.T
    torch.testing.assert_close(e[:, :, 0, 0] @ bnn.fold(flat, matrix, offset).T, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("b", [1.0, 2.0, 3.0])
def test_widening_keeps_the_b_cos_function_too(b: float) -> None:
    plain = nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float64)
    narrow = bnn.BcosConv2d.from_plain(plain, b=b)
    wide = bnn.BcosConv2d(6, 4, 3, padding=1, b=b, dtype=torch.float64)
    wide.load_state_dict({"weight": bnn.widen(plain.weight.data), "bias": plain.bias.data})
    x = images(1, 3, 5, 5) - 0.5
    torch.testing.assert_close(wide(torch.cat([x, -x], 1)), narrow(x), rtol=1e-12, atol=1e-13)


def test_inputs_are_checked() -> None:
    with pytest.raises(UsageError, match="do not fit"):
        bnn.InputNormalisation([[1.0]], [1.0, 2.0])
    with pytest.raises(UsageError, match="not finite"):
        bnn.InputNormalisation([[float("nan")]], [1.0])
    for mean, std in (((0.5,), (0.0,)), ((0.5,), (1.0, 1.0)), ((float("inf"),), (1.0,))):
        with pytest.raises(UsageError):
            bnn.InputNormalisation.from_mean_std(mean, std)
    with pytest.raises(UsageError, match="InputEncoding"):
        bnn.InputNormalisation([[1.0, 0.0]], [0.0])(torch.rand(1, 3, 2, 2))
    with pytest.raises(UsageError, match="does not read"):
        bnn.fold(torch.ones(2, 4, 1, 1), [[1.0]], [0.0])


def test_logit_layer() -> None:
    x = torch.randn(2, 5)
    torch.testing.assert_close(bnn.LogitLayer(-2.0, 4.0)(x), x / 4 - 2)
    assert torch.equal(bnn.LogitLayer()(x), x)
    for options in ({"bias": float("nan")}, {"temperature": 0.0}, {"temperature": -1.0}):
        with pytest.raises(UsageError):
            bnn.LogitLayer(**options)


def test_every_layer_can_be_rebuilt_from_its_attributes() -> None:
    layers: list[nn.Module] = [
        bnn.InputEncoding(2), bnn.InputNormalisation([[1.0, 0.5]], [2.0]), bnn.LogitLayer(1.0, 2.0),
        bnn.BcosLinear(2, 3, False, b=1.5, scale="unit", eps=1e-3), bnn.BcosConv1d(2, 4, 3, padding="same", b=3),
        bnn.BcosConv2d(2, 4, (1, 3), 2, 1, groups=2, padding_mode="reflect"), bnn.BcosConv3d(1, 1, 1),
        bnn.BcosConvTranspose1d(2, 4, 3, 2, 1, 1, 2, False), bnn.BcosConvTranspose2d(1, 1, 2, dilation=2),
        bnn.BcosConvTranspose3d(1, 1, 2), bnn.BatchNormUncentred1d(3, 0.1, None, False),
        bnn.BatchNormUncentred2d(3, shift=False), bnn.BatchNormUncentred3d(3), bnn.LayerNorm((2, 3), centred=False),
        bnn.GroupNorm(2, 4, bias=False), bnn.InstanceNorm1d(3, affine=True), bnn.InstanceNorm2d(3, 0.1),
        bnn.InstanceNorm3d(3, centred=False), bnn.RMSNorm(3, 0.1),
        bnn.BcosLinear(2, 3, b=1.5, scale="unit", gain=False, eps_at="norm"), bnn.PositionNorm(3, bias=False),
    ]  # fmt: skip
    for layer in layers:
        again = type(layer)(**constructor_options(layer))
        assert repr(again) == repr(layer)
        assert constructor_options(again) == constructor_options(layer)
        again.load_state_dict(layer.state_dict())
