"""The view's W(x) and every constant's contribution, against explicit matrices multiplied in order."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx import nn as bnn
from bcos_fx.explanation.completeness import all_numbers, check_completeness
from bcos_fx.explanation.view import view_of
from bcos_fx.testing import randomise_
from tests.explanation import slow_dynamic_weights as slow
from tests.explanation.slow_dynamic_weights import Traced
from tests.explanation.view_networks import Net

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def compare(network: nn.Module, x: Tensor, expected: Traced) -> None:
    """One sample, all numbers."""
    found = view_of(network, x).dynamic_weights([x], all_numbers(most=10_000))
    torch.testing.assert_close(found.output[0], expected.value, **CLOSE)
    torch.testing.assert_close(found.weights[0].flatten(1), expected.matrix, **CLOSE)
    assert found.constants.keys() == expected.constants.keys()
    for name, values in found.constants.items():
        torch.testing.assert_close(values[0], expected.constants[name], **CLOSE)


def image(*shape: int) -> Tensor:
    return torch.randn(1, *shape, dtype=torch.float64)


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.repeat_interleave(len(like) // len(values)).detach()


def chain(b: float, scale: str) -> tuple[nn.Module, dict[str, Tensor]]:
    layers = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    randomise_(layers).double().eval()
    layers[0] = bnn.BcosConv2d.from_plain(layers[0], b=b, scale=scale)
    layers[3] = bnn.BcosLinear.from_plain(layers[3], b=b, scale=scale)
    return layers, {name: value.detach().clone() for name, value in layers.state_dict().items()}


def chain_by_hand(state: dict[str, Tensor], x: Tensor, b: float, scale: str) -> Traced:
    """After the ReLU the patch of a linear unit is its whole input: zeros add nothing."""
    matrix, _ = slow.conv_matrix(state["0.weight"], (5, 5))
    y = slow.bcos(Traced.of(x), matrix, b, scale)
    y = y.plus("0.bias", per_channel(state["0.bias"], y.value))
    y = slow.activated(y, torch.relu)
    return slow.bcos(y, state["3.weight"], b, scale).plus("3.bias", state["3.bias"])


@pytest.mark.parametrize("scale", ["cosine", "raw", "unit"])
@pytest.mark.parametrize("b", [1.0, 1.5, 2.0])
def test_layers_with_alignment(b: float, scale: str) -> None:
    network, state = chain(b, scale)
    x = image(2, 5, 5)
    compare(network, x, chain_by_hand(state, x, b, scale))


def test_a_b_cos_layer_that_is_not_held_fixed_is_caught_though_its_sums_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bias-free B-cos layer is homogeneous: W = its true gradient is complete as well, and twice too large."""
    network, state = chain(2.0, "cosine")
    x = image(2, 5, 5)
    monkeypatch.setattr(bnn.FrozenLayer, "forward", lambda self, value: self.layer(value))
    assert check_completeness(view_of(network, x), [x]).ok
    with pytest.raises(AssertionError):
        compare(network, x, chain_by_hand(state, x, 2.0, "cosine"))


CONVOLUTIONS = {
    "padded": {"padding": 1},
    "strided": {"stride": 2, "padding": 1},
    "dilated": {"dilation": 2, "padding": 2},
    "grouped": {"groups": 2},
    "depthwise": {"groups": 4, "padding": 1},
}


@pytest.mark.parametrize("name", list(CONVOLUTIONS))
@pytest.mark.parametrize("b", [1.0, 2.0])
def test_convolutions(name: str, b: float) -> None:
    options = CONVOLUTIONS[name]
    layer = randomise_(nn.Conv2d(4, 4, 3, **options)).double()
    x = image(4, 5, 5)
    matrix, _ = slow.conv_matrix(layer.weight.detach(), (5, 5), **options)
    whole = layer.weight.detach().flatten(1).norm(dim=1)
    y = slow.bcos(Traced.of(x), matrix, b, "cosine", per_channel(whole, matrix))
    expected = y.plus("0.bias", per_channel(layer.bias, y.value))
    compare(nn.Sequential(bnn.BcosConv2d.from_plain(layer, b=b)).eval(), x, expected)


def test_a_transposed_convolution() -> None:
    layer = randomise_(nn.ConvTranspose2d(3, 2, 3, stride=2)).double()
    x = image(3, 3, 3)
    matrix, _ = slow.transposed_matrix(layer.weight.detach(), (3, 3), stride=2)
    y = Traced.of(x).mapped(matrix)
    compare(nn.Sequential(layer).eval(), x, y.plus("0.bias", per_channel(layer.bias, y.value)))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_and_layer_norms(groups: int) -> None:
    norm = nn.GroupNorm(groups, 4, eps=0.1)
    layers = randomise_(nn.Sequential(nn.Conv2d(2, 4, 3), norm)).double().eval()
    x = image(2, 5, 5)
    matrix, _ = slow.conv_matrix(layers[0].weight.detach(), (5, 5))
    y = Traced.of(x).mapped(matrix)
    y = slow.normalised(y.plus("0.bias", per_channel(layers[0].bias, y.value)), groups, 0.1)
    y = y.weighted(per_channel(norm.weight, y.value))
    compare(layers, x, y.plus("1.bias", per_channel(norm.bias, y.value)))


