"""What shows each rule of explanation views; ``test_every_view_rule.py`` fails when a shipped rule is missing here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

import bcos_fx
from tests.explanation.view_networks import Net, between, own

Factory = Callable[[], nn.Module]


@dataclass(frozen=True)
class Case:
    """One rule.

    Attributes:
        hits: spelling -> factory of a network that the rule rewrites.
        untouched: factory of a network of the same op off the value path, or with nothing to hold fixed or count.
        shape: of one sample.
        mutant: ``left out``: without the rule the sums do not add up, or no backward pass is possible; ``weights``:
            without it they do, or nothing shows, and a reference W must object.
    """

    hits: dict[str, Factory]
    untouched: Factory
    shape: tuple[int, ...] = (6,)
    mutant: str = "left out"


def gating(inner: Callable[..., torch.Tensor], **parts: Factory) -> Factory:
    """A network in which ``inner`` of (network, (N, 6)) only ever weights a value."""
    return lambda: Net(
        lambda n, x: n.v(x) * torch.sigmoid(inner(n, x)),
        v=nn.Linear(6, 6, bias=False),
        **{name: part() for name, part in parts.items()},
    )


def converted(recipe: str, **options: object) -> Factory:
    def made() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 4)).eval()
        x = torch.randn(2, 6)
        return bcos_fx.bcosify(net, example_inputs=x, recipe=recipe, verified=False, **options).double()

    return made


def image(*parts: Factory) -> Factory:
    def made() -> nn.Module:
        net = nn.Sequential(*(part() for part in parts), nn.Flatten(), nn.LazyLinear(3)).double().eval()
        net(torch.rand(2, 2, 6, 6).double())
        return net

    return made


def without_gradients(n: Net, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return F.relu(y)


def residual() -> nn.Module:
    return between(lambda n, y: n.c(y) + y, c=lambda: nn.BatchNorm1d(6))()


def with_sum_in_place(make: Factory) -> Factory:
    """Converted, so that the sum or the activation is written in place."""
    return lambda: bcos_fx.bcosify(
        make(), example_inputs=torch.randn(2, 6).double(), recipe="equivalent", verified=False
    ).double()


CASES: dict[str, Case] = {
    "sum-written-out-of-place": Case(
        hits={"converted": with_sum_in_place(residual)}, untouched=residual, mutant="nothing shows"
    ),
    "activation-written-out-of-place": Case(
        hits={
            "converted": with_sum_in_place(between(lambda n, y: torch.relu(n.c(y)), c=lambda: nn.BatchNorm1d(6))),
        },
        untouched=between(lambda n, y: n.c(y), c=nn.ReLU),
        mutant="nothing shows",
    ),
    "layer-constant-counted": Case(
        hits={
            "linear and call": between(lambda n, y: F.linear(y, n.w, n.c), w=lambda: own(6, 6), c=lambda: own(6)),
            "batch norm": between(lambda n, y: n.c(y), c=lambda: nn.BatchNorm1d(6)),
            "layer norm": between(lambda n, y: n.c(y), c=lambda: nn.LayerNorm(6)),
            "group norm": between(lambda n, y: n.c(y), c=lambda: nn.GroupNorm(2, 6)),
            "logits": converted("bcosification"),
            "alignment and biases": converted("equivalent"),
        },
        untouched=gating(lambda n, x: n.c(x), c=lambda: nn.Linear(6, 6)),
    ),
    "constant-of-call-counted": Case(
        hits={
            "computed weight": between(
                lambda n, y: F.linear(y, n.d(n.w), n.c), w=lambda: own(6, 6), c=lambda: own(6), d=nn.Tanh
            ),
            "masked fill": between(lambda n, y: y.masked_fill(y > 0.1, 0.7)),
            "masked fill, function": between(lambda n, y: torch.masked_fill(y, y > 0.1, 0.7)),
            "bilinear": between(lambda n, y: n.c(torch.sigmoid(y), y), 4, c=lambda: nn.Bilinear(6, 6, 4)),
            "pad, function": between(lambda n, y: F.pad(y, (1, 1), value=0.5), 8),
            "pad, module": between(lambda n, y: n.c(y), 8, c=lambda: nn.ConstantPad1d(1, 0.5)),
        },
        untouched=between(lambda n, y: F.pad(y, (1, 1)), 8),
    ),
    "constant-operand-counted": Case(
        hits={
            "operator": between(lambda n, y: y + n.c, c=lambda: own(6)),
            "function": between(lambda n, y: torch.sub(n.c, y, alpha=2), c=lambda: own(6)),
            "method": between(lambda n, y: y.maximum(n.c), c=lambda: own(6)),
            "joined": between(lambda n, y: torch.cat([y, n.c.expand(y.shape[0], -1)], 1), 8, c=lambda: own(1, 2)),
        },
        untouched=between(lambda n, y: y * n.c, c=lambda: own(6)),
    ),
    "number-counted": Case(
        hits={
            "operator": between(lambda n, y: 0.3 - y),
            "function": between(lambda n, y: torch.add(y, 0.3, alpha=2)),
            "method": between(lambda n, y: y.where(y > 0.1, 0.3)),
        },
        untouched=between(lambda n, y: y + 0),
    ),
    "layer-frozen": Case(
        hits={
            "alignment": converted("bcosification"),
            "layer norm": between(lambda n, y: n.c(y), c=lambda: nn.LayerNorm(6)),
            "layer norm, call": between(
                lambda n, y: F.layer_norm(y, (6,), n.w, n.c), w=lambda: own(6), c=lambda: own(6)
            ),
            "rms norm": between(lambda n, y: n.c(y), c=lambda: nn.RMSNorm(6)),
            "group norm": between(lambda n, y: n.c(y), c=lambda: nn.GroupNorm(2, 6)),
        },
        untouched=gating(lambda n, x: n.c(x), c=lambda: nn.LayerNorm(6)),
    ),
    "activation-ratio-frozen": Case(
        hits={
            "module": between(lambda n, y: n.c(y), c=nn.GELU),
            "function": between(lambda n, y: F.silu(y)),
            "method": between(lambda n, y: y.tanh().clamp(-0.2, 0.3)),
            "gradient stopped": between(lambda n, y: F.relu(y).detach()),
            "block without gradients": between(without_gradients),
        },
        untouched=gating(lambda n, x: F.gelu(x)),
    ),
    "hidden-gate-frozen": Case(
        hits={
            "module": between(lambda n, y: n.c(y), c=nn.Sigmoid),
            "function": between(lambda n, y: F.softplus(y)),
            "method": between(lambda n, y: y.exp()),
        },
        untouched=gating(lambda n, x: n.c(x.sigmoid()), c=lambda: nn.Linear(6, 6)),
    ),
    "scale-frozen": Case(
        hits={
            "function": between(lambda n, y: torch.var(y, 1, keepdim=True).expand_as(y)),
            "method": between(lambda n, y: y.var(1, correction=0, keepdim=True).expand_as(y)),
            "distance": between(lambda n, y: F.pairwise_distance(y, y.flip(1), eps=0.1, keepdim=True).expand_as(y)),
        },
        untouched=gating(lambda n, x: x.var(1, keepdim=True)),
    ),
    "square-frozen": Case(
        hits={"operator": between(lambda n, y: y * y), "method": between(lambda n, y: y.mul(y))},
        untouched=gating(lambda n, x: x * x),
    ),
    "normalisation-frozen": Case(
        hits={
            "function": between(lambda n, y: F.normalize(y)),
            "response norm": image(lambda: nn.Conv2d(2, 4, 3), lambda: nn.LocalResponseNorm(3, 0.5, 0.75, 2.0)),
        },
        untouched=gating(lambda n, x: F.normalize(x)),
    ),
    "gate-held-fixed": Case(
        hits={
            "operator": between(lambda n, y: y * torch.sigmoid(y)),
            "function": between(lambda n, y: torch.div(y, 1 + y.abs())),
            "method": between(lambda n, y: y.mul(y.sigmoid())),
            "attention": between(lambda n, y: F.scaled_dot_product_attention(*[y.view(-1, 3, 2)] * 3).flatten(1)),
        },
        untouched=between(lambda n, y: y * 2.0 / 3.0),
    ),
}
