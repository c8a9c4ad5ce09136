"""Stochastic depth, whoever wrote it: a converted network drops paths in train mode as the original does."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.nn import DropPath


class PerSample(nn.Module):
    """As in Swin and ConvNeXt."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = 1 - self.drop_prob
        drawn = keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x.div(keep) * drawn.floor_()


class Survival(nn.Module):
    """Another attribute, nothing is scaled."""

    def __init__(self, survival: float) -> None:
        super().__init__()
        self.survival = survival

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x * torch.bernoulli(torch.full((len(x), *[1] * (x.dim() - 1)), self.survival).to(x))
        return x


class WholeBatch(nn.Module):
    """One draw for all samples, by Python."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * 0 if random.random() < self.rate else x / (1 - self.rate)


class OneFewer(PerSample):
    """Not what it seems, and no module that stands for it: the first sample is never dropped."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:1], super().forward(x[1:])])


class Noise(nn.Module):
    """Random in train mode, and nothing like it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x + self.p * torch.randn_like(x) if self.training else x


class OtherInEval(PerSample):
    """Weighted by the probability in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x * (1 - self.drop_prob)


def of_torchvision(p: float) -> nn.Module:
    ops = pytest.importorskip("torchvision.ops")
    module: nn.Module = ops.StochasticDepth(p, "batch")
    return module


def of_timm(p: float) -> nn.Module:
    layers = pytest.importorskip("timm.layers")
    module: nn.Module = layers.DropPath(p)
    return module