def test_batch_norm() -> None:
    layers = randomise_(nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4))).double().eval()
    x, norm = image(2, 5, 5), layers[1]
    matrix, _ = slow.conv_matrix(layers[0].weight.detach(), (5, 5))
    y = Traced.of(x).mapped(matrix)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    shift = norm.bias - scale * norm.running_mean
    compare(layers, x, y.weighted(per_channel(scale, y.value)).plus("1.shift", per_channel(shift, y.value)))


PHI = {
    "gelu": (nn.GELU, lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    "silu": (nn.SiLU, lambda x: x / (1 + torch.exp(-x))),
    "hardswish": (nn.Hardswish, lambda x: x * (x + 3).clamp(0, 6) / 6),
    "tanh": (nn.Tanh, torch.tanh),
    "relu6": (nn.ReLU6, lambda x: x.clamp(0, 6)),
}


@pytest.mark.parametrize("name", list(PHI))
def test_activations(name: str) -> None:
    made, phi = PHI[name]
    layers = randomise_(nn.Sequential(nn.Linear(6, 5), made(), nn.Linear(5, 3))).double().eval()
    x = image(6)
    weights = [layer.weight.detach() for layer in (layers[0], layers[2])]
    y = slow.activated(Traced.of(x).mapped(weights[0]).plus("0.bias", layers[0].bias.detach()), phi)
    compare(layers, x, y.mapped(weights[1]).plus("2.bias", layers[2].bias.detach()))


def test_a_gate_and_a_residual() -> None:
    network = randomise_(
        Net(lambda n, x: n.v(x) * torch.sigmoid(n.g(x)) + x, v=nn.Linear(4, 4), g=nn.Linear(4, 4))
    ).double()
    x = image(4)
    v = Traced.of(x).mapped(network.v.weight.detach()).plus("v.bias", network.v.bias.detach())
    gate = torch.sigmoid(network.g(x)).detach().flatten()
    compare(network, x, v.weighted(gate).with_(Traced.of(x)))


def _attend(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.exp(torch.stack([torch.stack([a @ b for b in k]) for a in q]) / math.sqrt(q.shape[1]))
    return scores / scores.sum(1, keepdim=True)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "call": lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    "written out": lambda q, k, v: torch.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[2]), -1) @ v,
}


@pytest.mark.parametrize("spelling", list(ATTENTION))
def test_attention(spelling: str) -> None:
    attend = ATTENTION[spelling]
    parts = {name: nn.Linear(4, 4) for name in "qkv"}
    network = randomise_(Net(lambda n, x: attend(n.q(x), n.k(x), n.v(x)), **parts)).double()
    x = image(3, 4)
    with torch.no_grad():
        mixing = _attend(network.q(x)[0], network.k(x)[0])
    each = torch.block_diag(*[network.v.weight.detach()] * 3)
    v = Traced.of(x).mapped(each).plus("v.bias", network.v.bias.detach().repeat(3))
    compare(network, x, v.mapped(torch.kron(mixing, torch.eye(4, dtype=x.dtype))))


@pytest.mark.parametrize("kind", ["max", "average"])
def test_pooling(kind: str) -> None:
    layer = randomise_(nn.Conv2d(1, 2, 2)).double()
    pool = nn.MaxPool2d(2) if kind == "max" else nn.AvgPool2d(2)
    x = image(1, 5, 5)
    matrix, _ = slow.conv_matrix(layer.weight.detach(), (5, 5))
    y = Traced.of(x).mapped(matrix)
    y = y.plus("0.bias", per_channel(layer.bias, y.value))
    places = torch.arange(32).reshape(2, 2, 2, 2, 2).permute(0, 1, 3, 2, 4).reshape(8, 4)
    pooling = torch.zeros(8, 32, dtype=x.dtype)
    for row, window in enumerate(places):
        chosen = window[y.value[window].argmax()] if kind == "max" else window
        pooling[row, chosen] = 1 if kind == "max" else 0.25
    compare(nn.Sequential(layer, pool).eval(), x, y.mapped(pooling))


def test_in_a_network_of_selections_w_is_the_gradient_of_the_original() -> None:
    """Folded back to RGB: W[:, :3] - W[:, 3:], with x = (image - mean)/std, is the original's gradient over std."""
    original = randomise_(
        nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
        )
    ).double().eval()  # fmt: skip
    mean, std = torch.tensor([0.5, 0.4, 0.3]).double(), torch.tensor([0.2, 0.3, 0.4]).double()
    images = torch.rand(3, 3, 12, 12).double()
    network = bcos_fx.bcosify(
        original, example_inputs=images, recipe="equivalent", mean=mean.tolist(), std=std.tolist(), verified=False
    ).double()
    found = view_of(network).dynamic_weights([images], all_numbers(4))
    given = ((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).requires_grad_()
    output = original(given)
    for k in range(4):
        (gradient,) = torch.autograd.grad(output[:, k].sum(), given, retain_graph=True)
        folded = found.weights[:, k, :3] - found.weights[:, k, 3:]
        torch.testing.assert_close(folded, gradient / std.view(3, 1, 1), **CLOSE)
