"""Completeness of torchvision's architectures, and W against autograd of the original where it has selections only."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.convert import BcosNetwork
from bcos_fx.explanation.completeness import all_numbers, check_completeness
from bcos_fx.explanation.view import view_of
from bcos_fx.testing import norm_statistics_from_data_, unit_gain_from_data_

pytestmark = [pytest.mark.vision, pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")]

FAST = {
    "resnet18, B = 1, biases, cosine",
    "resnet18, B = 1.5, biases, unit",
    "resnet18, B = 2, no biases, raw",
    "mobilenet_v2, B = 1.5, biases, cosine",
}
MODELS = ("resnet18", "mobilenet_v2", "densenet121", "resnet50", "vgg11", "vgg11_bn", "googlenet", "squeezenet1_1")
RECIPES = {
    "B = 1, biases": {"recipe": "equivalent"},
    "B = 1.5, biases": {"recipe": "bcosification", "b": 1.5, "bias": "keep", "logit_bias": -0.1},
    "B = 2, no biases": {"recipe": "bcosification", "logit_bias": -0.1},
}
SIZES = {"resnet18": 64, "mobilenet_v2": 64, "densenet121": 32}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _cases() -> list[object]:
    found = []
    for name in MODELS:
        for recipe in RECIPES:
            for scale in ("cosine", "raw", "unit"):
                fast = f"{name}, {recipe}, {scale}" in FAST
                marks = () if fast else (pytest.mark.slow,)
                found.append(pytest.param(name, recipe, scale, marks=marks, id=f"{name}, {recipe}, {scale}"))
    return found


@functools.cache
def built(name: str, size: int) -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    options = {"init_weights": True} if name == "googlenet" else {}
    module: nn.Module = getattr(models, name)(weights=None, **options).eval()
    norm_statistics_from_data_(module, torch.randn(8, 3, size, size))
    for part in module.modules():  # shifts are zero as the constructor leaves them, and then no constant is there
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.bias, std=0.05)
    return module.eval()


def converted(name: str, recipe: str, scale: str, size: int) -> BcosNetwork:
    options = RECIPES[recipe]
    network = bcos_fx.bcosify(
        built(name, size), example_inputs=torch.rand(2, 3, size, size), mean=MEAN, std=STD, scale=scale,
        verified=False, train="eval-graph", **options,
    )  # fmt: skip
    return network.double()


@pytest.mark.parametrize(("name", "recipe", "scale"), _cases())
def test_contributions_and_constants_add_up(name: str, recipe: str, scale: str) -> None:
    size = SIZES.get(name, 64)
    network = converted(name, recipe, scale, size)
    x = torch.rand(2, 3, size, size).double()
    if recipe == "B = 1.5, biases":
        _make_shifts_small_(network)
    if recipe != "B = 1, biases":
        unit_gain_from_data_(network, x)
    with torch.no_grad():
        assert 1e-3 < float(network(x).std()) < 1e3
    view = view_of(network)
    assert view.certificate.ok, view.certificate.to_text()
    assert view.separable
    found = check_completeness(view, [x])
    assert found.ok, str(found)
    assert found.worst <= 1e-9
    if recipe == "B = 2, no biases":
        assert len(found.constants) == 1, "only the logit layer's bias is left"
    else:
        assert len(found.constants) > 10
    network.float()
    assert check_completeness(view, [x.float()]).worst <= 1e-4


def _make_shifts_small_(network: BcosNetwork) -> None:
    """So that at depth constants do not drown the input, and the sums say something about W."""
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if name.endswith(("bias", "running_mean")):
                tensor.mul_(0.1)


SELECTIONS = {
    "alexnet": 64, "vgg11_bn": 32, "resnet18": 64, "densenet121": 32, "resnext50_32x4d": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name == "resnet18" else (pytest.mark.slow,)) for name in SELECTIONS],
)
def test_of_selections_alone_w_is_the_gradient_of_the_original(name: str) -> None:
    """W[:, :3] - W[:, 3:] is d original / d image: the original's own gradient over std."""
    size = SELECTIONS[name]
    original = copy.deepcopy(built(name, size)).double()
    network = bcos_fx.bcosify(
        original,
        example_inputs=torch.rand(2, 3, size, size).double(),
        recipe="equivalent",
        mean=MEAN,
        std=STD,
        verified=False,
    )
    images = torch.rand(1, 3, size, size).double()
    found = view_of(network).dynamic_weights([images], all_numbers(2))
    given = network.original_input(images).requires_grad_()
    output = original(given)
    for k in range(2):
        (gradient,) = torch.autograd.grad(output[:, k].sum(), given, retain_graph=True)
        folded = found.weights[:, k, :3] - found.weights[:, k, 3:]
        expected = gradient / torch.tensor(STD, dtype=torch.float64).view(3, 1, 1)
        assert float((folded - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