class Block(nn.Module):
    """Two residual branches."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.drop, self.head = nn.Linear(6, 6), nn.Linear(6, 6), drop, nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.a(x).relu())
        return self.head(x + self.drop(self.b(x).relu()))


def converted(drop: nn.Module, **options: Any) -> Any:
    made = bcos_fx.bcosify(Block(drop).train(), example_inputs=torch.rand(4, 6), recipe="equivalent", **options)
    assert not made.training
    return made


# The module, and the one that stands for it.
KNOWN: dict[str, tuple[Callable[[], nn.Module], DropPath]] = {
    "as in Swin": (lambda: PerSample(0.3), DropPath(0.3)),
    "hardly ever": (lambda: PerSample(0.02), DropPath(0.02)),
    "survival": (lambda: Survival(0.7), DropPath(0.3, scale_by_keep=False)),
    "drawn by Python": (lambda: WholeBatch(0.4), DropPath(0.4, "batch")),
    "torchvision": (lambda: of_torchvision(0.25), DropPath(0.25, "batch")),
    "timm": (lambda: of_timm(0.5), DropPath(0.5)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_it_is_known_by_what_it_does(name: str, tmp_path: Path) -> None:
    make, wanted = KNOWN[name]
    made = converted(make())
    assert made.report.train_difference is None
    bcos_fx.save(made, tmp_path / "made.safetensors")
    for network in (made, bcos_fx.load(tmp_path / "made.safetensors")):
        found = network.get_submodule("drop")
        assert type(found) is DropPath
        assert (found.p, found.mode, found.scale_by_keep) == (
            pytest.approx(wanted.p),
            wanted.mode,
            wanted.scale_by_keep,
        )
        x = torch.rand(3, 6)
        assert bcos_fx.explain(network, x, 0).complete
        network.train()
        torch.manual_seed(0)
        assert len({tuple(network(x).flatten().tolist()) for _ in range(40)}) > 1
        network.eval()
        torch.testing.assert_close(network(x), Block(make()).eval()(x))


def test_what_is_around_a_dropped_path_stays() -> None:
    made = converted(OneFewer(0.3))
    assert made.report.train_difference is None
    found = [part for part in made.modules() if isinstance(part, DropPath)]
    assert [part.p for part in found] == [pytest.approx(0.3)] * 2
    original, x = Block(OneFewer(0.3)).train(), torch.rand(1, 6).expand(600, 6)
    ours, theirs = made.train()(x), original(x)
    torch.testing.assert_close(ours[0], theirs[0])  # the first sample is never dropped
    rows = [{tuple(row) for row in (1e3 * values).round().tolist()} for values in (ours, theirs)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("kind", [Noise, OtherInEval], ids=lambda kind: kind.__name__)
def test_what_does_something_else_is_not_trained_as_that(kind: Callable[[float], nn.Module]) -> None:
    made = converted(kind(0.3))
    assert not any(isinstance(part, DropPath) for part in made.modules())
    with pytest.raises(bcos_fx.BcosFxError, match="cannot be trained as the original"):
        made.train()


Dropping = Callable[[Tensor, float, bool], Tensor]


def by_bernoulli(x: Tensor, p: float, training: bool) -> Tensor:
    if p == 0.0 or not training:
        return x
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - p)
    return x * mask.div_(1 - p)


def by_floor(x: Tensor, p: float, training: bool) -> Tensor:
    if not training:
        return x
    drawn = 1 - p + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
    return x.div(1 - p) * drawn.floor_()


def of_torchvision_s_function(mode: str) -> Dropping:
    def drop(x: Tensor, p: float, training: bool) -> Tensor:
        return pytest.importorskip("torchvision.ops").stochastic_depth(x, p, mode, training)

    return drop


# A function that is called in forward, and the layer that stands for it; None: nothing does.
FUNCTIONS: dict[str, tuple[Dropping, DropPath | None]] = {
    "bernoulli": (by_bernoulli, DropPath(0.3)),
    "floor": (by_floor, DropPath(0.3)),
    "not scaled": (
        lambda x, p, on: torch.bernoulli(torch.full((len(x), 1), 1 - p)) * x if on else x,
        DropPath(0.3, scale_by_keep=False),
    ),
    "a comparison": (lambda x, p, on: x * (torch.rand(x.shape[0], 1) >= p) / (1 - p) if on else x, DropPath(0.3)),
    "all samples at once": (lambda x, p, on: x * (torch.rand(1) > p) / (1 - p) if on else x, DropPath(0.3, "batch")),
    "torchvision": (of_torchvision_s_function("row"), DropPath(0.3)),
    "torchvision, at once": (of_torchvision_s_function("batch"), DropPath(0.3, "batch")),
    "every number": (lambda x, p, on: x * (torch.rand_like(x) > p) / (1 - p) if on else x, None),
    "noise": (lambda x, p, on: x + p * torch.randn_like(x) if on else x, None),
    "a shift beside": (lambda x, p, on: by_floor(x, p, on) + 0.1 if on else x, None),
    "another probability": (lambda x, p, on: x * (torch.rand(x.shape[0], 1) >= p) / p if on else x, None),
}


class Functional(nn.Module):
    """Two residual branches, dropped by a function."""

    def __init__(self, drop: Dropping) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.drop = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2), drop

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.a(x).relu(), 0.3, self.training)
        return self.head(x + self.drop(self.b(x).relu(), 0.15, self.training))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_in_forward_is_known_by_what_it_does(name: str) -> None:
    drop, wanted = FUNCTIONS[name]
    made = bcos_fx.bcosify(Functional(drop).train(), example_inputs=torch.rand(4, 6), recipe="equivalent")
    found = [part for part in made.modules() if isinstance(part, DropPath)]
    if wanted is None:
        assert not found
        with pytest.raises(bcos_fx.BcosFxError, match="cannot be trained as the original"):
            made.train()
        return
    assert [(layer.p, layer.mode, layer.scale_by_keep) for layer in found] == [
        (pytest.approx(p), wanted.mode, wanted.scale_by_keep) for p in (0.3, 0.15)
    ]
    stored, x = from_bytes(to_bytes(made)), torch.rand(3, 6)
    torch.testing.assert_close(stored(x), Functional(drop).eval()(x))
    assert bcos_fx.explain(stored, x, 0).complete
    samples = torch.rand(1, 6).expand(6000, 6)
    with torch.no_grad():
        torch.manual_seed(0)
        ours, theirs = stored.train()(samples), Functional(drop).train()(samples)
    if wanted.mode == "row":  # the same four sums of branches, as often
        rows = [{tuple(row) for row in (1e3 * values).round().tolist()} for values in (ours, theirs)]
        assert rows[0] == rows[1]
        torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.02)


def test_a_value_that_is_used_beside_its_dropped_self_is_refused() -> None:
    def doubled(x: Tensor, p: float, training: bool) -> Tensor:
        return x + by_floor(x, p, training)

    made = bcos_fx.bcosify(Functional(doubled).train(), example_inputs=torch.rand(4, 6), recipe="equivalent")
    with pytest.raises(bcos_fx.BcosFxError, match="cannot be trained as the original"):
        made.train()


def test_the_callers_chance_stays_as_it_was() -> None:
    network, x = Block(WholeBatch(0.4)), torch.rand(4, 6)
    before = random.getstate(), torch.get_rng_state().tolist()
    bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent")
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
    assert type(network.drop) is WholeBatch


def test_samples_are_dropped_at_the_rate_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    layer, x = DropPath(0.25).train(), torch.rand(4000, 2, 3) + 1
    rows = layer(x).flatten(1)
    dropped = (rows == 0).all(1)
    assert ((rows == 0).any(1) == dropped).all()
    assert float(dropped.double().mean()) == pytest.approx(0.25, abs=0.04)
    torch.testing.assert_close(rows[~dropped], x.flatten(1)[~dropped] / 0.75)
    assert layer.eval()(x) is x


@pytest.mark.parametrize("given", [{"p": 1.5}, {"p": 0.5, "mode": "column"}])
def test_wrong_options_are_refused(given: Any) -> None:
    with pytest.raises(bcos_fx.BcosFxError):
        DropPath(**given)


def test_a_network_of_torchvision_can_be_trained() -> None:
    models = pytest.importorskip("torchvision.models")
    block = models.convnext.CNBlock(8, 1e-6, 0.5)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, 4), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    made = bcos_fx.bcosify(network, example_inputs=torch.rand(2, 3, 16, 16))
    made.train()
    assert isinstance(made.get_submodule("1.stochastic_depth"), DropPath)


@pytest.mark.parametrize("dropout", [nn.AlphaDropout(0.5), nn.FeatureAlphaDropout(0.5)], ids=["alpha", "feature alpha"])
def test_alpha_dropout_does_nothing_in_eval_mode(dropout: nn.Module) -> None:
    torch.manual_seed(0)
    first, last, x = nn.Linear(6, 8), nn.Linear(8, 4), torch.randn(3, 6)
    network = nn.Sequential(first, nn.SELU(), dropout, last).eval()
    expected = bcos_fx.explain(nn.Sequential(first, nn.SELU(), last).eval(), x, 1)
    found = bcos_fx.explain(network, x, 1)
    torch.testing.assert_close(found.input_weights, expected.input_weights)
    assert found.complete
    made = bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent", input="none")
    torch.testing.assert_close(made(x), network(x))
    assert any(type(layer) is type(dropout) for layer in made.modules())
