"""Biases and scales that are computed from an input: terms and factors, in every call that takes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bcos_fx
from tests.anyone.by_hand import Case, check_at_b_2, check_equivalent, gate, numbers

_CALLS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


class Biased(nn.Module):
    """A call of functional whose bias a layer makes of the same input, held as a gate or flowing on as a value."""

    def __init__(self, name: str, *, gated: bool, by_name: bool) -> None:
        super().__init__()
        self.name, self.gated, self.by_name = name, gated, by_name
        self.rank = 0 if name == "linear" else int(name[-2])
        shape = (5, 3) if name == "linear" else (3, 5) if "transpose" in name else (5, 3)
        self.weight = nn.Parameter(torch.randn(*shape, *[2] * self.rank))
        self.made, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.made(x.reshape(x.size(0), 3, -1).mean((0, 2)))
        bias = gate(bias.sigmoid()) if self.gated else bias
        call = getattr(F, self.name)
        made = call(x, self.weight, bias=bias) if self.by_name else call(x, self.weight, bias)
        return self.head(made.reshape(x.size(0), 5, -1).mean(2))


@pytest.mark.parametrize("name", _CALLS)
@pytest.mark.parametrize("gated", [True, False])
def test_bias_of_a_layer_computed_from_the_input_is_a_term(name: str, gated: bool) -> None:
    rank = 0 if name == "linear" else int(name[-2])
    inputs = {"x": numbers(1, 3, *[4] * rank).sigmoid()}
    whole = {"batch_axis": None}
    check_equivalent(Case(lambda: Biased(name, gated=gated, by_name=gated), inputs, (0, 1), whole))


class OfExperts(nn.Module):
    """Kernel and bias of each sample, mixed from those of experts (CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.route, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 3), nn.Linear(8, 3)
        self.weight, self.bias = nn.Parameter(torch.randn(3, 8 * 6 * 9)), nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        b, c, height, width = h.shape
        share = gate(self.route(h.mean((2, 3))).sigmoid())
        kernels, biases = (share @ self.weight).view(b * 8, c, 3, 3), (share @ self.bias).view(-1)
        y = F.conv2d(h.reshape(1, b * c, height, width), kernels, biases, padding=1, groups=b)
        return self.head(y.view(b, 8, height, width).relu().mean((2, 3)))


@pytest.mark.parametrize("check", [check_equivalent, check_at_b_2])
def test_kernels_and_biases_of_experts(check: object) -> None:
    assert callable(check)
    check(Case(OfExperts, {"x": numbers(2, 3, 5, 5).sigmoid()}, (1,)))


class Styled(nn.Module):
    """A norm whose scale and shift another input makes (AdaIN, conditional norms)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.first, self.style = name, nn.Conv1d(3, 4, 1), nn.Linear(2, 8)
        self.mean, self.variance = nn.Buffer(torch.rand(4)), nn.Buffer(torch.rand(4) + 0.5)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = self.first(x)
        scale, shift = self.style(style.mean(0)).chunk(2)
        if self.name == "layer_norm":
            return self.head(F.layer_norm(h.mT, (4,), scale, bias=shift).relu().mean(1))
        if self.name == "rms_norm":
            return self.head((F.rms_norm(h.mT, (4,), scale) + shift).relu().mean(1))
        if self.name == "group_norm":
            h = F.group_norm(h, 2, scale, shift)
        elif self.name == "instance_norm":
            h = F.instance_norm(h, weight=scale, bias=shift)
        else:
            h = F.batch_norm(h, self.mean, self.variance, scale, shift)
        return self.head(h.relu().mean(2))


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "instance_norm", "batch_norm"])
@pytest.mark.parametrize("source", ["x", "style"])
def test_norm_with_a_computed_scale_and_shift_is_explained_by_either_input(name: str, source: str) -> None:
    torch.manual_seed(0)
    module = Styled(name).double().eval()
    inputs = {"x": numbers(2, 3, 6), "style": numbers(2, 2)}
    output = module(**inputs).detach()
    made = bcos_fx.bcosify(module, example_inputs=inputs, recipe="equivalent", batch_axis=None)
    torch.testing.assert_close(made(*inputs.values()), output)
    for network in (module, made):
        found = bcos_fx.explain(network, inputs, (1, 2), source=source, batch_axis=None)
        torch.testing.assert_close(found.contributions.sum() + found.constants.total()[0], output[1, 2])
        assert found.complete
