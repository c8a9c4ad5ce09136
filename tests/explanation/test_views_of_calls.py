"""Whatever is certified is complete, and is the network's own value; whatever is not is named, node and reason."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import UsageError
from bcos_fx.explanation.certify import certify
from bcos_fx.explanation.completeness import all_numbers, check_completeness
from bcos_fx.explanation.view import view_of
from bcos_fx.explanation.weights import DynamicWeights
from bcos_fx.testing import randomise_
from tests.explanation.view_networks import APART, NOT_LINEAR, SEQUENCES, VECTORS, Net, own

CASES = [pytest.param(made, (6,), True, id=name) for name, made in VECTORS.items() if "written into" not in name]
CASES += [pytest.param(made, (6,), False, id=name) for name, made in VECTORS.items() if "written into" in name]
CASES += [pytest.param(made, (4, 6), name in APART, id=name) for name, made in SEQUENCES.items()]


def samples(*shape: int, count: int = 3) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64)


def same(one: DynamicWeights, other: DynamicWeights, row: int) -> None:
    """Sample ``row`` of a batch is what it is alone."""
    close = {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(other.weights[row], one.weights[0], **close)
    torch.testing.assert_close(other.output[row], one.output[0], **close)
    assert one.constants.keys() == other.constants.keys()
    for name, values in one.constants.items():
        torch.testing.assert_close(other.constants[name][row], values[0], **close)


@pytest.mark.parametrize(("made", "shape", "apart"), CASES)
def test_certified_is_complete_alone_and_in_a_batch(
    made: Callable[[], Net], shape: tuple[int, ...], apart: bool
) -> None:
    network, x = made(), samples(*shape)
    view = view_of(network, x)
    assert view.certificate.ok, view.certificate.to_text()
    assert tuple(dict.fromkeys(c.source for c in view.certificate.constants)) == view.sources
    with torch.no_grad():
        torch.testing.assert_close(view.value([x]), network(x), rtol=1e-12, atol=1e-12)
    alone = [view.dynamic_weights([x[i : i + 1]], all_numbers()) for i in range(len(x))]
    found = check_completeness(view, [x])
    assert found.ok, str(found)
    assert found.worst < 1e-12
    for row, one in enumerate(alone):
        for name, values in one.constants.items():
            torch.testing.assert_close(found.constants[name][row], values[0], rtol=1e-11, atol=1e-11)
    if view.separable:
        batch = view.dynamic_weights([x], all_numbers())
        for row, one in enumerate(alone):
            same(one, batch, row)
    else:
        assert not apart
        with pytest.raises(UsageError, match="cannot be told apart"):
            view.dynamic_weights([x], all_numbers())


@pytest.mark.parametrize("name", sorted(APART))
def test_samples_in_slowest_order_are_told_apart(name: str) -> None:
    assert view_of(SEQUENCES[name](), samples(4, 6)).separable


@pytest.mark.parametrize("name", list(NOT_LINEAR))
def test_what_is_not_linear_is_named(name: str) -> None:
    made, op = NOT_LINEAR[name]
    certificate = (
        certify(made(), samples(6)[:2]) if name != "random slopes" else view_of(made(), samples(6)).certificate
    )
    assert not certificate.ok
    assert any(op in found.op for found in certificate.breaks), certificate.to_text()
    assert all(found.reason and found.node for found in certificate.breaks)
    assert any("view_networks.py:" in (found.source or "") for found in certificate.breaks)


@pytest.mark.parametrize("name", ["a reciprocal", "argmax", "softmax", "round"])
def test_off_the_value_path_it_breaks_nothing(name: str) -> None:
    made, _ = NOT_LINEAR[name]
    gate = made().b
    inner = made()
    network = Net(lambda n, x: n.v(x) * torch.sigmoid(n.inner(x)), v=nn.Linear(6, 3), inner=inner)
    assert gate is not inner.b
    certificate = certify(network, samples(6))
    assert certificate.ok, certificate.to_text()
    assert certificate.completeness is not None
    assert certificate.completeness.ok
    assert {c.source for c in certificate.constants} == {"v.bias"}


def test_choices_say_why() -> None:
    network = Net(lambda n, x: torch.relu(n.a(x)) * n.b(x), a=nn.Linear(6, 3), b=nn.Linear(6, 3))
    (choice,) = certify(network, samples(6)).choices
    assert (choice.node, choice.gate) == ("mul", "relu")
    assert "activation" in choice.why


# ---------------------------------------------------------------- inner layers, several inputs


class Bypassed(nn.Module):
    """An inner layer, ``body``, that two skip connections bypass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.short = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.fc = nn.Linear(4, 5)
        randomise_(self).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.stem(x))
        return self.fc((self.body(y) + y + self.short(x)).mean((2, 3)))


def converted(recipe: str = "equivalent", **options: object) -> nn.Module:
    network = bcos_fx.bcosify(
        Bypassed(), example_inputs=torch.rand(2, 3, 8, 8).double(), recipe=recipe, mean=(0.4,) * 3, std=(0.2,) * 3,
        verified=False, **options,
    )  # fmt: skip
    return network.double()


