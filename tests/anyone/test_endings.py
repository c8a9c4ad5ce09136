"""Networks that end in probabilities: the value before them, and hints that lead somewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import VerificationError
from bcos_fx.explanation.view import view_of


class Ending(nn.Module):
    """A small classifier, and what is done to its scores."""

    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.pool, self.fc, self.end = nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4), end
        self.double().eval()

    def scores(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.conv(x).relu()), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.scores(x))


def by_hand(x: Tensor) -> Tensor:
    powers = torch.exp(x - x.amax(1, keepdim=True))
    return powers / powers.sum(1, keepdim=True)


ENDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": nn.Softmax(1),
    "log_softmax": lambda x: F.log_softmax(x, 1),
    "log_softmax, a module": nn.LogSoftmax(1),
    "log_softmax, a method": lambda x: x.log_softmax(-1),
    "log of softmax": lambda x: x.softmax(1).log(),
    "log of softmax and something": lambda x: torch.log(F.softmax(x, 1) + 1e-7),
    "clamped": lambda x: torch.softmax(x, 1).clamp(1e-6, 1 - 1e-6),
    "clamped below": lambda x: torch.sigmoid(x).clamp(min=1e-6).log(),
    "log sigmoid": nn.LogSigmoid(),
    "log sigmoid, a function": F.logsigmoid,
    "normalised": lambda x: x - torch.logsumexp(x, 1, keepdim=True),
    "normalised, a method": lambda x: x - x.logsumexp(dim=1, keepdim=True),
    "by hand": by_hand,
    "log of that": lambda x: by_hand(x).log(),
    "in percent": lambda x: 100 * torch.sigmoid(x),
    "two gates": nn.Sequential(nn.Softmax(1), nn.Sigmoid()),
}


# name -> what is done to the scores, and the scores as they stand in its places
MOVED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "of the other": (lambda x: 1 - torch.sigmoid(x), lambda x: -x),
    "negative log likelihoods": (lambda x: -x.log_softmax(1), lambda x: -x),
    "times a negative number": (lambda x: x.sigmoid() * -100, lambda x: -x),
    "twice the other": (lambda x: 1 - (1 - torch.sigmoid(x)), lambda x: x),
    "an inverse": (lambda x: 1 / x.sigmoid(), lambda x: -x),
    "reshaped": (lambda x: x.softmax(1).view(-1, 2, 2).flatten(1), lambda x: x),
    "a column": (lambda x: x.softmax(1)[:, 1:], lambda x: x[:, 1:]),
    "permuted": (lambda x: x.softmax(1).flip(1), lambda x: x.flip(1)),
    "transposed twice": (lambda x: x.softmax(1).T.t(), lambda x: x),
    "a column and its logarithm": (lambda x: (x.softmax(1)[:, 1:] + 1e-8).log(), lambda x: x[:, 1:]),
    "a part of a split": (lambda x: x.softmax(1).chunk(2, 1)[1], lambda x: x[:, 2:]),
    "cast": (lambda x: x.softmax(1).to(torch.float64)[:, :3], lambda x: x[:, :3]),
    "one and the other": (
        lambda x: torch.stack([1 - x[:, 0].sigmoid(), x[:, 0].sigmoid()], 1),
        lambda x: both(x[:, :1]),
    ),
    "two heads": (lambda x: torch.cat([x[:, :2].softmax(1), x[:, 2:].softmax(1)], 1), lambda x: x),
    "softmin": (lambda x: F.softmin(x, 1), lambda x: -x),
    "a negative power": (lambda x: x.sigmoid() ** -2, lambda x: -x),
}


def both(x: Tensor) -> Tensor:
    return torch.cat([-x, x], 1)


def images() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", ENDINGS)
def test_logits_are_the_value_before(name: str, rewritten: bool) -> None:
    torch.manual_seed(0)
    network = Ending(ENDINGS[name])
    model: Any = network
    if rewritten:
        model = bcos_fx.bcosify(network, example_inputs=images(), recipe="equivalent")
    found = bcos_fx.explain(model, images(), 1, output="logits")
    leaf = images().requires_grad_()
    (expected,) = torch.autograd.grad(network.scores(leaf)[:, 1].sum(), leaf)
    torch.testing.assert_close(found.input_weights, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.output, network.scores(images())[:, 1].detach(), rtol=1e-9, atol=1e-12)
    assert found.complete


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", MOVED)
def test_logits_stand_where_the_probabilities_stand(name: str, rewritten: bool) -> None:
    torch.manual_seed(0)
    end, moved = MOVED[name]
    network = Ending(end)
    model: Any = network
    if rewritten:
        model = bcos_fx.bcosify(network, example_inputs=images(), recipe="equivalent")
    found = bcos_fx.explain(model, images(), 0, output="logits")
    leaf = images().requires_grad_()
    (expected,) = torch.autograd.grad(moved(network.scores(leaf))[:, 0].sum(), leaf)
    torch.testing.assert_close(found.input_weights, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.scores, moved(network.scores(images())).detach(), rtol=1e-9, atol=1e-12)
    assert found.complete


@pytest.mark.parametrize("name", [*MOVED, "averaged"])
def test_layers_before_probabilities_are_raised(name: str) -> None:
    """They carry the scores, whatever is done to the probabilities."""
    end = MOVED[name][0] if name in MOVED else lambda x: x.softmax(1).unflatten(1, (2, 2)).mean(1)
    made = bcos_fx.bcosify(Ending(end), example_inputs=images(), recipe="bcosification")
    raised = [row.name for row in made.report.nodes if row.op.startswith("bcos_")]
    assert len(raised) == 2, raised


def test_probabilities_that_are_averaged_have_a_hint_to_their_scores() -> None:
    network = Ending(lambda x: x.unflatten(1, (2, 2)).softmax(1).mean(2))
    for output in (None, "logits"):
        with pytest.raises(VerificationError, match="makes a gate") as caught:
            bcos_fx.explain(network, images(), 1, output=output)
        assert 'output="unflatten"' in (caught.value.hint or "")
    assert bcos_fx.explain(network, images(), (1, 1), output="unflatten").complete


@pytest.mark.parametrize("name", ENDINGS)
def test_the_hint_leads_there(name: str) -> None:
    network = Ending(ENDINGS[name])
    with pytest.raises(VerificationError) as caught:
        bcos_fx.explain(network, images(), 1)
    assert caught.value.hint is not None
    assert 'output="logits"' in caught.value.hint


def test_a_hint_never_repeats_what_was_typed() -> None:
    network = Ending(lambda x: x)
    network.end = nn.Sequential(nn.LogSoftmax(1), nn.Linear(4, 3)).double()
    with pytest.raises(VerificationError) as caught:
        bcos_fx.explain(network, images(), 1, output="logits")
    assert "logits" not in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("a layer", nn.Sequential(nn.Sigmoid(), nn.Linear(4, 4))),
        ("an activation", nn.ReLU()),
        ("an average", lambda x: x.softmax(1).unflatten(1, (2, 2)).mean(1)),
        ("nothing", nn.Identity()),
        ("probabilities beside scores", lambda x: torch.cat([x.softmax(1), x], 1)),
        ("differences of probabilities", lambda x: torch.cat([x.sigmoid()[:, :1], x.sigmoid().diff(dim=1)], 1)),
        ("products of probabilities", lambda x: x.sigmoid().cumprod(1)),
    ],
)
def test_what_is_no_ending_is_not_stepped_over(name: str, end: Callable[[Tensor], Tensor]) -> None:
    network = Ending(end)
    view = view_of(network, images(), output="logits")
    torch.testing.assert_close(view.value([images()]), network(images()))


@pytest.mark.parametrize("recipe", ["equivalent", "bcosification"])
@pytest.mark.parametrize("end", [nn.Identity(), nn.LogSoftmax(1)], ids=["scores", "log_softmax"])
def test_a_layer_that_was_moved_before_the_pooling_is_still_that_layer(recipe: str, end: nn.Module) -> None:
    torch.manual_seed(0)
    network = Ending(end)
    model = bcos_fx.bcosify(network, example_inputs=images(), recipe=recipe)
    moved = [row for row in model.report.nodes if row.op == "bcos_conv2d" and row.was == "linear"]
    assert moved, "the classifier was expected to stand before the pooling"
    found = bcos_fx.explain(model, images(), 2, output="fc")
    assert found.scores is not None
    assert found.scores.shape == (2, 4)
    assert found.residual.abs().max() < 1e-9 * found.output.abs().max().clamp_min(1e-6)
    if recipe == "equivalent":
        torch.testing.assert_close(found.scores, network.scores(images()).detach(), rtol=1e-9, atol=1e-12)
    by_it = bcos_fx.explain(model, images(), 2, output="logits", source="fc")
    assert by_it.encoded.shape == (2, 4)


@pytest.mark.parametrize("name", [*ENDINGS, *MOVED, "averaged"])
def test_no_logit_bias_comes_after_probabilities(name: str) -> None:
    torch.manual_seed(0)
    more = {name: end for name, (end, _) in MOVED.items()}
    more["averaged"] = lambda x: x.softmax(1).unflatten(1, (2, 2)).mean(1)
    network = Ending(more.get(name) or ENDINGS[name])
    made = bcos_fx.bcosify(network, example_inputs=images(), head="logit", b=1)
    assert not any(isinstance(layer, bcos_fx.nn.LogitLayer) for layer in made.modules())
    (reason,) = [miss.reason for miss in made.report.near_misses if miss.rule == "logit-layer-added"]
    assert "a logit bias belongs before it" in reason
