"""B-cos layers against slow references, over the grid of options."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcos_fx import nn as bnn
from bcos_fx.errors import UsageError
from bcos_fx.nn.functional import default_eps
from tests.nn import slow_layers

BS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
SCALES = ("cosine", "raw", "unit")
SIZES = {1: (7,), 2: (6, 5), 3: (4, 5, 4)}
CONVS = {1: bnn.BcosConv1d, 2: bnn.BcosConv2d, 3: bnn.BcosConv3d}
TRANSPOSED = {1: bnn.BcosConvTranspose1d, 2: bnn.BcosConvTranspose2d, 3: bnn.BcosConvTranspose3d}
EPS = default_eps(torch.float64)

CONV_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "pixel": {"kernel_size": 1},
    "pixel, stride": {"kernel_size": 1, "stride": 2, "bias": False},
    "pixel, padded": {"kernel_size": 1, "padding": 1},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": False},
    "dilation": {"kernel_size": 2, "dilation": 2, "padding": 1},
    "groups": {"kernel_size": 2, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4, "out_channels": 8},
    "same": {"kernel_size": 2, "padding": "same", "dilation": 1},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "reflect": {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"},
    "replicate": {"kernel_size": 3, "padding": 2, "padding_mode": "replicate", "groups": 2},
    "circular": {"kernel_size": 3, "padding": "same", "padding_mode": "circular"},
}
TRANSPOSED_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3},
    "pixel": {"kernel_size": 1, "bias": False},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    "groups": {"kernel_size": 2, "stride": 2, "groups": 2},
    "dilation": {"kernel_size": 2, "dilation": 2, "padding": 1, "output_padding": 1, "groups": 4, "bias": False},
}


def made(cls: type[bnn.BcosLayer], options: dict[str, Any], **bcos: Any) -> Any:
    options = {"in_channels": 4, "out_channels": 4} | options
    layer = cls(**options, **bcos, dtype=torch.float64)
    if layer.gain is not None:
        layer.gain.data.mul_(torch.linspace(0.5, -1.5, len(layer.gain)))
    return layer


def effective_weight(layer: Any) -> Tensor:
    """The kernel that the layer stands for: under ``unit``, gain times the directions."""
    if layer.gain is None:
        return layer.weight
    weight = layer.weight
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        parts = [part.transpose(0, 1) for part in weight.chunk(layer.groups, 0)]
        rows = torch.cat(parts)
    else:
        rows = weight
    rows = torch.stack([g * row / row.square().sum().sqrt() for g, row in zip(layer.gain, rows, strict=True)])
    if rows.shape == weight.shape and not isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return rows
    return torch.cat([part.transpose(0, 1) for part in rows.chunk(layer.groups, 0)])


def reference(layer: Any, x: Tensor, output_padding: tuple[int, ...] | None = None) -> Tensor:
    common: dict[str, Any] = {"b": layer.b, "scale": layer.scale, "eps": EPS if layer.eps is None else layer.eps}
    weight = effective_weight(layer)
    if isinstance(layer, nn.Linear):
        return slow_layers.linear(x, weight, layer.bias, **common)
    common |= {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        extra = layer.output_padding if output_padding is None else output_padding
        return slow_layers.conv_transpose(x, weight, layer.bias, padding=layer.padding, output_padding=extra, **common)
    if layer.padding == "same":
        total = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = [0] * len(layer.stride) if layer.padding == "valid" else list(layer.padding)
    return slow_layers.conv(x, weight, layer.bias, before=before, after=after, mode=layer.padding_mode, **common)


def assert_same_function(layer: Any, x: Tensor, expected: Tensor) -> None:
    """Values to 1e-12 and gradients of a random projection, with respect to input and parameters, to 1e-9."""
    actual = layer(x)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    projection = torch.randn_like(expected)
    wanted = [x, *layer.parameters()]
    ours = torch.autograd.grad((actual * projection).sum(), wanted)
    theirs = torch.autograd.grad((expected * projection).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("b", BS)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_the_definition(b: float, scale: str, bias: bool) -> None:
    layer = bnn.BcosLinear(5, 3, bias, b=b, scale=scale, dtype=torch.float64)
    for shape in ((5,), (4, 5), (2, 3, 5)):
        x = inputs(*shape)
        assert_same_function(layer, x, reference(layer, x))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # torch's own, of any such convolution
@pytest.mark.parametrize("option", CONV_OPTIONS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolution_is_the_definition(rank: int, option: str) -> None:
    combinations = itertools.product(BS, SCALES) if rank < 3 else [(1.0, "unit"), (1.25, "raw"), (2.0, "cosine")]
    for b, scale in combinations:
        layer = made(CONVS[rank], CONV_OPTIONS[option], b=b, scale=scale)
        x = inputs(2, 4, *SIZES[rank])
        assert_same_function(layer, x, reference(layer, x))


@pytest.mark.parametrize("option", TRANSPOSED_OPTIONS)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolution_is_the_definition(rank: int, option: str) -> None:
    combinations = itertools.product(BS, SCALES) if rank < 2 else [(1.25, "unit"), (1.5, "raw"), (2.0, "cosine")]
    for b, scale in combinations:
        layer = made(TRANSPOSED[rank], TRANSPOSED_OPTIONS[option], b=b, scale=scale)
        x = inputs(2, 4, *(min(s, 4 if rank < 3 else 2) for s in SIZES[rank]))
        assert_same_function(layer, x, reference(layer, x))


def test_transposed_convolution_takes_output_size() -> None:
    layer = made(bnn.BcosConvTranspose2d, {"kernel_size": 3, "stride": 2})
    x = inputs(1, 4, 3, 3)
    y = layer(x, output_size=(8, 7))
    assert y.shape[2:] == (8, 7)
    torch.testing.assert_close(y, reference(layer, x, (1, 0)), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer.frozen(x, (8, 7)), y, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_eps_is_inside_the_root(eps: float) -> None:
    layer = made(bnn.BcosConv2d, {"kernel_size": 3, "padding": 1}, eps=eps)
    x = inputs(1, 4, 5, 5)
    torch.testing.assert_close(layer(x), reference(layer, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("b", [1.5, 2.0])
@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_eps_can_be_added_to_the_norm(b: float, eps: float) -> None:
    layer = bnn.BcosLinear(5, 3, False, b=b, scale="unit", gain=False, eps=eps, eps_at="norm", dtype=torch.float64)
    x = inputs(4, 5).detach()
    x[0] = 0
    x.requires_grad_()
    rows = []
    for row in x:
        norm = math.sqrt(sum(float(v) ** 2 for v in row.tolist())) + eps
        weights = [w / w.square().sum().sqrt() for w in layer.weight]
        rows.append(torch.stack([(row @ w) * ((row @ w).abs() / norm) ** (b - 1) for w in weights]))
    torch.testing.assert_close(layer(x), torch.stack(rows), rtol=1e-12, atol=1e-13)
    assert bool(torch.isfinite(torch.autograd.grad(layer(x).sum(), x)[0]).all())
    assert torch.autograd.gradcheck(layer, (x.detach()[1:].requires_grad_(),))


@pytest.mark.parametrize("b", [1.0, 2.0])
def test_unit_weights_without_a_gain(b: float) -> None:
    options = {"kernel_size": 3, "padding": 1, "groups": 2, "bias": False}
    layer = made(bnn.BcosConv2d, options, b=b, scale="unit", gain=False)
    assert dict(layer.named_parameters()).keys() == {"weight"}
    gained = made(bnn.BcosConv2d, options, b=b, scale="unit")
    gained.weight, gained.gain.data[:] = layer.weight, 1.0
    x = inputs(2, 4, 5, 5)
    torch.testing.assert_close(layer(x), reference(gained, x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer.frozen(x), layer(x), rtol=1e-12, atol=1e-13)


def plain_layers() -> list[tuple[type[bnn.BcosLayer], nn.Module, tuple[int, ...]]]:
    rows: list[tuple[type[bnn.BcosLayer], nn.Module, tuple[int, ...]]] = [(bnn.BcosLinear, nn.Linear(4, 3), (2, 4))]
    for family, options in ((CONVS, CONV_OPTIONS), (TRANSPOSED, TRANSPOSED_OPTIONS)):
        for rank, cls in family.items():
            for option in options.values():
                settings = {"in_channels": 4, "out_channels": 4} | option
                rows.append((cls, cls.plain_class(**settings), (2, 4, *SIZES[rank])))
    return rows


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_from_plain_shares_parameters_and_keeps_every_bit_at_b_1() -> None:
    for cls, plain, shape in plain_layers():
        plain.eval()
        for scale in SCALES:
            state = torch.get_rng_state()
            layer = cls.from_plain(plain, scale=scale)
            assert torch.equal(state, torch.get_rng_state())
            assert layer.weight is plain.weight
            assert layer.bias is plain.bias
            assert not layer.training
            for name in (*cls.plain_options, "b", "scale", "eps"):
                assert getattr(layer, name) == getattr(plain, name, getattr(layer, name))
            x = torch.randn(shape)
            if scale != "unit":
                assert torch.equal(layer(x), plain(x))
            torch.testing.assert_close(layer(x), plain(x), rtol=1e-5, atol=1e-5)


def test_from_plain_unit_starts_as_cosine() -> None:
    plain = nn.Conv2d(4, 6, 3, groups=2, dtype=torch.float64)
    x = inputs(2, 4, 5, 5)
    unit, cosine = (bnn.BcosConv2d.from_plain(plain, b=2.0, scale=scale) for scale in ("unit", "cosine"))
    torch.testing.assert_close(unit(x), cosine(x), rtol=1e-12, atol=1e-14)


def test_from_plain_refuses_other_classes() -> None:
    class Mine(nn.Conv2d):
        pass

    for module in (nn.Conv1d(1, 1, 1), Mine(1, 1, 1), nn.Identity(), bnn.BcosConv2d(1, 1, 1)):
        with pytest.raises(UsageError, match=r"exactly torch\.nn\.Conv2d"):
            bnn.BcosConv2d.from_plain(module)
    module = nn.Conv2d(1, 1, 1)
    del module.weight
    module.weight = torch.ones(1, 1, 1, 1)
    with pytest.raises(UsageError, match="not a Parameter"):
        bnn.BcosConv2d.from_plain(module)


@pytest.mark.parametrize("b", [0.5, 0.0, float("nan"), float("inf")])
def test_b_is_validated_at_construction_and_assignment(b: float) -> None:
    with pytest.raises(UsageError, match="B is"):
        bnn.BcosLinear(2, 2, b=b)
    layer = bnn.BcosLinear(2, 2)
    with pytest.raises(UsageError, match="B is"):
        layer.b = b
    assert layer.b == 2.0


def test_other_options_are_validated() -> None:
    with pytest.raises(UsageError, match="scale"):
        bnn.BcosLinear(2, 2, scale="none")
    with pytest.raises(UsageError, match="eps"):
        bnn.BcosLinear(2, 2, eps=0.0)
    with pytest.raises(UsageError, match="eps_at"):
        bnn.BcosLinear(2, 2, eps_at="outside")


def test_b_can_be_raised_later_and_is_shown() -> None:
    layer = bnn.BcosConv2d.from_plain(nn.Conv2d(2, 3, 3))
    layer.b = 2
    other = bnn.BcosConv2d.from_plain(layer_plain := nn.Conv2d(2, 3, 3), b=2.0)
    layer_plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 2, 5, 5)
    assert torch.equal(layer(x), other(x))
    assert "b=2, scale=cosine" in repr(layer)


def test_copies_and_states_round_trip() -> None:
    for scale in SCALES:
        layer = bnn.BcosConv2d(4, 6, 3, groups=2, b=1.5, scale=scale)
        x = torch.randn(2, 4, 6, 6)
        twin = copy.deepcopy(layer)
        assert twin.b == 1.5
        assert torch.equal(twin(x), layer(x))
        assert twin.weight is not layer.weight
        fresh = bnn.BcosConv2d(4, 6, 3, groups=2, b=1.5, scale=scale)
        fresh.load_state_dict(layer.state_dict())
        assert torch.equal(fresh(x), layer(x))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("b", BS)
def test_decomposition_is_the_forward_and_its_gradient_the_dynamic_weight(b: float, scale: str) -> None:
    layer = made(bnn.BcosConv2d, {"kernel_size": 3, "padding": 1, "groups": 2}, b=b, scale=scale)
    x = inputs(1, 4, 4, 4)
    torch.testing.assert_close(layer.recompose(*layer.decompose(x)), layer(x), rtol=1e-12, atol=1e-14)
    frozen = layer.frozen(x)
    torch.testing.assert_close(frozen, layer(x), rtol=1e-12, atol=1e-14)
    projection = torch.randn_like(frozen)
    (weight,) = torch.autograd.grad((frozen * projection).sum(), x)
    constants = (projection * layer.bias.view(-1, 1, 1)).sum()
    torch.testing.assert_close((weight * x).sum() + constants, (frozen * projection).sum(), rtol=1e-12, atol=1e-12)
    # A B-cos layer is homogeneous, so that alone would hold for its ordinary gradient as well.
    product = nn.functional.conv2d(x, effective_weight(layer), None, padding=1, groups=2)
    factor = ((frozen - layer.bias.view(-1, 1, 1)) / product).detach()
    (expected,) = torch.autograd.grad((product * factor * projection).sum(), x)
    torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-11)
