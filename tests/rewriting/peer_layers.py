"""Stand-ins for layers of the package ``bcos`` and of B-cosification: of the same full names and
attributes, written from their definitions.

The rules know the package's classes by name alone, so that these show the rules where it is not installed.
``tests/peer`` holds them against the package itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _named(module: str, name: str) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def rename(cls: type[nn.Module]) -> type[nn.Module]:
        cls.__module__, cls.__name__, cls.__qualname__ = f"bcos.modules.{module}", name, name
        return cls

    return rename


class _Transform(nn.Module):
    """What both B-cos layers share: |out| / |x| to the power B - 1, times out."""

    linear: nn.Module

    def __init__(self, b: float, max_out: int) -> None:
        super().__init__()
        self.b, self.max_out = b, max_out

    def scaled(self, out: Tensor, norm: Tensor) -> Tensor:
        if self.b == 1:
            return out
        if self.b == 2:
            return out * out.abs() / norm
        return out * ((out / norm).abs() + 1e-6) ** (self.b - 1)


@_named("bcosconv2d", "BcosConv2d")
class PeerConv(_Transform):
    """MaxOut and padding modes are attributes only."""

    def __init__(
        self, inside: int, outside: int, size: int = 3, *, b: float = 2, max_out: int = 1, mode: str = "zeros"
    ) -> None:
        super().__init__(b, max_out)
        self.linear = nn.Conv2d(inside, outside, size, padding=size // 2, bias=False)
        self.padding_mode = mode

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight / self.linear.weight.flatten(1).norm(dim=1)[:, None, None, None]
        out = F.conv2d(x, weight, padding=self.linear.padding)
        energy = F.conv2d(x.square(), torch.ones_like(weight[:1]), padding=self.linear.padding)
        return self.scaled(out, (energy + 1e-6).sqrt())


@_named("bcosconv2d", "BcosConv2dWithScale")
class PeerScaledConv(PeerConv):
    scale = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.scale


@_named("bcoslinear", "BcosLinear")
class PeerLinear(_Transform):
    def __init__(self, inside: int, outside: int, *, b: float = 2) -> None:
        super().__init__(b, 1)
        self.linear = nn.Linear(inside, outside, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.linear.weight / self.linear.weight.norm(dim=1, keepdim=True))
        return self.scaled(out, x.norm(dim=-1, keepdim=True) + 1e-12)


@_named("bcosifyconv2d", "BcosifyConv2d")
class PeerRawConv(_Transform):
    """A B-cosified convolution: the weight as it is, a bias inside the cosine; ``b_loss`` learns B."""

    def __init__(
        self, inside: int, outside: int, size: int = 3, *, b: float = 2, bias: bool = False, learned: bool = False
    ) -> None:
        super().__init__(b, 1)
        self.linear = nn.Conv2d(inside, outside, size, padding=size // 2, bias=bias)
        self.padding_mode, self.clamping, self.b_loss = "zeros", False, learned

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        energy = F.conv2d(x.square(), torch.ones_like(self.linear.weight[:1]), padding=self.linear.padding)
        return self.scaled(out, (energy + 1e-6).sqrt())


@_named("bcosifylinear", "BcosifyLinear")
class PeerRawLinear(_Transform):
    def __init__(self, inside: int, outside: int, *, b: float = 2, bias: bool = False) -> None:
        super().__init__(b, 1)
        self.linear = nn.Linear(inside, outside, bias=bias)
        self.clamping = self.b_loss = False

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(self.linear(x), x.norm(dim=-1, keepdim=True) + 1e-12)


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]


@_named("norms.uncentered_norms.batchnorm_uncentered", "BatchNormUncentered2d")
class PeerBatchNorm(nn.BatchNorm2d):
    """In eval only; its running mean is something that the layer does not look at."""

    def __init__(self, channels: int, *, bias: bool = True, track: bool = True) -> None:
        super().__init__(channels, track_running_stats=track)
        with torch.no_grad():
            self.weight.copy_(torch.linspace(0.7, 1.3, channels))
            self.bias.copy_(torch.linspace(-0.2, 0.3, channels))
        if track:
            self.running_mean.fill_(5.0)
            self.running_var.copy_(torch.linspace(0.5, 2.0, channels))
        if not bias:
            self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        variance = self.running_var if self.running_var is not None else x.var((0, 2, 3), unbiased=False)
        y = x / _channels((variance + self.eps).sqrt()) * _channels(self.weight)
        return y if self.bias is None else y + _channels(self.bias)


@_named("norms.uncentered_norms.groupnorm_uncentered", "GroupNormUncentered2d")
class PeerGroupNorm(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:
        variance = x.unflatten(1, (self.num_groups, -1)).flatten(2).var(2, unbiased=False)
        sigma = (variance + self.eps).sqrt().repeat_interleave(self.num_channels // self.num_groups, 1)
        return x / sigma[:, :, None, None] * _channels(self.weight) + _channels(self.bias)


@_named("norms.uncentered_norms.posnorm_uncentered", "PositionNormUncentered2d")
class PeerPositionNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        variance = x.var(1, unbiased=False, keepdim=True)
        return x / (variance + self.eps).sqrt() * _channels(self.weight) + _channels(self.bias)


@_named("norms.centered_norms", "DetachablePositionNorm2d")
class PeerCentredPositionNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        y = centred / (centred.square().mean(1, keepdim=True) + self.eps).sqrt() * _channels(self.weight)
        return y if self.bias is None else y + _channels(self.bias)


@_named("norms.centered_norms", "DetachableLayerNorm")
class PeerLayerNorm(nn.LayerNorm):
    """Torch's own forward."""


@_named("logitlayer", "LogitLayer")
class PeerLogitLayer(nn.Module):
    def __init__(self, temperature: float | None = None, bias: float | None = None) -> None:
        super().__init__()
        self.logit_temperature, self.logit_bias = temperature, bias

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.logit_temperature is None else x / self.logit_temperature
        return x if self.logit_bias is None else x + self.logit_bias
