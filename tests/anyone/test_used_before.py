"""A network that ran before, with gradients, and keeps what it computed: copied, converted, and left as it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.tracing.modules import deep_copy


@dataclass
class Kept:
    value: Tensor | None = None


class Caching(nn.Module):
    """Keeps its last activation somewhere; each class keeps it in another place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.kept: Any = None

    def keep(self, value: Tensor) -> None:
        self.kept = value

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        self.keep(y)
        return self.head(y.mean((2, 3)))


class InDict(Caching):
    def keep(self, value: Tensor) -> None:
        self.kept = {"cpu": value}


class InList(Caching):
    def keep(self, value: Tensor) -> None:
        self.kept = [(value, value.sum())]


class InObject(Caching):
    def keep(self, value: Tensor) -> None:
        self.kept = Kept(value)


class InLayer(Caching):
    def keep(self, value: Tensor) -> None:
        self.conv.last = value[:1]  # type: ignore[assignment]


class AsBuffer(Caching):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept_buffer", None, persistent=False)

    def keep(self, value: Tensor) -> None:
        self.kept_buffer = value


class OfWeights(Caching):
    """Computes something from its weights once, as attention biases are, and reads it from then on in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.kept is None:
            self.kept = {"scale": self.head.weight.abs().mean()}
        return self.head(self.conv(x).relu().mean((2, 3))) * self.kept["scale"]

    def train(self, mode: bool = True) -> OfWeights:
        super().train(mode)
        if mode:
            self.kept = None
        return self


CLASSES = (Caching, InDict, InList, InObject, InLayer, AsBuffer, OfWeights)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_used_network_converts_like_a_new_one(kind: type[Caching]) -> None:
    module, x = kind().eval(), torch.rand(2, 3, 8, 8)
    expected = module(x)  # with gradients
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(module)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    assert network.report.figures.verification is not None
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_copy_is_detached_and_the_original_keeps_its_own(kind: type[Caching]) -> None:
    module, x = kind().eval(), torch.rand(2, 3, 8, 8)
    module(x)
    kept = vars(module)["kept"]
    twin = deep_copy(module)
    assert vars(module)["kept"] is kept
    assert torch.equal(twin(x), module(x))
    own = {t.untyped_storage().data_ptr() for t in module.parameters()}
    assert not own & {t.untyped_storage().data_ptr() for t in twin.parameters()}


def test_one_tensor_that_is_kept_twice_is_one_tensor_in_the_copy() -> None:
    module = Caching()
    module(torch.rand(1, 3, 8, 8))
    module.conv.same = module.kept
    twin = deep_copy(module)
    assert twin.kept is twin.conv.same
    assert twin.kept.grad_fn is None
    assert torch.equal(twin.kept, module.kept)


def test_what_was_computed_from_weights_follows_them_after_conversion() -> None:
    module, x = OfWeights().eval(), torch.rand(2, 3, 8, 8)
    module(x)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent")
    before = network(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    assert not torch.allclose(network(x), 2 * before)


def test_levit_converts_after_a_forward_with_gradients() -> None:
    timm = pytest.importorskip("timm")
    module = timm.create_model("levit_128s", num_classes=3).eval()
    x = torch.rand(2, 3, 224, 224)
    expected = module(x)
    network = bcos_fx.bcosify(module, example_inputs=x, recipe="equivalent", verified=False)
    torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)
