"""Random numbers in eval mode: refused by name, whatever draws them, and wherever they go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import BcosFxError, VerificationError
from bcos_fx.rewriting.core.chance import draws_at_random
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.tracing import trace


class Noisy(nn.Module):
    """Two layers, and something between them."""

    def __init__(self, noise: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.c, self.fc, self.noise = nn.Linear(6, 8), nn.Linear(8, 3), noise
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.noise(self.c(x).relu()))


class AlwaysDropout(nn.Dropout):
    """Monte Carlo dropout."""

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, training=True)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "added": lambda h: h + 0.1 * torch.rand(8),
    "added, like the value": lambda h: h + torch.randn_like(h),
    "new tensor's method": lambda h: h * h.new_empty(8).bernoulli_(0.5),
    "a mask": lambda h: h * (torch.rand(h.shape) > 0.5),
    "a choice of channels": lambda h: h[:, torch.randperm(8)],
    "a sample of indices": lambda h: h[:, torch.multinomial(torch.ones(8), 8)],
    "bernoulli": lambda h: h * torch.bernoulli(torch.full((8,), 0.5)),
    "poisson": lambda h: h + torch.poisson(torch.ones(8)),
    "a gate": lambda h: h * F.gumbel_softmax(h, dim=1),
    "a gate of no value": lambda h: h * F.gumbel_softmax(torch.zeros(8), dim=0),
    "dropout": lambda h: F.dropout(h, 0.5, training=True),
    "dropout of ones": lambda h: h * F.dropout(torch.ones(8), 0.5, training=True),
    "dropout as a module": AlwaysDropout(0.5),
    "feature dropout": lambda h: F.dropout1d(h[:, :, None], 0.5, training=True)[:, :, 0],
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.5, training=True),
    "random slopes": lambda h: F.rrelu(h - 0.5, training=True),
    "attention": lambda h: F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], dropout_p=0.3)[:, 0],
    "a distribution": lambda h: h + torch.distributions.Normal(0.0, 1.0).sample((8,)),
    "a whole module": nn.Sequential(nn.Linear(8, 8), AlwaysDropout(0.5)),
}
QUIET: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda h: F.dropout(h, 0.5, training=False),
    "dropout as a module": nn.Dropout(0.5),
    "slopes": lambda h: F.rrelu(h - 0.5, training=False),
    "attention": lambda h: F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None])[:, 0],
    "sorted places": lambda h: h[:, torch.arange(7, -1, -1)],
}


def samples() -> Tensor:
    return torch.rand(3, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", DRAWS)
def test_it_is_refused_by_name(name: str) -> None:
    network = Noisy(DRAWS[name])
    certificate = bcos_fx.certify(network, samples())
    assert not certificate.ok
    assert not certificate.repeatable
    assert "test_chance.py" in certificate.to_text()
    for allowed in (False, True):
        with pytest.raises(VerificationError, match="draws random numbers in eval mode") as caught:
            bcos_fx.explain(network, samples(), 0, allow_incomplete=allowed)
        assert "give them as an input" in str(caught.value)


@pytest.mark.parametrize("name", ["added", "a mask", "dropout", "dropout of ones", "a gate of no value"])
def test_a_converted_network_is_refused_too(name: str) -> None:
    network = bcos_fx.bcosify(Noisy(DRAWS[name]), example_inputs=samples(), recipe="equivalent", input="none")
    assert not bcos_fx.certify(network).ok
    with pytest.raises(VerificationError, match="draws random numbers"):
        bcos_fx.explain(network, samples(), 0)


@pytest.mark.parametrize("name", QUIET)
def test_what_could_draw_and_does_not_is_certified(name: str) -> None:
    found = bcos_fx.explain(Noisy(QUIET[name]), samples(), 0)
    assert found.verdict != "incomplete"
    assert bcos_fx.certify(Noisy(QUIET[name]), samples()).ok


@pytest.mark.parametrize(
    "noise",
    [
        lambda h: h + torch.empty(8).uniform_(),
        lambda h: h + torch.rand(8, generator=torch.Generator().manual_seed(1)),
    ],
)
def test_what_no_graph_holds_is_refused_when_tracing(noise: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(BcosFxError, match=r"test_chance\.py"):
        bcos_fx.explain(Noisy(noise), samples(), 0)


def test_python_and_numpy_are_refused_when_tracing() -> None:
    import random

    import numpy as np

    branches = (torch.relu, torch.tanh)
    for noise in (
        lambda h: h * random.random(),
        lambda h: h * float(np.random.rand()),
        # Run twice, these are the same as often as not.
        lambda h: random.choice(branches)(h),
        lambda h: h if random.random() < 0.8 else h * 0,
        lambda h: h[:, [int(place) for place in np.random.permutation(2)]].repeat(1, 4),
    ):
        with pytest.raises(BcosFxError, match="random numbers that Python code draws in eval mode"):
            bcos_fx.certify(Noisy(noise), samples())


def test_what_python_draws_and_uses_in_train_mode_alone_is_no_matter() -> None:
    import random

    class SkipsLayers(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            drawn = random.random()
            h = self.c(x).relu()
            return self.fc(h if self.training and drawn < 0.5 else self.noise(h))

    assert bcos_fx.certify(SkipsLayers(torch.relu), samples()).ok


def test_noise_that_leads_nowhere_is_no_matter() -> None:
    class Unused(Noisy):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3)
            return super().forward(x)

    assert bcos_fx.certify(Unused(torch.relu), samples()).ok


def test_past_the_source_it_is_refused_and_before_it_too() -> None:
    network = nn.Sequential(nn.Linear(6, 8), AlwaysDropout(0.5), nn.ReLU(), nn.Linear(8, 3)).eval()
    for source in ("0", "2"):
        assert not bcos_fx.certify(network, samples(), source=source).ok


@pytest.mark.parametrize("name", sorted(DRAWS.keys() - {"a gate", "a gate of no value"}))
def test_torch_s_own_mark_agrees_with_the_generator(name: str) -> None:
    """Of nodes that nothing ran, such as those of a file, the mark decides, or the options of an op."""
    graph_module = trace(Noisy(DRAWS[name]), samples()).graph_module
    drawing = [node for node in graph_module.graph.nodes if node.meta.pop("draws")]
    assert drawing
    for node in drawing:
        call = vocabulary().call(node, graph_module)
        switched = call is not None and call.op.linearity != "opaque"
        has_switch = any(word in str(node.target) for word in ("dropout", "rrelu", "attention"))
        assert draws_at_random(node, call) or switched or has_switch
