"""What shows each shipped rule: networks that it rewrites in every spelling, one that it nearly rewrites, a mutant.

``test_every_rule.py`` fails when a shipped rule is missing here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.rewriting import peer_layers as peers

Forward = Callable[[nn.Module, Tensor], Tensor]


class Net(nn.Module):
    """Named parts and a forward function: a network on one line."""

    def __init__(self, forward: Forward, **parts: nn.Module) -> None:
        super().__init__()
        self.forward_function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_function(self, x)


@dataclass(frozen=True)
class Case:
    """One shipped rule.

    Attributes:
        hits: spelling -> factory of a network that the rule rewrites.
        shape: of one sample.
        near: factory of a network that it nearly rewrites, and words of the reason; None for a rule without conditions.
        untouched: factory of a network of the same ops that the rule has no business with (no near miss either).
        mutant: name of the builder that is replaced by one that makes a wrong module, where the rule builds.
        options: of the conversion.
        recipe: the recipe that holds the rule.
    """

    hits: dict[str, Callable[[], nn.Module]]
    shape: tuple[int, ...] = (3, 8, 8)
    near: tuple[Callable[[], nn.Module], str] | None = None
    untouched: Callable[[], nn.Module] | None = None
    mutant: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    recipe: str = "equivalent"


def conv(inside: int = 3, outside: int = 4, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, size, **{"padding": size // 2, **options})


def batch_norm(channels: int = 4, cls: type[nn.Module] = nn.BatchNorm2d, **options: Any) -> Any:
    norm: Any = cls(channels, **options)
    if norm.running_mean is not None:
        norm.running_mean.copy_(torch.linspace(-0.5, 0.5, channels))
        norm.running_var.copy_(torch.linspace(0.5, 2.0, channels))
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(0.7, 1.3, channels))
            norm.bias.copy_(torch.linspace(-0.2, 0.3, channels))
    return norm


def normalised(channels: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(channels)
    with torch.no_grad():
        norm.bias.copy_(torch.linspace(-0.2, 0.3, channels))
    return norm


def headed(forward: Forward, **parts: nn.Module) -> Callable[[], nn.Module]:
    """A convolution before, a linear head after: ``forward`` gets and gives maps of 4 channels, or (N, 4)."""

    def whole(net: Any, x: Tensor) -> Tensor:
        y = forward(net, net.stem(x))
        return net.fc(y) if y.ndim == 2 else net.fc(y.mean((2, 3)))

    return lambda: Net(whole, stem=conv(), fc=nn.Linear(4, 5), **{n: p for n, p in parts.items()})


def maps(forward: Forward, **parts: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A network straight from the image, given by its parts' factories."""
    return lambda: Net(forward, **{name: part() for name, part in parts.items()})


def tokens(forward: Forward) -> Callable[[], nn.Module]:
    """Tokens (N, 16, 4) from patches, then ``forward``, with a norm, a dropout and a head at hand."""
    return lambda: Net(
        lambda net, x: forward(net, net.stem(x).flatten(2).transpose(1, 2)),
        stem=conv(3, 4, 2, stride=2, padding=0),
        norm=normalised(4),
        drop=nn.Dropout(0.5),
        fc=nn.Linear(4, 5),
    )


def attending(attention: nn.MultiheadAttention) -> Callable[[], nn.Module]:
    """Tokens from patches, then attention."""

    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        y: Tensor = net.attention(tokens, tokens, tokens)[0].mean(1)
        return y

    return lambda: Net(forward, stem=conv(3, 8, 2, stride=2, padding=0), attention=copy.deepcopy(attention))


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values)


def packed(
    cut: Callable[[Tensor], Any], pieces: int = 3, *, times: int = 1, bias: bool = True
) -> Callable[[], nn.Module]:
    """Attention of two heads whose projections are one layer; ``cut`` gets (N, L, pieces, heads, 2)."""

    def forward(net: Any, x: Tensor) -> Tensor:
        tokens = net.stem(x).flatten(2).transpose(1, 2)
        for _ in range(times):
            projected = net.qkv(tokens).reshape(x.shape[0], -1, pieces, 2, 2)
            tokens = attend(*cut(projected)).transpose(1, 2).flatten(2)
        y: Tensor = tokens.mean(1)
        return y

    return lambda: Net(forward, stem=conv(3, 4, 2, stride=2, padding=0), qkv=nn.Linear(4, 4 * pieces, bias=bias))


class Scaled(nn.Conv2d):
    """A convolution whose weight is computed."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * 2, self.bias, padding=1)


class InputScaled(nn.Conv2d):
    """A convolution whose weight depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * x.mean().sigmoid(), self.bias, padding=1)


