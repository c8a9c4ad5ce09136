"""Layers of explanation views: the gradient by the input alone, and values that are the network's to the last bit."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx import nn as bnn
from bcos_fx.explanation.view import view_of
from bcos_fx.nn.held import frozen_convolution
from bcos_fx.testing import norm_statistics_from_data_

SHAPES = [
    (kernel, stride, padding, size)
    for kernel, stride, padding, size in itertools.product((1, 2, 3, 4, 7), (1, 2, 3, 4), (0, 1, 2), (8, 9, 11))
    if kernel > padding
]


@pytest.mark.parametrize(("inputs", "groups"), [(3, 1), (12, 1), (12, 4)])
def test_the_gradient_by_the_input_is_torchs(inputs: int, groups: int) -> None:
    torch.manual_seed(0)
    for kernel, stride, padding, size in SHAPES:
        x = torch.randn(2, inputs, size, size + 1, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(4, inputs // groups, kernel, kernel, dtype=torch.float64)
        pair, margins = (stride, stride), (padding, padding)
        wanted = nn.functional.conv2d(x, weight, None, pair, margins, 1, groups)
        found = frozen_convolution(x, weight, pair, margins, (1, 1), groups)
        assert torch.equal(found, wanted)
        projection = torch.randn_like(wanted)
        (right,) = torch.autograd.grad(wanted, x, projection)
        (ours,) = torch.autograd.grad(found, x, projection)
        torch.testing.assert_close(ours, right, rtol=1e-12, atol=1e-12, msg=f"{kernel, stride, padding, size}")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    layers += [nn.Conv2d(16, 8, 1, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    module = nn.Sequential(*layers, nn.Linear(8, 4))
    return norm_statistics_from_data_(module, torch.rand(4, 3, 16, 16)).eval()


@pytest.mark.parametrize("scale", ["cosine", "raw", "unit"])
def test_a_view_with_norms_in_its_layers_gives_the_networks_own_bits(scale: str) -> None:
    images = torch.rand(3, 3, 16, 16)
    model = bcos_fx.bcosify(network(), example_inputs=images, verified=False, scale=scale)
    view = view_of(model, images)
    fused = [m for m in view.graph_module.modules() if isinstance(m, bnn.FrozenLayer) and m.norm is not None]
    assert len(fused) == 3
    found = view.dynamic_weights([images], lambda value: value[:, :2])
    assert torch.equal(found.value, model(images))
    assert bcos_fx.explain(model, images, [[0, 1]] * 3).complete


@pytest.mark.parametrize("source", ["1", "2", "4"])
def test_what_is_explained_by_a_norm_or_a_rectifier_is_not_overwritten(source: str) -> None:
    images = torch.rand(2, 3, 16, 16)
    model = bcos_fx.bcosify(network(), example_inputs=images, verified=False)
    found = bcos_fx.explain(model, images, 0, source=source)
    assert found.complete
    wanted: list[torch.Tensor] = []
    handle = model.get_submodule(source).register_forward_hook(lambda module, given, y: wanted.append(y.clone()))
    model(images)
    handle.remove()
    torch.testing.assert_close(found.encoded, wanted[0])
