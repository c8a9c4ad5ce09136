"""Depthwise B-cos convolutions, which are computed in pieces of their own."""

from __future__ import annotations

import itertools
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._inductor.utils import run_and_get_code

from bcos_fx import nn as bnn
from bcos_fx.nn import conv as convolutions
from bcos_fx.nn import functional
from tests.nn import slow_layers

CLASSES = (bnn.BcosConv1d, bnn.BcosConv2d, bnn.BcosConv3d)
SIZES = ((2, 4, 9), (2, 4, 6, 5), (2, 4, 3, 4, 3))
OPTIONS: tuple[dict[str, Any], ...] = (
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 2, "dilation": 2},
    {"padding": "same", "out_channels": 8},
    {"padding": 2, "stride": 3, "out_channels": 12},
    {"eps": 0.1},
    {"eps": 0.1, "eps_at": "norm", "padding": 1},
)


def layer_of(rank: int, options: dict[str, Any], **common: Any) -> Any:
    given = {"out_channels": 4, "kernel_size": 3, "groups": 4, "bias": False, "dtype": torch.float64} | options | common
    return CLASSES[rank - 1](4, **given)


def random_input(rank: int, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    x = torch.randn(SIZES[rank - 1], dtype=torch.float64).to(memory_format=layout)
    x[0, 1] = 0  # patches of zeros, whose gradient is 0
    return x.requires_grad_()


def gradients(layer: Any, x: Tensor) -> list[Tensor]:
    """Values, and gradients of a fixed projection with respect to input and parameters."""
    y = layer(x)
    projection = torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * projection).sum(), [x, *layer.parameters()])]


