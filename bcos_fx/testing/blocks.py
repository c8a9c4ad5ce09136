"""The pieces that random networks are made of: plain PyTorch, spelled in the ways people spell it.

Nothing here uses bcos_fx layers: these are the networks that others would bring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _by_rank(name: str, home: Any = nn) -> dict[int, Any]:
    """Return number of spatial dimensions -> the class or function of PyTorch for it."""
    return {rank: getattr(home, f"{name}{rank}d") for rank in (1, 2, 3)}


CONVOLUTIONS: Mapping[int, type[nn.Module]] = _by_rank("Conv")
TRANSPOSED: Mapping[int, type[nn.Module]] = _by_rank("ConvTranspose")
BATCH_NORMS: Mapping[int, type[nn.Module]] = {0: nn.BatchNorm1d, **_by_rank("BatchNorm")}
INSTANCE_NORMS: Mapping[int, type[nn.Module]] = _by_rank("InstanceNorm")
MAX_POOLS: Mapping[int, type[nn.Module]] = _by_rank("MaxPool")
AVERAGE_POOLS: Mapping[int, type[nn.Module]] = _by_rank("AvgPool")
GLOBAL_AVERAGES: Mapping[int, type[nn.Module]] = _by_rank("AdaptiveAvgPool")
_GLOBAL_AVERAGE_CALLS: Mapping[int, Callable[..., Tensor]] = _by_rank("adaptive_avg_pool", F)
_CONVOLUTION_CALLS: Mapping[int, Callable[..., Tensor]] = _by_rank("conv", F)

ACTIVATION_MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "prelu": nn.PReLU,
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "relu6": nn.ReLU6,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "softsign": nn.Softsign,
}
ACTIVATION_CALLS: Mapping[str, Mapping[str, Callable[[Tensor], Tensor]]] = {
    "functional": {
        "relu": F.relu,
        "leaky relu": lambda x: F.leaky_relu(x, negative_slope=0.1),
        "gelu": F.gelu,
        "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
        "silu": F.silu,
        "hardswish": F.hardswish,
        "relu6": F.relu6,
        "tanh": F.tanh,
        "elu": F.elu,
        "mish": F.mish,
        "softsign": F.softsign,
    },
    "torch": {"relu": torch.relu, "tanh": torch.tanh, "silu": lambda x: x * torch.sigmoid(x)},
    "method": {"relu": lambda x: x.relu(), "tanh": lambda x: x.tanh(), "relu6": lambda x: x.clamp(0, 6)},
    "in place": {
        "relu": lambda x: F.relu(x, inplace=True),
        "silu": lambda x: F.silu(x, inplace=True),
        "hardswish": lambda x: F.hardswish(x, inplace=True),
        "elu": lambda x: F.elu(x, inplace=True),
    },
}
CASTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "float": lambda x: x.float(),
    "to": lambda x: x.to(torch.float32),
    "to dtype=": lambda x: x.to(dtype=torch.float32),
    "type": lambda x: x.type(torch.float32),
}
GLOBAL_POOLS = ("module", "functional", "mean", "mean keepdim", "torch.mean", "flat mean", "amax")
FLATTENINGS = ("module", "torch.flatten", "method", "view", "reshape")


class Activation(nn.Module):
    """An activation that is called as a function or a method instead of being a module."""

    def __init__(self, kind: str, spelling: str) -> None:
        super().__init__()
        self.kind = kind
        self.spelling = spelling
        self.apply_to = ACTIVATION_CALLS[spelling][kind]

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to a tensor of any shape."""
        return self.apply_to(x)

    def extra_repr(self) -> str:
        """Show kind and spelling."""
        return f"{self.kind}, {self.spelling}"


def activation(kind: str, spelling: str) -> nn.Module:
    """Make an activation; a module where PyTorch has no such spelling of it."""
    if kind in ACTIVATION_CALLS.get(spelling, {}):
        return Activation(kind, spelling)
    return ACTIVATION_MODULES[kind]()


class ChannelsLast(nn.Module):
    """A norm over the channels of (N, C, spatial...), as ConvNeXt has it: permute, normalize, permute back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (N, C, spatial...) over C."""
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


class FunctionalConv(nn.Module):
    """A convolution whose parameters are held by a layer that is never called."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.layer = layer
        self.call = _CONVOLUTION_CALLS[layer.weight.dim() - 2]

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, spatial...) with zero padding."""
        options = {name: getattr(self.layer, name) for name in ("stride", "padding", "dilation", "groups")}
        return self.call(x, self.layer.weight, self.layer.bias, **options)


