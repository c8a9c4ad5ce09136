"""Small networks on one line each: dynamic linear ones in many spellings, and ones that are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Net(nn.Module):
    """Named parts, parameters and buffers, and a forward function; float64, in eval mode."""

    def __init__(self, forward: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.forward_function = forward
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_parameter(name, part)
        self.double().eval()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.forward_function(self, *inputs)


def own(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def between(middle: Callable[..., Tensor], inside: int = 6, **parts: Any) -> Callable[[], Net]:
    """``middle`` of (network, (N, 6)) between two linear layers."""
    return lambda: Net(lambda n, x: n.b(middle(n, n.a(x))), a=nn.Linear(6, 6), b=nn.Linear(inside, 3), **_made(parts))


def _made(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part() for name, part in parts.items()}


def _written(value: Callable[[Any], Any]) -> Callable[..., Tensor]:
    def middle(n: Any, y: Tensor) -> Tensor:
        y = y.clone()
        y[:, 1:3] = value(n)
        return y

    return middle


def _ones(n: Any, y: Tensor) -> Tensor:
    out = torch.ones(y.shape[0], 8, dtype=y.dtype)
    out[:, 1:7] = y
    return out


VECTORS: dict[str, Callable[[], Net]] = {
    "max over a dimension": between(lambda n, y: y.view(-1, 2, 3).max(1)[0], 3),
    "max, values": between(lambda n, y: y.view(-1, 2, 3).max(-1).values, 2),
    "max with a constant": between(lambda n, y: torch.max(y, n.c), c=lambda: own(6)),
    "maximum with a number": between(lambda n, y: torch.maximum(y, torch.tensor(0.1, dtype=y.dtype))),
    "in place": between(lambda n, y: F.silu(F.relu(y, inplace=True), inplace=True)),
    "in place, module": between(lambda n, y: n.s(y), s=lambda: nn.SiLU(inplace=True)),
    "transposed by attribute": between(lambda n, y: (n.c @ y.T).T, c=lambda: own(6, 6)),
    "matrices transposed by attribute": between(
        lambda n, y: (n.c @ y.view(-1, 2, 3).mT).flatten(1), 8, c=lambda: own(4, 3)
    ),
    "where, method": between(lambda n, y: y.where(y > 0.1, 0.2)),
    "where, function": between(lambda n, y: torch.where(y > 0.1, y, n.c), c=lambda: own(6)),
    "masked fill": between(lambda n, y: y.masked_fill(y < 0.1, 0.3)),
    "subtracted from": between(lambda n, y: 1.5 - y),
    "rsub, alpha": between(lambda n, y: torch.rsub(y, 1.5, alpha=2)),
    "add, alpha": between(lambda n, y: torch.add(y, n.c, alpha=2) + torch.add(n.c, y, alpha=3), c=lambda: own(6)),
    "added in place": between(lambda n, y: y.add_(n.c).__iadd__(0.3), c=lambda: own(6)),
    "a size added": between(lambda n, y: y / y.shape[1] + y.shape[1]),
    "a number stored": between(lambda n, y: y + n.c, c=lambda: nn.Parameter(torch.tensor(0.3))),
    "written into": between(_written(lambda n: n.c), c=lambda: own(2)),
    "a number written into": between(_written(lambda n: 0.7)),
    "written into ones": between(_ones, 8),
    "clamp": between(lambda n, y: y.clamp(-0.1, 0.4)),
    "abs and prelu": between(lambda n, y: F.prelu(y, n.c).abs(), c=lambda: own(1)),
    "layer norm, subclass": between(lambda n, y: n.c(y), c=lambda: type("Own", (nn.LayerNorm,), {})(6)),
    "group norm, call": between(lambda n, y: F.group_norm(y, 2, n.w, n.c), w=lambda: own(6), c=lambda: own(6)),
    "rms norm, call": between(lambda n, y: F.rms_norm(y, (6,), n.c), c=lambda: own(6)),
    "layer norm, written out": between(
        lambda n, y: (y - y.mean(1, True)) / (y.var(1, keepdim=True) + 1e-3).sqrt() * n.w + n.c,
        w=lambda: own(6),
        c=lambda: own(6),
    ),
    "normalize": between(lambda n, y: F.normalize(y) + F.normalize(y, 1.0, -1)),
    "divided by its norm": between(lambda n, y: y / y.norm(dim=1, keepdim=True)),
    "dropout, call": between(lambda n, y: F.dropout(y, 0.5, training=n.training)),
    "one layer twice": lambda: Net(lambda n, x: n.a(torch.relu(n.a(x))), a=nn.Linear(6, 6)),
    "one layer as value and gate": between(lambda n, y: y * torch.sigmoid(n.a(n.a(y)))),
    "one bias twice": between(
        lambda n, y: F.linear(F.linear(y, n.w * 2, n.c), n.w * 3, n.c), w=lambda: own(6, 6), c=lambda: own(6)
    ),
    "gated linear unit": between(lambda n, y: y[:, :3] * torch.sigmoid(y.chunk(2, 1)[1]), 3),
    "parts of several sizes": between(
        lambda n, y: sum(p.sum(1) for p in y.tensor_split((1, 4), 1))[:, None] + y[:, :3], 3
    ),
    "hardswish, written out": between(lambda n, y: y * F.relu6(y + 3) / 6),
    "softsign, written out": between(lambda n, y: y / (1 + y.abs())),
    "a bump": between(lambda n, y: y * torch.exp(-y.pow(2))),
    "bilinear": between(
        lambda n, y: n.c(torch.sigmoid(y), y) + n.c(y, torch.cos(y)), 4, c=lambda: nn.Bilinear(6, 6, 4)
    ),
}


def rows(middle: Callable[..., Tensor], **parts: Any) -> Callable[[], Net]:
    """``middle`` of (network, (N, 4, 6)) between two linear layers, with a curved mean over the rows."""
    return lambda: Net(
        lambda n, x: n.b(F.gelu(middle(n, n.a(x)))).mean(1), a=nn.Linear(6, 6), b=nn.Linear(6, 3), **_made(parts)
    )


def _merged(n: Any, y: Tensor) -> Tensor:
    return n.c(F.gelu(y.transpose(0, 1).reshape(-1, 6))).view(4, -1, 6).transpose(0, 1)


SEQUENCES: dict[str, Callable[[], Net]] = {
    "tokens joined": rows(
        lambda n, y: torch.cat([n.c.expand(y.size(0), -1, -1), n.d.expand(y.shape[0], -1, -1), y], 1),
        c=lambda: own(1, 1, 6),
        d=lambda: own(1, 1, 6),
    ),
    "positions": rows(lambda n, y: y + n.c + n.d, c=lambda: own(1, 4, 6), d=lambda: own(4, 6)),
    "windows": rows(
        lambda n, y: (n.c(y.view(y.shape[0] * 2, 2, 6)) + n.d).view(y.shape[0], 4, 6),
        c=lambda: nn.Linear(6, 6),
        d=lambda: own(1, 2, 6),
    ),
    "sequence first": rows(
        lambda n, y: (n.c(y.transpose(0, 1)) + n.d + n.e).transpose(0, 1),
        c=lambda: nn.Linear(6, 6),
        d=lambda: own(4, 1, 6),
        e=lambda: own(6),
    ),
    "sequence first, merged": rows(_merged, c=lambda: nn.Linear(6, 6)),
    "stacked before the samples": rows(lambda n, y: n.c(torch.stack([y, 2 * y])).sum(0), c=lambda: nn.Linear(6, 6)),
    "attention": rows(lambda n, y: F.scaled_dot_product_attention(y, y, y)),
    "attention, written out": rows(
        lambda n, y: torch.softmax(n.c(y) @ y.transpose(1, 2), -1) @ y, c=lambda: nn.Linear(6, 6)
    ),
    "attention, einsum": rows(lambda n, y: torch.einsum("nld,nle->nde", torch.softmax(y, 1), y)),
    "attention module": rows(
        lambda n, y: n.c(y, y, y)[0], c=lambda: nn.MultiheadAttention(6, 2, bias=False, batch_first=True)
    ),
}

APART = {
    "windows",
    "positions",
    "tokens joined",
    "attention",
    "attention, written out",
    "attention, einsum",
    "attention module",
}
"""The sequences whose samples can be told apart in a batch."""

NOT_LINEAR: dict[str, tuple[Callable[[], Net], str]] = {
    "softmax": (between(lambda n, y: torch.softmax(y, 1)), "softmax"),
    "argmax": (between(lambda n, y: y.argmax(1, keepdim=True) * n.c, c=lambda: own(6)), "argmax"),
    "round": (between(lambda n, y: torch.round(y)), "round"),
    "unregistered": (between(lambda n, y: torch.special.i0(y)), "special_function"),
    "a reciprocal": (between(lambda n, y: torch.reciprocal(y)), "exp"),
    "floor division": (between(lambda n, y: torch.div(y, 0.3, rounding_mode="floor")), "div"),
    "random dropout": (between(lambda n, y: F.dropout(y, 0.5)), "dropout"),
    "random slopes": (between(lambda n, y: F.rrelu(y, training=True)), "rrelu"),
    "norm with computed weight": (
        between(lambda n, y: F.layer_norm(y, (6,), n.w + 1, n.c), w=lambda: own(6), c=lambda: own(6)),
        "layer_norm",
    ),
    "batch statistics": (between(lambda n, y: F.batch_norm(y, None, None, training=True)), "batch_norm"),
}
