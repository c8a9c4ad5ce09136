"""Layers and functions that bcos_fx does not know, as a user would write them: this file and own_ops.toml beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from bcos_fx import rules
from bcos_fx.nn import BcosConv2d


@rules.op("own.Snake")
class Snake(nn.Module):
    """An activation with a learnt parameter: x + sin²(αx)/α."""

    def __init__(self, channels: int, alpha: float = 1.0) -> None:
        super().__init__()
        self.channels = channels
        self.alpha = nn.Parameter(torch.full((channels, 1, 1), alpha))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sin(self.alpha * x) ** 2 / self.alpha


@rules.op("own.ScaleNorm")
class ScaleNorm(rules.DynamicLayer):
    """A norm: g·x / |x| over the channels, and a shift."""

    def __init__(self, channels: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.gain = nn.Parameter(torch.full((1,), channels**0.5))
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, channels)) if bias else None

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.gain / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(self.eps)

    def recompose(self, linear: Tensor, factor: Tensor) -> Tensor:
        y = linear * factor
        return y if self.bias is None else y + self.bias[:, None, None]

    def constant_like(self, y: Tensor) -> Tensor:
        return self.bias.detach()[:, None, None].to(y.dtype)


@rules.op("own.SoftPool2d")
class SoftPool2d(rules.DynamicLayer):
    """A pooling: the mean of each window, weighted by exp(x) (Stergiou et al., ICCV 2021)."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = (x - x.amax((2, 3), keepdim=True)).exp()
        return x, weight / functional.interpolate(functional.avg_pool2d(weight, self.kernel_size), x.shape[2:])

    def recompose(self, linear: Tensor, factor: Tensor) -> Tensor:
        return functional.avg_pool2d(linear * factor, self.kernel_size)


@rules.op("own.StandardisedConv2d")
class StandardisedConv2d(nn.Conv2d):
    """A linear layer with a constraint: a convolution with standardised weights (Qiao et al., 2019)."""

    def standardised(self) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        return (self.weight - mean) * (variance + 1e-8).rsqrt()

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.standardised(), self.bias)


@rules.op("own.ECA")
class ECA(rules.DynamicLayer):
    """A gate: channels weighted by a convolution across their means (Wang et al., CVPR 2020)."""

    def __init__(self, kernel_size: int = 3) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, self.conv(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]

    def recompose(self, linear: Tensor, factor: Tensor) -> Tensor:
        return linear * factor


@rules.op("own.swish2")
def swish2(x: Tensor, beta: float = 2.0) -> Tensor:
    return x * torch.sigmoid(beta * x)


@rules.op("own.gated")
def gated(x: Tensor, gate: Tensor) -> Tensor:
    return x * torch.tanh(gate)


@rules.builder("own-standardised-to-bcos")
def standardised_to_bcos(build: rules.Build) -> nn.Module:
    """A B-cos convolution whose weight is what the standardised one comes to."""
    layer = build.layer
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    plain.weight = nn.Parameter(layer.standardised().detach())
    plain.bias = layer.bias
    return BcosConv2d.from_plain(plain, b=1.0)


class Inside(nn.Module):
    """A layer without weights that calls a function, as networks do."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "gated":
            return gated(x, x.flip(1))
        if self.name == "method":
            return x.to_dense().relu()
        if self.name == "quantised":
            return torch.fake_quantize_per_tensor_affine(x, 0.05, 0, -128, 127)
        return swish2(x, beta=1.5)


LAYERS = {
    "Snake": lambda: Snake(8, 1.3),
    "ScaleNorm": lambda: ScaleNorm(8),
    "SoftPool2d": lambda: SoftPool2d(2),
    "StandardisedConv2d": lambda: StandardisedConv2d(8, 8, 3, padding=1),
    "ECA": ECA,
    "swish2": lambda: Inside("swish2"),
    "gated": lambda: Inside("gated"),
    "method": lambda: Inside("method"),
    "quantised": lambda: Inside("quantised"),
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        LAYERS[name](),
        nn.Conv2d(8, 8, 3, stride=2),
        nn.ReLU(),
        LAYERS[name](),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    for parameter in body.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return body.eval()


rules.load(Path(__file__).with_name("own_ops.toml"))