def spied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls of the form in pieces."""
    calls: list[int] = []

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return depthwise(*args)

    depthwise = convolutions.depthwise
    monkeypatch.setattr(convolutions, "depthwise", counted)
    return calls


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_it_is_the_general_form(monkeypatch: pytest.MonkeyPatch, rank: int, options: dict[str, Any]) -> None:
    calls = spied(monkeypatch)
    for b, scale, piece in itertools.product((1.5, 2.0), ("raw", "cosine", "unit"), (1 << 20, 30, 1)):
        monkeypatch.setattr(functional, "_PIECE", piece)
        layer, x = layer_of(rank, options, b=b, scale=scale), random_input(rank)
        calls.clear()
        found = gradients(layer, x)
        with torch.no_grad():
            assert torch.equal(layer(x), found[0])
        assert len(calls) == 2
        monkeypatch.setattr(type(layer), "_is_depthwise_for", lambda self, x: False)
        expected = gradients(layer, x)
        monkeypatch.undo()
        calls = spied(monkeypatch)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("scale", ["raw", "cosine"])
def test_it_is_the_definition(monkeypatch: pytest.MonkeyPatch, scale: str, layout: torch.memory_format) -> None:
    monkeypatch.setattr(functional, "_PIECE", 30)
    layer, x = layer_of(2, {"padding": 1, "stride": 2}, scale=scale), random_input(2, layout)
    common: dict[str, Any] = {"stride": (2, 2), "before": [1, 1], "after": [1, 1], "dilation": (1, 1), "groups": 4}
    common |= {"mode": "zeros", "b": 2.0, "scale": scale, "eps": functional.default_eps(torch.float64)}
    y = layer(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, slow_layers.conv(x, layer.weight, None, **common), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", ["raw", "cosine", "unit"])
def test_derivatives_are_right_twice(scale: str) -> None:
    layer = layer_of(2, {"padding": 1, "stride": 2, "out_channels": 8}, scale=scale)
    x = torch.randn(2, 4, 4, 3, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        y: Tensor = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return y

    assert torch.autograd.gradcheck(function, (x, *values))
    assert torch.autograd.gradgradcheck(function, (x, *values))


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    layer, x = layer_of(2, {"padding": 1}), random_input(2)
    whole = gradients(layer, x)
    (to_weight,) = torch.autograd.grad(layer(x.detach()).sum(), layer.weight)
    (to_x,) = torch.autograd.grad(layer.requires_grad_(False)(x).sum(), x)
    layer.requires_grad_(True)
    both = torch.autograd.grad(layer(x).sum(), (x, layer.weight))
    torch.testing.assert_close((to_x, to_weight), both, rtol=1e-12, atol=1e-12)
    assert whole[1].abs().sum() > 0


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")  # torch's own
def test_other_inputs_take_the_general_form(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = spied(monkeypatch)
    layer_of(2, {"padding": 1, "padding_mode": "reflect"})(random_input(2))
    layer_of(2, {"padding": 1})(random_input(2)[0])
    layer_of(2, {"padding": "same", "kernel_size": (2, 2)})(random_input(2))
    half = layer_of(2, {"padding": 1}).to(torch.bfloat16)
    half(random_input(2).to(torch.bfloat16))
    wide = layer_of(2, {"padding": 1}).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide(random_input(2).float())
    assert not calls


@pytest.mark.parametrize("scale", ["raw", "cosine", "unit"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_compiler_is_given_sums_of_shifted_energies(
    monkeypatch: pytest.MonkeyPatch, rank: int, options: dict[str, Any], scale: str
) -> None:
    layer, x = layer_of(rank, options, scale=scale), random_input(rank).detach()
    expected, forward = layer(x).detach(), layer._conv_forward
    convolved: list[int] = []
    monkeypatch.setattr(layer, "_conv_forward", lambda *given: (convolved.append(1), forward(*given))[1])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)

    def convolutions_of(x: Tensor) -> int:
        convolved.clear()
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        return len(convolved)

    with torch.no_grad():
        assert convolutions_of(x) == 1  # the product
    assert convolutions_of(x) == 1  # what needs no gradient of x
    assert convolutions_of(x.clone().requires_grad_()) == 2
    monkeypatch.setattr(convolutions, "_MANY_PLACES", 2)
    assert convolutions_of(x) == 2  # not to write out hundreds of sums
    monkeypatch.setattr(convolutions, "_MANY_PLACES", 49)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert convolutions_of(x) == 2


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
def test_what_leads_to_a_depthwise_layer_is_not_computed_for_each_place_of_its_kernel() -> None:
    torch._dynamo.reset()
    layer = layer_of(2, {"padding": 1}, scale="raw")
    x = random_input(2).detach()

    def network(x: Tensor) -> Tensor:
        y: Tensor = layer(x * 0.3125)
        return y

    with torch.no_grad():
        result, code = run_and_get_code(torch.compile(network, fullgraph=True), x)
        torch.testing.assert_close(result, network(x), rtol=1e-12, atol=1e-12)
    assert 1 <= "".join(code).count("(0.3125)") < 9  # once in the loop over vectors, once or twice for the rest


@pytest.mark.parametrize("scale", ["raw", "cosine", "unit"])
def test_a_compiler_computes_norms_of_positions_and_of_weights_once(scale: str) -> None:
    layers = (
        nn.Sequential(bnn.BcosConv2d(4, 6, 3, scale=scale), bnn.BatchNormUncentred2d(6, shift=False)).eval().double()
    )
    x = torch.randn(2, 4, 7, 7, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    stored: list[tuple[int, ...]] = []

    def backend(graph_module: fx.GraphModule, _: Any) -> Any:
        calls = [node for node in graph_module.graph.nodes if node.target == "as_strided"]
        stored.extend(tuple(node.meta["example_value"].shape) for node in calls)
        return graph_module.forward

    for grad in (False, True):
        torch._dynamo.reset()
        stored.clear()
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(torch.compile(layers, backend=backend)(x), layers(x), rtol=1e-12, atol=1e-12)
        if not grad:
            assert ((2, 1, 5, 5) in stored, (6, 1, 1) in stored, (6,) in stored) == (True, scale == "cosine", True)
    assert (6,) not in stored  # it has a gradient


def test_a_compiled_depthwise_layer_computes_the_same() -> None:
    torch._dynamo.reset()
    layer = layer_of(2, {"padding": 1, "stride": 2})
    x = random_input(2).detach()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-12, atol=1e-12)