PLACES = [{}, {"source": "stem"}, {"source": "body.0"}, {"source": "body"}, {"output": "body"},
          {"output": "body.0", "source": "stem"}, {"output": "stem"}]  # fmt: skip


@pytest.mark.parametrize("recipe", ["plain", "equivalent", "bcosification"])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_from_and_to_inner_layers_it_is_complete(recipe: str, place: dict[str, str]) -> None:
    """Past a source in the middle the image contributes too: encoded, where the network encodes it."""
    network = Bypassed() if recipe == "plain" else converted(recipe)
    x = torch.rand(3, 3, 8, 8).double()
    found = check_completeness(view_of(network, x, **place), [x], select=lambda value: value.flatten(1).sum(1, True))
    assert found.ok, str(found)
    bypassed = "source" in place and "output" not in place
    assert ("the input x" in found.constants) == bypassed


def test_inputs_by_name_come_in_any_order_and_the_second_contributes() -> None:
    network = Net(lambda n, x, y: n.a(x) + torch.relu(n.b(y)), a=nn.Linear(4, 3), b=nn.Linear(5, 3))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.network(x, y)

    found = certify(Named().eval(), {"y": samples(5), "x": samples(4)}).completeness
    assert found is not None
    assert found.ok
    assert "the input y" in found.constants


def test_token_indices_are_explained_by_their_embedding() -> None:
    network = Net(
        lambda n, i: n.f(torch.relu(n.e(i) + n.p + 0.1).mean(1)),
        e=nn.Embedding(9, 6),
        f=nn.Linear(6, 3),
        p=own(1, 4, 6),
    )
    tokens = torch.randint(0, 9, (3, 4))
    found = check_completeness(view_of(network, tokens, source="e"), [tokens])
    assert found.worst < 1e-12
    with pytest.raises(UsageError, match="integers"):
        view_of(network, tokens)


def test_a_transposed_convolution_keeps_the_size_that_it_was_asked_for() -> None:
    network = Net(
        lambda n, x: n.u(x, output_size=[10, 10]).flatten(1), u=nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)
    )
    x = samples(2, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(view_of(network, x).value([x]), network(x))
    assert bcos_fx.bcosify(network, example_inputs=x, recipe="equivalent")(x).shape == (3, 300)


# ---------------------------------------------------------------- a view and its network


def test_a_view_follows_its_network_and_leaves_it_alone() -> None:
    network = converted()
    view, x = view_of(network), torch.rand(2, 3, 8, 8).double()
    assert {id(p) for p in view.graph_module.parameters()} == {id(p) for p in network.parameters()}
    flags = [p.requires_grad for p in network.parameters()]
    x.requires_grad_()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(x).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    x.grad = None
    with torch.no_grad():
        network.fc_conv.bias.add_(1) if hasattr(network, "fc_conv") else None
    assert check_completeness(view, [x]).ok
    torch.testing.assert_close(view.value([x]), network(x).detach(), rtol=1e-12, atol=1e-12)
    assert x.grad is None
    assert all(p.grad is None for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == flags
    network.float()
    assert check_completeness(view, [x.float()]).ok
    assert view.separable


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_grad_mode_does_not_matter(mode: Callable[[], object]) -> None:
    view, x = view_of(converted()), torch.rand(2, 3, 8, 8).double()
    expected = view.dynamic_weights([x], all_numbers())
    with mode():  # type: ignore[attr-defined]
        again = [view.dynamic_weights([x * 1], all_numbers()) for _ in range(2)]
    assert all(torch.equal(found.weights, expected.weights) for found in again)


def test_train_mode_is_refused_before_and_after() -> None:
    network = converted()
    view = view_of(network)
    network.train()
    with pytest.raises(UsageError, match="train mode"):
        view_of(network)
    with pytest.raises(UsageError, match="train mode"):
        view.dynamic_weights([torch.rand(1, 3, 8, 8).double()], all_numbers())


def test_two_threads_do_not_see_each_other() -> None:
    view, inputs = view_of(converted()), [torch.rand(2, 3, 8, 8).double() for _ in range(2)]
    expected = [view.dynamic_weights([x], all_numbers()).weights for x in inputs]
    found: dict[int, list[Tensor]] = {0: [], 1: []}

    def work(which: int) -> None:
        found[which] += [view.dynamic_weights([inputs[which]], all_numbers()).weights for _ in range(8)]

    threads = [threading.Thread(target=work, args=(which,)) for which in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which, weights in found.items():
        assert len(weights) == 8
        assert all(torch.equal(one, expected[which]) for one in weights)


@pytest.mark.parametrize("b", [1.0, 1.5, 2.0])
def test_at_zero_nothing_is_undefined(b: float) -> None:
    network = converted("bcosification", b=b)
    found = view_of(network).dynamic_weights([torch.zeros(2, 3, 8, 8).double()], all_numbers())
    assert bool(found.weights.isfinite().all())
    for made in VECTORS.values():
        plain = made()
        zero = torch.zeros(1, 6).double()
        weights = view_of(plain, zero).dynamic_weights([zero], all_numbers()).weights
        assert bool(weights.isfinite().all())