class Standardised(nn.Conv2d):
    """A convolution with weight standardisation by a batch norm call, as timm writes it."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=1)


class JoinedBias(nn.Linear):
    """A linear layer whose bias is put together from two."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside, bias=False)
        self.first = nn.Parameter(torch.linspace(-1, 1, outside // 2))
        self.register_buffer("second", torch.zeros(outside - outside // 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, torch.cat([self.first, self.second]))


class Matrix(nn.Module):
    """A linear layer written as a product with a stored matrix, and a vector that is added."""

    def __init__(self, inside: int, outside: int, shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(inside, outside))
        self.vector = nn.Parameter(torch.linspace(-1, 1, outside).reshape(shape or (outside,)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.vector, x, self.matrix)


class SameConv(nn.Conv2d):
    """A subclass with its own forward that is a plain call."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1)), self.weight, self.bias, stride=self.stride)


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, training=self.training)


class FunctionalNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, 1e-3)


class FrozenNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, 1e-3)


class ScaledNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * 2
        return F.batch_norm(x, self.running_mean, self.running_var, weight, self.bias, self.training, 0.1, 1e-3)


class CallLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class ComputedLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


def statistics(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_var


class Normalize(nn.Module):
    def __init__(self, *, trained: bool = False) -> None:
        super().__init__()
        mean, std = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
        if trained:
            self.mean, self.std = nn.Parameter(mean), nn.Parameter(std)
        else:
            self.register_buffer("mean", mean)
            self.register_buffer("std", std)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _pool_head(pool: Forward, **parts: nn.Module) -> Callable[[], nn.Module]:
    return headed(lambda net, x: pool(net, x), **parts)


def _gated(net: Any, x: Tensor) -> Tensor:
    y = net.stem(x)
    return net.fc((y * torch.sigmoid(net.gate(y))).mean((2, 3)))


def gated() -> nn.Module:
    return Net(_gated, stem=conv(), gate=conv(4, 4, 1), fc=nn.Linear(4, 5))


def twice() -> nn.Module:
    """The head is called twice, so that it cannot become another layer in one place only."""

    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.stem(x).mean((2, 3))
        return net.fc(torch.relu(net.fc(y)))

    return Net(forward, stem=conv(), fc=nn.Linear(4, 4))


def _flat(net: Any, x: Tensor) -> Tensor:
    return net.fc(net.pool(net.stem(x)).flatten(1))


class Positioned(nn.Module):
    """Patches in a row, and a stored tensor for their places."""

    def __init__(self, shape: tuple[int, ...], forward: Forward) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(shape))
        self.q, self.k, self.v, self.fc = (nn.Linear(4, 4) for _ in range(4))
        self.forward_function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_function(self, self.stem(x).flatten(2).transpose(1, 2))


def positioned(shape: tuple[int, ...], forward: Forward) -> Callable[[], nn.Module]:
    return lambda: Positioned(shape, forward)


def pooled_by_attention(net: Any, x: Tensor) -> Tensor:
    return net.fc(F.scaled_dot_product_attention(net.q(x[:, :1]), net.k(x), net.v(x))[:, 0])


CASES: dict[str, Case] = {
    # ------------------------------------------------------------ canonical
    "identity-removed": Case(
        hits={
            "module": headed(lambda net, x: net.same(x), same=nn.Identity()),
            "between": headed(lambda net, x: torch.relu(net.same(torch.relu(x))), same=nn.Identity(3, unused=True)),
        },
        untouched=headed(lambda net, x: x.contiguous()),
    ),
    "dead-dropout-removed": Case(
        hits={
            "module": headed(lambda net, x: net.drop(x), drop=nn.Dropout(0.0)),
            "function": headed(lambda net, x: F.dropout(x, 0.0)),
            "switched off": headed(lambda net, x: F.dropout(x, 0.5, training=False)),
            "maps": headed(lambda net, x: net.drop(x), drop=nn.Dropout2d(0.0)),
        },
        untouched=headed(lambda net, x: net.drop(x), drop=nn.Dropout(0.5)),
    ),
    "dropout-call-to-module": Case(
        hits={"function": headed(lambda net, x: net.drop(x), drop=FunctionalDropout())},
        untouched=headed(lambda net, x: net.drop(x), drop=nn.Dropout(0.5)),
        mutant="module-form",
    ),
    "layer-call-to-module": Case(
        hits={
            "own forward": headed(lambda net, x: net.layer(x), layer=SameConv(4, 4, 3, stride=2)),
            "function of a module's weight": headed(
                lambda net, x: F.conv2d(x, net.layer.weight, net.layer.bias, 1, 1), layer=conv(4, 4)
            ),
            "keywords": headed(
                lambda net, x: F.conv2d(input=x, weight=net.layer.weight, padding=1, groups=2),
                layer=conv(4, 4, groups=2),
            ),
            "transposed": headed(
                lambda net, x: F.conv_transpose2d(x, net.layer.weight, net.layer.bias, stride=2),
                layer=nn.ConvTranspose2d(4, 4, 2, stride=2),
            ),
            "linear": maps(
                lambda net, x: F.linear(x.flatten(1), net.layer.weight, bias=net.layer.bias),
                layer=lambda: nn.Linear(192, 5),
            ),
        },
        near=(headed(lambda net, x: net.layer(x), layer=InputScaled(4, 4, 3)), "its weight is computed"),
        mutant="layer-from-parameters",
    ),
    "computed-weight-stored": Case(
        hits={
            "scaled": headed(lambda net, x: net.layer(x), layer=Scaled(4, 4, 3)),
            "standardised": headed(lambda net, x: net.layer(x), layer=Standardised(4, 4, 3)),
            "bias put together": headed(lambda net, x: net.layer(x.mean((2, 3))), layer=JoinedBias(4, 4)),
            "weight norm": maps(
                lambda net, x: net.layer(x).mean((2, 3)),
                layer=lambda: nn.utils.parametrizations.weight_norm(conv(3, 4)),
            ),
        },
        near=(headed(lambda net, x: net.layer(x), layer=InputScaled(4, 4, 3)), "is computed from the input"),
        untouched=headed(lambda net, x: net.layer(x), layer=SameConv(4, 4, 3)),
        mutant="layer-from-computed-parameters",
    ),
    "matrix-product-to-linear": Case(
        hits={
            "operator": headed(lambda net, x: x.mean((2, 3)) @ net.layer.matrix, layer=Matrix(4, 4)),
            "addmm": headed(lambda net, x: net.layer(x.mean((2, 3))), layer=Matrix(4, 4)),
            "transposed": headed(lambda net, x: torch.matmul(x.mean((2, 3)), net.layer.matrix.t()), layer=Matrix(4, 4)),
        },
        near=(
            headed(lambda net, x: F.linear(x.mean((2, 3)) @ net.layer.matrix, net.layer.matrix), layer=Matrix(4, 4)),
            "is shared with another layer",
        ),
        untouched=headed(lambda net, x: (x.flatten(2) @ x.flatten(2).mT).softmax(1).mean(1), layer=Matrix(4, 4)),
        mutant="linear-from-matrix",
    ),
    "added-vector-to-bias": Case(
        hits={
            "addmm": headed(lambda net, x: net.layer(x.mean((2, 3))), layer=Matrix(4, 4)),
            "layer": headed(
                lambda net, x: net.fc2(x.mean((2, 3))) + net.layer.vector,
                fc2=nn.Linear(4, 4, bias=False),
                layer=Matrix(4, 4),
            ),
        },
        untouched=headed(
            lambda net, x: net.fc2(x.mean((2, 3))) + net.layer.vector,
            fc2=nn.Linear(4, 4, bias=False),
            layer=Matrix(4, 4, (1, 4)),
        ),
        mutant="layer-with-added-bias",
    ),
    "batch-norm-call-to-module": Case(
        hits={"function": headed(lambda net, x: net.norm(x), norm=batch_norm(cls=FunctionalNorm))},
        near=(headed(lambda net, x: net.norm(x), norm=batch_norm(cls=ScaledNorm)), "is computed"),
        mutant="batch-norm-from-parameters",
    ),
    "frozen-batch-norm-call-to-module": Case(
        hits={
            "function": headed(lambda net, x: net.norm(x), norm=batch_norm(cls=FrozenNorm)),
            "torch.": headed(
                lambda net, x: torch.batch_norm(
                    x, net.norm.weight, net.norm.bias, *statistics(net.norm), False, 0.1, 1e-3, False
                ),
                norm=batch_norm(),
            ),
        },
        untouched=headed(lambda net, x: net.norm(x), norm=batch_norm(cls=FunctionalNorm)),
        mutant="batch-norm-from-parameters",
    ),
    "norm-call-to-module": Case(
        hits={
            "layer norm": headed(lambda net, x: net.norm(x.mean((2, 3))), norm=CallLayerNorm(4)),
            "group norm": headed(
                lambda net, x: F.group_norm(x, 2, net.norm.weight, net.norm.bias), norm=nn.GroupNorm(2, 4)
            ),
            "rms norm": headed(lambda net, x: F.rms_norm(x.mean((2, 3)), (4,), net.norm.weight), norm=nn.RMSNorm(4)),
            "no affine": headed(lambda net, x: F.layer_norm(x.mean((2, 3)), (4,))),
        },
        near=(headed(lambda net, x: net.norm(x.mean((2, 3))), norm=ComputedLayerNorm(4)), "is computed"),
        mutant="norm-from-parameters",
    ),
    "instance-norm-call-to-module": Case(
        hits={
            "plain": headed(lambda net, x: F.instance_norm(x).relu()),
            "scaled": headed(
                lambda net, x: F.instance_norm(x, weight=net.norm.weight, bias=net.norm.bias, eps=1e-3).relu(),
                norm=nn.InstanceNorm2d(4, affine=True),
            ),
            "signals": headed(lambda net, x: F.instance_norm(x.flatten(2)).relu().mean(2)),
        },
        near=(
            headed(lambda net, x: F.instance_norm(x, weight=net.norm.weight * 2), norm=batch_norm()),
            "is computed",
        ),
        untouched=headed(lambda net, x: net.norm(x), norm=nn.InstanceNorm2d(4)),
        mutant="instance-norm-from-parameters",
    ),
    "tracked-instance-norm-to-batch-norm": Case(
        hits={
            "scaled": headed(
                lambda net, x: net.norm(x), norm=batch_norm(4, nn.InstanceNorm2d, affine=True, track_running_stats=True)
            ),
            "plain": headed(
                lambda net, x: net.norm(x), norm=batch_norm(4, nn.InstanceNorm2d, track_running_stats=True)
            ),
            "signals": headed(
                lambda net, x: net.norm(x.flatten(2)).mean(2),
                norm=batch_norm(4, nn.InstanceNorm1d, track_running_stats=True),
            ),
        },
        untouched=headed(lambda net, x: net.norm(x), norm=nn.InstanceNorm2d(4)),
        mutant="batch-norm-from-instance-norm",
    ),
    "frozen-instance-norm-call-to-batch-norm": Case(
        hits={
            "scaled": headed(
                lambda net, x: F.instance_norm(
                    x, net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias, False
                ),
                norm=batch_norm(),
            ),
            "keywords": headed(
                lambda net, x: F.instance_norm(
                    x, running_mean=net.norm.running_mean, running_var=net.norm.running_var, use_input_stats=False
                ),
                norm=batch_norm(),
            ),
        },
        near=(
            headed(
                lambda net, x: F.instance_norm(
                    x, net.norm.running_mean, net.norm.running_var * 1, use_input_stats=False
                ),
                norm=batch_norm(),
            ),
            "is computed",
        ),
        mutant="batch-norm-from-parameters",
    ),
    "pool-call-to-module": Case(
        hits={
            "max": headed(lambda net, x: F.max_pool2d(x, 2)),
            "keywords": headed(lambda net, x: F.max_pool2d(x, kernel_size=3, stride=2, padding=1, ceil_mode=True)),
            "torch.": headed(lambda net, x: torch.max_pool2d(x, 3, 2)),
            "adaptive": headed(lambda net, x: F.adaptive_avg_pool2d(x, (2, 2))),
        },
        near=(headed(lambda net, x: F.adaptive_avg_pool2d(x, x.shape[-1] // 2)), "is computed"),
        mutant="module-form",
    ),
    "whole-map-average-to-global-pool": Case(
        hits={
            "sizes": headed(lambda net, x: F.avg_pool2d(x, (x.size(2), x.size(3))).flatten(1)),
            "shape": headed(lambda net, x: F.avg_pool2d(x, x.shape[-2:]).flatten(1)),
            "keyword": headed(lambda net, x: F.avg_pool2d(x, kernel_size=(x.shape[2], x.shape[3])).flatten(1)),
        },
        untouched=headed(lambda net, x: F.avg_pool2d(x, x.size()[3]).flatten(1)),
        mutant="global-average-pool",
    ),
    "spatial-mean-to-global-pool": Case(
        hits={
            "keyword": headed(lambda net, x: x.mean(dim=(2, 3), keepdim=True)),
            "positional": headed(lambda net, x: x.mean([-2, -1], True)),
            "function": headed(lambda net, x: torch.mean(x, (3, 2), keepdim=True)),
            "axis": headed(lambda net, x: torch.mean(x, axis=(2, 3), keepdims=True)),
        },
        untouched=headed(lambda net, x: x * x.mean(1, keepdim=True)),
        mutant="global-average-pool",
    ),
    "spatial-mean-to-global-pool-and-flatten": Case(
        hits={
            "method": headed(lambda net, x: x.mean((2, 3))),
            "keyword": headed(lambda net, x: x.mean(dim=[2, 3])),
            "function": headed(lambda net, x: torch.mean(x, dim=(-1, -2))),
        },
        untouched=maps(lambda net, x: net.stem(x).mean(1).flatten(1), stem=conv),
        mutant="flatten-features",
    ),
    "pixel-reshape-to-flatten": Case(
        hits={
            "view": headed(lambda net, x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)),
            "reshape": headed(lambda net, x: F.adaptive_avg_pool2d(x, 1).reshape(-1, 4)),
            "torch.flatten": headed(lambda net, x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)),
            "index": headed(lambda net, x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0]),
            "squeeze": headed(lambda net, x: F.adaptive_avg_pool2d(x, 1).squeeze((2, 3))),
            "indices": headed(lambda net, x: F.adaptive_avg_pool2d(x, 1).flatten(start_dim=1)),
        },
        untouched=headed(lambda net, x: net.flat(F.adaptive_avg_pool2d(x, 1)), flat=nn.Flatten()),
        mutant="flatten-features",
    ),
    "two-squeezes-to-flatten": Case(
        hits={
            "from behind": headed(lambda net, x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)),
            "from the front": headed(lambda net, x: F.adaptive_avg_pool2d(x, 1).squeeze(2).squeeze(2)),
        },
        untouched=headed(lambda net, x: x.amax(2, keepdim=True).squeeze(2).amax(2, keepdim=True).squeeze(2)),
        mutant="flatten-features",
    ),
    "transpose-and-back-removed": Case(
        hits={
            "at once": headed(lambda net, x: x.transpose(1, 2).transpose(2, 1)),
            "after a copy": headed(lambda net, x: x.swapaxes(-1, 2).contiguous().transpose(2, 3)),
            "in attention": attending(nn.MultiheadAttention(8, 2, batch_first=True)),
        },
        near=None,
        untouched=headed(lambda net, x: x.transpose(1, 2).transpose(2, 3).permute(0, 3, 1, 2)),
    ),
    "attention-call-to-module": Case(
        hits={
            "dropout in train mode": headed(
                lambda net, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5 if net.training else 0.0)
            ),
            "with a mask and a scale": headed(
                lambda net, x: F.scaled_dot_product_attention(
                    x, x, x, net.mask.weight, 0.5 if net.training else 0.0, scale=2.0
                ),
                mask=nn.Linear(8, 8, bias=False),
            ),
            "in an encoder layer": maps(
                lambda net, x: net.layer(net.stem(x).flatten(2).transpose(1, 2)).mean(1),
                stem=lambda: conv(3, 8, 2, stride=2, padding=0),
                layer=lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            ),
        },
        near=(
            headed(
                lambda net, x: F.scaled_dot_product_attention(
                    x, x, x, dropout_p=0.5 if net.training else 0.0, scale=x.shape[-1] * 0.5
                )
            ),
            "computed while the network runs",
        ),
        untouched=headed(lambda net, x: F.scaled_dot_product_attention(x, x, x)),
        mutant="attention-with-dropout",
    ),
    "packed-projections-taken-apart": Case(
        hits={
            "queries, keys and values": packed(lambda qkv: qkv.permute(2, 0, 3, 1, 4).unbind(0)),
            "indexed": packed(lambda qkv: (lambda parts: (parts[0], parts[1], parts[-1]))(qkv.permute(2, 0, 3, 1, 4))),
            "not permuted before": packed(lambda qkv: (part.transpose(1, 2) for part in qkv.unbind(2))),
            "keys and values": maps(
                lambda net, x: (
                    lambda tokens: attend(tokens, *net.kv(tokens).reshape(len(x), -1, 2, 4).unbind(2)).mean(1)
                )(net.stem(x).flatten(2).transpose(1, 2)),
                stem=conv,
                kv=lambda: nn.Linear(4, 8),
            ),
            "without a bias": packed(lambda qkv: qkv.permute(2, 0, 3, 1, 4).unbind(0), bias=False),
        },
        near=(
            packed(lambda qkv: qkv.permute(2, 0, 3, 1, 4).unbind(0), times=2),
            "is called elsewhere too",
        ),
        untouched=packed(lambda qkv: (qkv.permute(2, 0, 3, 1, 4)[0] for _ in range(3)), 1),
        mutant="heads-of-a-part",
    ),
    "joined-layers-taken-apart": Case(
        hits={
            "a gated unit": headed(lambda net, x: F.glu(net.join(x.mean((2, 3)))), join=nn.Linear(4, 8)),
            "split": headed(
                lambda net, x: attend(*net.join(x.flatten(2).mT).split(4, -1)).mean(1), join=nn.Linear(4, 12)
            ),
            "split at sizes of its own": headed(
                lambda net, x: (lambda y, gate: y * gate.sigmoid())(*net.join(x.mean((2, 3))).split([4, 1], dim=1)),
                join=nn.Linear(4, 5),
            ),
        },
        near=(
            headed(lambda net, x: F.glu(net.join(F.glu(net.join(x.mean((2, 3)))))), join=nn.Linear(4, 8)),
            "is called elsewhere too",
        ),
        untouched=headed(lambda net, x: sum(net.join(x.mean((2, 3))).chunk(2, 1)), join=nn.Linear(4, 8)),
        mutant="part-of-a-projection",
    ),
    "rows-flattened-and-back-removed": Case(
        hits={
            "flattened": maps(
                lambda net, x: net.fc(x.flatten(2).mT.reshape(-1, 3)).reshape(x.shape[0], -1, 4).mean(1),
                fc=lambda: nn.Linear(3, 4),
            ),
        },
        untouched=maps(
            lambda net, x: net.fc(x.flatten(2).mT.reshape(-1, 3)).reshape(-1, 2, 4).reshape(x.shape[0], -1, 4).mean(1),
            fc=lambda: nn.Linear(3, 4),
        ),
    ),
    # ------------------------------------------------------------ peers
    "peer-bcos-layer": Case(
        hits={
            "convolution": headed(lambda net, x: net.layer(x), layer=peers.PeerConv(4, 4)),
            "at B = 1": headed(lambda net, x: net.layer(x), layer=peers.PeerConv(4, 4, 1, b=1)),
            "scaled": headed(lambda net, x: net.layer(x), layer=peers.PeerScaledConv(4, 4)),
            "linear": headed(lambda net, x: net.layer(x.mean((2, 3))), layer=peers.PeerLinear(4, 4)),
            "called twice": headed(lambda net, x: net.layer(net.layer(x)), layer=peers.PeerConv(4, 4)),
            "B-cosified convolution": headed(lambda net, x: net.layer(x), layer=peers.PeerRawConv(4, 4)),
            "B-cosified, at B = 1": headed(lambda net, x: net.layer(x), layer=peers.PeerRawConv(4, 4, b=1, bias=True)),
            "B-cosified linear": headed(lambda net, x: net.layer(x.mean((2, 3))), layer=peers.PeerRawLinear(4, 4)),
        },
        near=(headed(lambda net, x: net.layer(x), layer=peers.PeerConv(4, 4, b=1.5)), "adds 1e-6 to the cosine"),
        untouched=headed(lambda net, x: net.layer(x), layer=conv(4, 4)),
        mutant="peer-bcos-layer",
    ),
    "peer-batch-norm": Case(
        hits={
            "with a shift": headed(lambda net, x: net.norm(x), norm=peers.PeerBatchNorm(4)),
            "without": headed(lambda net, x: net.norm(x), norm=peers.PeerBatchNorm(4, bias=False)),
        },
        near=(
            headed(lambda net, x: net.norm(x), norm=peers.PeerBatchNorm(4, track=False)),
            "without running statistics",
        ),
        mutant="peer-batch-norm",
    ),
    "peer-norm": Case(
        hits={
            "groups": headed(lambda net, x: net.norm(x), norm=peers.PeerGroupNorm(2, 4)),
            "positions": headed(lambda net, x: net.norm(x), norm=peers.PeerPositionNorm(4)),
            "positions, centred": headed(
                lambda net, x: net.norm(x), norm=peers.PeerCentredPositionNorm(4, elementwise_affine=True, bias=False)
            ),
            "features": headed(lambda net, x: net.norm(x.mean((2, 3))), norm=peers.PeerLayerNorm(4)),
        },
        untouched=headed(lambda net, x: net.norm(x.mean((2, 3))), norm=nn.LayerNorm(4)),
        mutant="peer-norm",
    ),
    "peer-logit-layer": Case(
        hits={
            "both": headed(lambda net, x: net.last(x.mean((2, 3))), last=peers.PeerLogitLayer(2.0, -3.0)),
            "neither": headed(lambda net, x: net.last(x), last=peers.PeerLogitLayer()),
        },
        near=(headed(lambda net, x: net.last(x), last=peers.PeerLogitLayer(-2.0)), "temperature is -2.0"),
        mutant="peer-logit-layer",
    ),
    # ------------------------------------------------------------ structure
    "classifier-before-pool": Case(
        hits={
            "modules": maps(_flat, stem=conv, pool=lambda: nn.AdaptiveAvgPool2d(1), fc=lambda: nn.Linear(4, 5)),
            "mean": headed(lambda net, x: x.mean((2, 3))),
            "whole map": headed(lambda net, x: F.avg_pool2d(x, x.shape[-2:]).view(x.size(0), -1)),
        },
        near=(twice, "called elsewhere too"),
        untouched=headed(lambda net, x: x.amax((2, 3))),
        mutant="pointwise-conv",
    ),
    "classifier-before-average-pool": Case(
        hits={
            "one side of the map": headed(lambda net, x: F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1)),
            "fixed": headed(lambda net, x: net.pool(x).flatten(1), pool=nn.AvgPool2d(8)),
        },
        untouched=headed(lambda net, x: F.avg_pool2d(x, 8, divisor_override=3).flatten(1)),
        mutant="pointwise-conv",
    ),
    "classifier-before-pool-past-dropout": Case(
        hits={
            "after flatten": headed(lambda net, x: net.drop(x.mean((2, 3))), drop=nn.Dropout(0.5)),
            "before flatten": headed(
                lambda net, x: net.drop(F.adaptive_avg_pool2d(x, 1)).flatten(1), drop=nn.Dropout(0.5)
            ),
        },
        untouched=headed(lambda net, x: net.drop(x.flatten(2).amax(2)), drop=nn.Dropout(0.5)),
        mutant="pointwise-conv",
    ),
    "classifier-before-pool-past-batch-norm": Case(
        hits={"batch norm": headed(lambda net, x: net.norm(x.mean((2, 3))), norm=batch_norm(cls=nn.BatchNorm1d))},
        near=(
            headed(
                lambda net, x: net.norm(x.mean((2, 3))),
                norm=batch_norm(cls=nn.BatchNorm1d, track_running_stats=False),
            ),
            "without running statistics",
        ),
        mutant="spatial-batch-norm",
    ),
    "classifier-after-norm-stays": Case(
        hits={},
        near=(headed(lambda net, x: net.norm(x.mean((2, 3))), norm=normalised(4)), "cannot go before the pooling"),
        untouched=headed(lambda net, x: x.mean((2, 3))),
    ),
    "classifier-after-activation-stays": Case(
        hits={},
        near=(headed(lambda net, x: torch.relu(x.mean((2, 3)))), "activation of a mean"),
        untouched=headed(lambda net, x: x.mean((2, 3))),
    ),
    # ------------------------------------------------------------ input
    "image-input-encoded": Case(
        hits={
            "colour": headed(lambda net, x: x),
            "grey": maps(
                lambda net, x: net.fc(net.stem(x[:, :1]).mean((2, 3))), stem=lambda: conv(1), fc=lambda: nn.Linear(4, 5)
            ),
        },
        near=(maps(lambda net, x: net.stem(x.repeat(1, 1, 1, 1)), stem=conv), "taken as it is"),
        mutant="input-normalisation",
        options={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
    ),
    "channel-shift-or-scale-absorbed": Case(
        hits={
            "buffers": maps(lambda net, x: net.stem(net.norm(x)), norm=Normalize, stem=conv),
            "numbers": maps(lambda net, x: net.stem((x - 0.5) / 0.25), stem=conv),
            "methods": maps(lambda net, x: net.stem(x.sub(0.5).mul(4).add(0.1)), stem=conv),
        },
        near=(maps(lambda net, x: net.stem(net.norm(x)), norm=lambda: Normalize(trained=True), stem=conv), "trained"),
        mutant="absorbed-normalisation",
    ),
    "decoding-moved-past-zero-padding": Case(
        hits={
            "function": maps(lambda net, x: net.stem(F.pad(x, (1, 2, 0, 1))), stem=conv),
            "module": maps(lambda net, x: net.stem(net.pad(x)), pad=lambda: nn.ZeroPad2d(1), stem=conv),
            "own forward": maps(lambda net, x: net.stem(x), stem=lambda: SameConv(3, 4, 3)),
        },
        near=(maps(lambda net, x: net.stem(F.pad(x, (1, 1, 1, 1), value=0.5)), stem=conv), "something else than zero"),
    ),
    "decoding-moved-past-channelwise-map": Case(
        hits={
            "average": maps(lambda net, x: net.stem(F.avg_pool2d(x, 2)), stem=conv),
            "resize": maps(lambda net, x: net.stem(F.interpolate(x, scale_factor=2)), stem=conv),
            "reflect": maps(lambda net, x: net.stem(net.pad(x)), pad=lambda: nn.ReflectionPad2d(1), stem=conv),
        },
        untouched=maps(lambda net, x: net.stem(F.max_pool2d(x, 2)), stem=conv),
    ),
    "decoding-moved-past-conversion": Case(
        hits={
            "to": maps(lambda net, x: net.stem(x.to(net.stem.weight.dtype)), stem=conv),
            "type_as": maps(lambda net, x: net.stem(x.type_as(net.stem.weight)), stem=conv),
        },
        near=(maps(lambda net, x: net.stem(1.0 * x.long().to(x.dtype)), stem=conv), "which has no halves"),
    ),
    "decoding-moved-past-flatten": Case(
        hits={
            "flatten": maps(lambda net, x: net.fc(x.flatten(1)), fc=lambda: nn.Linear(192, 5)),
            "view": maps(lambda net, x: net.fc(x.view(x.size(0), -1)), fc=lambda: nn.Linear(192, 5)),
        },
        untouched=maps(lambda net, x: net.fc(x.reshape(-1, 192)), fc=lambda: nn.Linear(192, 5)),
        mutant="flatten-features",
    ),
    "first-layer-widened": Case(
        hits={
            "conv": headed(lambda net, x: x),
            "patches": maps(lambda net, x: net.stem(x), stem=lambda: nn.Conv2d(3, 8, 4, stride=4)),
            "several": maps(lambda net, x: net.a(x) + net.b(x), a=conv, b=lambda: conv(3, 4, 1)),
            "linear": maps(lambda net, x: net.fc(x.flatten(1)), fc=lambda: nn.Linear(192, 5)),
        },
        near=(maps(lambda net, x: net.stem(x), stem=lambda: conv(3, 6, 3, groups=3)), "grouped"),
        mutant="widened-layer",
        options={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
    ),
    "first-layer-widened-past-rearrangement": Case(
        hits={
            "patches": maps(
                lambda net, x: net.fc(x.reshape(x.size(0), 3, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).flatten(3)).mean(
                    (1, 2)
                ),
                fc=lambda: nn.Linear(48, 5),
            ),
            "unfolded": maps(lambda net, x: net.fc(F.unfold(x, 4, stride=4).mT).mean(1), fc=lambda: nn.Linear(48, 5)),
            "unshuffled": maps(lambda net, x: net.stem(F.pixel_unshuffle(x, 2)), stem=lambda: conv(12, 4, 3)),
        },
        near=(
            maps(lambda net, x: net.fc(F.unfold(x.mean(1, True), 4, stride=4).mT).mean(1), fc=lambda: nn.Linear(16, 5)),
            "in another order",
        ),
        untouched=maps(lambda net, x: net.stem(x), stem=conv),
        mutant="widened-layer-of-rearranged",
        options={"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
    ),
    "normalisation-folded-into-first-layer": Case(
        hits={
            "conv": headed(lambda net, x: x),
            "several": maps(lambda net, x: net.a(x) + net.b(x), a=conv, b=lambda: conv(3, 4, 1)),
        },
        untouched=maps(lambda net, x: net.stem(F.max_pool2d(x, 2)), stem=conv),
        mutant="folded-layer",
        options={"input": "folded", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)},
    ),
    "activation-removed": Case(
        hits={
            "called": headed(lambda net, x: torch.relu(x)),
            "module": headed(lambda net, x: net.act(x), act=nn.GELU()),
            "two": headed(lambda net, x: F.silu(net.norm(x).relu_()), norm=batch_norm()),
        },
        near=(headed(lambda net, x: x * torch.sigmoid(F.relu(x.mean((2, 3), keepdim=True)))), "feeds gates only"),
        recipe="bcosification",
        options={"activation": "remove"},
    ),
    "classifier-before-token-mean": Case(
        hits={
            "norm and head": tokens(lambda net, x: net.fc(net.norm(x.mean(1)))),
            "called": tokens(lambda net, x: net.fc(net.norm(torch.mean(x, dim=-2)))),
            "dropout between": tokens(lambda net, x: net.fc(net.drop(net.norm(x.mean(dim=(1,)))))),
            "head alone": tokens(lambda net, x: net.fc(x.mean(axis=1)).softmax(-1)),
            "a map of tokens": tokens(lambda net, x: net.fc(net.norm(x.unflatten(1, (4, 4)).mean((1, 2))))),
        },
        near=(tokens(lambda net, x: torch.relu(net.fc(net.norm(x.mean(1))))), "not the classifier at the end"),
        untouched=tokens(lambda net, x: net.fc(net.norm(x[:, 0]))),
        recipe="bcosification",
        options={"head": "keep"},
    ),
    # ------------------------------------------------------------ norm
    "batch-norm-uncentred": Case(
        hits={
            "2d": headed(lambda net, x: net.norm(x), norm=batch_norm()),
            "not affine": headed(lambda net, x: net.norm(x), norm=batch_norm(affine=False)),
            "cumulative": headed(lambda net, x: net.norm(x), norm=batch_norm(momentum=None, eps=0.1)),
            "1d": headed(lambda net, x: net.norm(x.flatten(2)).mean(2), norm=batch_norm(cls=nn.BatchNorm1d)),
            "3d": headed(lambda net, x: net.norm(x[:, :, None])[:, :, 0], norm=batch_norm(cls=nn.BatchNorm3d)),
        },
        near=(
            headed(lambda net, x: net.norm(x), norm=batch_norm(track_running_stats=False)),
            "without running statistics",
        ),
        mutant="bcos-norm",
    ),
    "norm-with-separate-scale": Case(
        hits={
            "layer": headed(lambda net, x: net.norm(x.mean((2, 3))), norm=normalised(4)),
            "group": headed(lambda net, x: net.norm(x), norm=nn.GroupNorm(2, 4, eps=0.1)),
            "rms": headed(lambda net, x: net.norm(x.mean((2, 3))), norm=nn.RMSNorm(4)),
        },
        untouched=headed(lambda net, x: net.norm(x), norm=nn.LocalResponseNorm(2)),
        mutant="bcos-norm",
    ),
    "instance-norm-with-separate-scale": Case(
        hits={
            "2d": headed(lambda net, x: torch.relu(net.norm(x)), norm=nn.InstanceNorm2d(4, affine=True)),
            "1d": headed(lambda net, x: torch.relu(net.norm(x.flatten(2))).mean(2), norm=nn.InstanceNorm1d(4)),
        },
        near=(
            headed(
                lambda net, x: torch.relu(net.norm(x[0]) + x),
                norm=batch_norm(cls=nn.InstanceNorm2d, track_running_stats=True),
            ),
            "with running statistics",
        ),
        mutant="bcos-norm",
    ),
    # ------------------------------------------------------------ activation
    "sum-in-place": Case(
        hits={
            "operator": headed(lambda net, x: net.norm(x) + x, norm=batch_norm()),
            "function": headed(lambda net, x: torch.add(net.norm(x), torch.tanh(x)), norm=batch_norm()),
            "traced in place": headed(lambda net, x: net.norm(x).add_(x), norm=batch_norm()),
        },
        near=(headed(lambda net, x: (y := net.norm(x)) + torch.tanh(y), norm=batch_norm()), "2 users"),
        untouched=headed(lambda net, x: torch.add(net.norm(x), x, alpha=2), norm=batch_norm()),
        mutant="in-place-sum",
    ),
    "relu-in-place": Case(
        hits={
            "after a norm": headed(lambda net, x: torch.relu(net.norm(x)), norm=batch_norm()),
            "after a sum": headed(lambda net, x: F.relu(x + torch.tanh(x))),
            "module": headed(lambda net, x: net.relu(net.norm(x)), norm=batch_norm(), relu=nn.ReLU()),
            "traced in place": headed(lambda net, x: net.norm(x).relu_(), norm=batch_norm()),
            "with an upper limit": headed(lambda net, x: F.relu6(net.norm(9 * x)), norm=batch_norm()),
            "limited module": headed(lambda net, x: net.relu(x + torch.tanh(x)), relu=nn.ReLU6(inplace=True)),
        },
        near=(headed(lambda net, x: torch.relu(y := net.norm(x)) + torch.tanh(y), norm=batch_norm()), "2 users"),
        untouched=headed(lambda net, x: torch.relu(x)),
        mutant="in-place-rectifier",
    ),
    # ------------------------------------------------------------ linear
    "layer-to-bcos": Case(
        hits={
            "cosine": headed(lambda net, x: torch.relu(x)),
            "1d": headed(lambda net, x: net.layer(x.flatten(2)).mean(2), layer=nn.Conv1d(4, 4, 3, dilation=2)),
            "3d": headed(lambda net, x: net.layer(x[:, :, None])[:, :, 0], layer=nn.Conv3d(4, 4, (1, 3, 3))),
            "transposed": headed(lambda net, x: net.layer(x), layer=nn.ConvTranspose2d(4, 4, 3, stride=2)),
            "reflected": headed(lambda net, x: net.layer(x), layer=conv(4, 4, padding_mode="reflect")),
            "same": headed(lambda net, x: net.layer(x), layer=conv(4, 4, padding="same", dilation=2)),
            "depthwise": headed(lambda net, x: net.layer(x), layer=conv(4, 4, groups=4, stride=2)),
        },
        near=(gated, "feeds gates only"),
        mutant="bcos-layer",
    ),
    "layer-with-computed-weight-stays": Case(
        hits={},
        near=(headed(lambda net, x: net.layer(x), layer=InputScaled(4, 4, 3)), "computed while the network runs"),
        untouched=headed(lambda net, x: x),
    ),
    # ------------------------------------------------------------ changing
    "padded-max-pool-to-average-pool": Case(
        hits={
            "same padding": headed(lambda net, x: F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)),
            "positional": headed(
                lambda net, x: net.pool(F.pad(x, (1, 1), "constant", -math.inf)), pool=nn.MaxPool2d(2)
            ),
        },
        near=(
            headed(lambda net, x: F.max_pool2d(F.pad(x, (1, 1), value=-math.inf), 2, dilation=2)),
            "no dilation",
        ),
        untouched=headed(lambda net, x: F.max_pool2d(F.pad(x, (1, 1), value=-1.0), 2)),
        recipe="bcosification",
    ),
    "max-pool-to-average-pool": Case(
        hits={
            "module": headed(lambda net, x: net.pool(x), pool=nn.MaxPool2d(3, 2, 1)),
            "function": headed(lambda net, x: F.max_pool2d(x, 2)),
            "1d": headed(lambda net, x: F.max_pool1d(x.flatten(2), 2).mean(2)),
            "3d": headed(lambda net, x: net.pool(x[:, :, None])[:, :, 0], pool=nn.MaxPool3d((1, 2, 2))),
        },
        near=(headed(lambda net, x: net.pool(x), pool=nn.MaxPool2d(2, dilation=2)), "no dilation"),
        recipe="bcosification",
    ),
    "layer-bias-stripped": Case(
        hits={"conv and linear": headed(lambda net, x: x)},
        near=(gated, "feeds gates only"),
        recipe="bcosification",
        options={"bias": "strip"},
    ),
    "norm-shift-stripped": Case(
        hits={
            "batch norm": headed(lambda net, x: net.norm(x), norm=batch_norm()),
            "not affine": headed(lambda net, x: net.norm(x), norm=batch_norm(affine=False)),
            "layer norm": headed(lambda net, x: net.norm(x.mean((2, 3))), norm=normalised(4)),
            "group norm": headed(lambda net, x: net.norm(x), norm=nn.GroupNorm(2, 4)),
        },
        untouched=headed(lambda net, x: net.norm(x), norm=nn.GroupNorm(2, 4, affine=False)),
        recipe="bcosification",
    ),
    "positional-embedding-removed": Case(
        hits={
            "stored": positioned((16, 4), lambda net, x: pooled_by_attention(net, x + net.positions)),
            "first": positioned((1, 16, 4), lambda net, x: pooled_by_attention(net, net.positions + x)),
            "computed": positioned(
                (16, 4), lambda net, x: pooled_by_attention(net, x + net.positions[None, :, :].to(x.dtype))
            ),
        },
        near=(
            positioned((16, 4), lambda net, x: net.fc(torch.relu(x + net.positions).mean(1))),
            "not the input of an attention pool",
        ),
        untouched=positioned((4,), lambda net, x: pooled_by_attention(net, x + net.positions)),
        recipe="clip",
    ),
    "alignment-raised": Case(
        hits={"all": headed(lambda net, x: torch.relu(x))},
        untouched=headed(lambda net, x: torch.relu(x)),
        recipe="bcosification",
        options={},
    ),
    "logit-layer-added": Case(
        hits={"classes": headed(lambda net, x: x)},
        near=(maps(lambda net, x: net.stem(x), stem=conv), "which is not (samples, at least two classes)"),
        recipe="bcosification",
    ),
}