class FunctionalLinear(nn.Module):
    """A linear layer written as F.linear on its parameters."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, D) to (N, D')."""
        return F.linear(x, self.layer.weight, bias=self.layer.bias)


class Residual(nn.Module):
    """A body beside a shortcut, added up in one of three spellings, then an activation."""

    def __init__(self, body: nn.Module, last: nn.Module, spelling: str) -> None:
        super().__init__()
        self.body = body
        self.last = last
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        """Add (N, C, spatial...) to what the body makes of it."""
        out: Tensor = self.body(x)
        if self.spelling == "+=":
            out += x
        elif self.spelling == "torch.add":
            out = torch.add(out, x)
        else:
            out = x + out
        return self.last(out)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Show how the two are added."""
        return f"spelling={self.spelling!r}"


class Concatenation(nn.Module):
    """Two branches whose channels are put side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate two (N, C, spatial...) to (N, 2C, spatial...)."""
        return torch.cat([self.first(x), self.second(x)], 1)


class Gated(nn.Module):
    """A squeeze-and-excitation gate (Hu et al., CVPR 2018, section 3)."""

    def __init__(self, body: nn.Module, channels: int, gate: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.squeeze = nn.Linear(channels, max(channels // 2, 1))
        self.excite = nn.Linear(max(channels // 2, 1), channels)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        """Scale the channels of (N, C, spatial...) by weights in (0, 1)."""
        out: Tensor = self.body(x)
        pooled = out.flatten(2).mean(2) if out.dim() > 2 else out
        weights: Tensor = self.gate(self.excite(F.relu(self.squeeze(pooled))))
        return out * weights.reshape(*weights.shape, *(1 for _ in range(out.dim() - 2)))


class Twice(nn.Module):
    """One module called two times, so that its parameters are shared."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Apply the body to its own output."""
        return self.body(self.body(x))  # type: ignore[no-any-return]


class GlobalPool(nn.Module):
    """A global pool in one of its spellings, to (N, C)."""

    def __init__(self, dims: int, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.dims = dims
        self.pool = GLOBAL_AVERAGES[dims](1) if spelling == "module" else None

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, spatial...) to (N, C)."""
        spatial = tuple(range(2, 2 + self.dims))
        if self.pool is not None:
            return self.pool(x).flatten(1)  # type: ignore[no-any-return]
        if self.spelling == "functional":
            return _GLOBAL_AVERAGE_CALLS[self.dims](x, 1).flatten(1)
        if self.spelling == "mean keepdim":
            return x.mean(dim=spatial, keepdim=True).flatten(1)
        if self.spelling == "torch.mean":
            return torch.mean(x, dim=spatial)
        if self.spelling == "flat mean":
            return x.flatten(2).mean(-1)
        return x.amax(spatial) if self.spelling == "amax" else x.mean(spatial)

    def extra_repr(self) -> str:
        """Show the spelling."""
        return f"spelling={self.spelling!r}"


class Flatten(nn.Module):
    """Flattening to (N, D) in one of its spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all but the first dimension."""
        if self.spelling == "torch.flatten":
            return torch.flatten(x, 1)
        if self.spelling == "method":
            return x.flatten(1)
        if self.spelling == "view":
            return x.contiguous().view(x.size(0), -1)
        return x.reshape(x.shape[0], -1)

    def extra_repr(self) -> str:
        """Show the spelling."""
        return f"spelling={self.spelling!r}"


def norm(kind: str, channels: int, dims: int) -> nn.Module:
    """Make a norm over (N, channels) or (N, channels, spatial...).

    Args:
        kind: "batch", "batch plain" (no affine), "layer", "group", "instance", "rms" or "none".
        channels: number of channels.
        dims: number of spatial dimensions.
    """
    if kind == "none":
        return nn.Identity()
    if kind.startswith("batch"):
        options: dict[str, Any] = {"affine": kind == "batch"}
        return BATCH_NORMS[dims](channels, **options)
    if kind == "group":
        return nn.GroupNorm(2 if channels % 2 == 0 else 1, channels)
    if kind == "instance":
        return INSTANCE_NORMS[dims](channels, affine=True)
    over_channels = nn.LayerNorm(channels) if kind == "layer" else nn.RMSNorm(channels, eps=1e-6)
    return ChannelsLast(over_channels) if dims else over_channels
