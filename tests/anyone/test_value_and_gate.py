"""Which factor carries the explained input: selections of several inputs, against autograd of each one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.errors import VerificationError
from bcos_fx.nn import BcosLayer


class Net(nn.Module):
    """Layers `c` and `fc`, and what a test does with them."""

    def __init__(self, forward: Callable[..., Tensor], c: nn.Module, fc: nn.Module) -> None:
        super().__init__()
        self.c, self.fc, self.function = c, fc, forward
        self.double().eval()

    def forward(self, x: Tensor, second: Tensor) -> Tensor:
        return self.function(self, x, second)


def convolution() -> nn.Module:
    return nn.Conv2d(3, 8, 3, padding=1)


def linear() -> nn.Module:
    return nn.Linear(5, 8)


IMAGE, MAP = (3, 6, 6), (1, 6, 6)
TOKENS, FLAGS, GRAPH = (7, 5), (7, 1), (7, 7)
# name -> forward, first layer, shape of x, shape of the second input, whether that one carries a value alone
CASES: dict[str, tuple[Any, Any, tuple[int, ...], tuple[int, ...], bool]] = {
    "mask": (lambda n, x, m: n.fc((n.c(x).relu() * m).sum((2, 3))), convolution, IMAGE, MAP, True),
    "mask first": (lambda n, x, m: n.fc((m * F.relu(n.c(x))).mean((2, 3))), convolution, IMAGE, MAP, True),
    "scale": (lambda n, x, s: n.fc(n.c(x).relu().mul(s)), linear, (5,), (8,), True),
    "pooled mask": (lambda n, x, m: n.fc(F.max_pool2d(n.c(x) * m, 2).mean((2, 3))), convolution, IMAGE, MAP, True),
    "masked mean": (
        lambda n, x, m: n.fc((n.c(x).relu() * m).sum(1) / (m.sum(1) + 1)),
        linear,
        TOKENS,
        FLAGS,
        True,
    ),
    "adjacency": (lambda n, x, a: n.fc(F.relu(a @ n.c(x)).mean(1)), linear, TOKENS, GRAPH, True),
    "bmm": (lambda n, x, a: n.fc(torch.bmm(a, n.c(x)).relu().amax(1)), linear, TOKENS, GRAPH, True),
    "einsum": (lambda n, x, a: n.fc(torch.einsum("nij,njf->nf", a, n.c(x).relu())), linear, TOKENS, GRAPH, True),
    "addcmul": (lambda n, x, s: n.fc(torch.addcmul(n.c(x), n.c(x).relu(), s, value=0.5)), linear, (5,), (8,), True),
    "branch": (lambda n, x, b: n.fc(torch.where(b > 0, n.c(x).relu(), b)), linear, (5,), (8,), True),
    "difference": (lambda n, x, b: n.fc((n.c(x) - b).relu()), linear, (5,), (8,), True),
    "larger": (lambda n, x, b: n.fc(torch.maximum(n.c(x), b)), linear, (5,), (8,), True),
    "joined": (lambda n, x, b: n.fc(torch.cat([n.c(x)[:, :4], b], 1).relu()), linear, (5,), (4,), True),
    "quotient": (lambda n, x, b: n.fc(n.c(x).relu() / (1 + b.abs())), linear, (5,), (8,), False),
    "gate network": (lambda n, x, b: n.fc(n.c(x).relu() * n.c(b).sigmoid()), linear, (5,), (5,), False),
    "its own kernel": (lambda n, x, k: n.fc(F.linear(n.c(x).relu()[0:1], k[0])), linear, (5,), (8, 8), False),
}


def made(name: str) -> tuple[Net, list[Tensor], bool]:
    torch.manual_seed(3)
    function, layer, shape, second, carries = CASES[name]
    samples = 1 if name == "its own kernel" else 2
    inputs = [torch.randn(samples, *shape).double(), torch.randn(samples, *second).double()]
    return Net(function, layer(), nn.Linear(8, 3)), inputs, carries


def gradient(network: nn.Module, inputs: list[Tensor], place: int) -> Tensor:
    """(N, K, ...) of the original network, by autograd."""
    given = [value.clone().requires_grad_(index == place) for index, value in enumerate(inputs)]
    numbers = network(*given)
    return torch.stack([torch.autograd.grad(y.sum(), given[place], retain_graph=True)[0] for y in numbers.T], 1)


@pytest.mark.parametrize("rewritten", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", CASES)
def test_the_main_input_carries_the_value(name: str, rewritten: bool) -> None:
    network, inputs, _ = made(name)
    model: Any = network
    if rewritten:
        model = bcos_fx.bcosify(network, example_inputs=inputs, recipe="equivalent", input="none")
        assert any(path.startswith("c") and isinstance(part, BcosLayer) for path, part in model.named_modules())
    found = bcos_fx.explain(model, inputs[0], torch.arange(3).expand(len(inputs[0]), 3), others=inputs[1:])
    torch.testing.assert_close(found.weights, gradient(network, inputs, 0), rtol=1e-9, atol=1e-11)
    assert found.complete
    assert bool((found.weights != 0).any())
    assert found.residual.abs().max() < 1e-9


# The second input of the masked mean divides too, and a denominator is a gate: no network of selections in it.
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[-1] and name != "masked mean"])
def test_the_other_input_does_where_it_is_asked_for(name: str) -> None:
    network, inputs, _ = made(name)
    target = torch.arange(3).expand(len(inputs[0]), 3)
    found = bcos_fx.explain(network, inputs[0], target, others=inputs[1:], source="second")
    torch.testing.assert_close(found.weights, gradient(network, inputs, 1), rtol=1e-9, atol=1e-11)
    assert found.inputs.shape == inputs[1].shape
    assert found.residual.abs().max() < 1e-9


def test_the_gate_of_another_input_is_an_activation_of_its_own() -> None:
    network, inputs, _ = made("gate network")
    found = bcos_fx.explain(network, inputs[0], 0, others=inputs[1:], source="second")
    assert found.complete
    before = network.c(inputs[1])
    weight = network.c(inputs[0]).relu() * network.fc.weight[0]  # of the other input alone, so a constant
    expected = (weight * (before.sigmoid() - 0.5) / before) @ network.c.weight
    torch.testing.assert_close(found.weights, expected.detach(), rtol=1e-9, atol=1e-11)


GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled": lambda g: F.relu6(g + 3) / 6,
    "doubled": lambda g: 2 * F.relu(g),
    "moved": lambda g: g.relu().flip(1),
    "one more layer": lambda g: F.linear(g, torch.eye(8, dtype=g.dtype).roll(1, 0)),
}


@pytest.mark.parametrize("activation", [F.relu, F.hardswish, F.leaky_relu])
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("first", [True, False])
def test_an_activation_before_both_factors_does_not_tell_the_gate(activation: Any, name: str, first: bool) -> None:
    """The value h = relu(...) is weighted by what is computed of it, whatever stands between that and the product."""

    def forward(network: Net, x: Tensor, held: Tensor | None) -> Tensor:
        h = activation(network.c(x))
        weight = GATES[name](network.gate(h))
        weight = weight if held is None else held
        return network.fc(h * weight if first else weight * h)

    torch.manual_seed(0)
    network = Net(forward, linear(), nn.Linear(8, 3))
    network.gate = nn.Linear(8, 8).double()
    x = torch.randn(2, 5).double()
    h = activation(network.c(x)).detach()
    ratio = torch.where(h == 0, 0, h / network.c(x)).detach() * GATES[name](network.gate(h)).detach()
    found = bcos_fx.explain(network, {"x": x, "second": None}, 1)
    expected = (network.fc.weight[1] * ratio) @ network.c.weight
    torch.testing.assert_close(found.weights, expected.detach(), rtol=1e-9, atol=1e-11)
    assert found.complete


def test_what_only_divides_the_value_is_refused_as_a_source() -> None:
    network, inputs, _ = made("quotient")
    assert not bcos_fx.certify(network, inputs, source="second").ok
    with pytest.raises(VerificationError, match="explains it by second"):
        bcos_fx.explain(network, inputs[0], 0, others=inputs[1:], source="second")


def test_the_choice_is_named() -> None:
    network, inputs, _ = made("mask")
    (choice,) = bcos_fx.certify(network, inputs).choices
    assert (choice.gate, choice.why) == ("second", "it does not depend on x")
    (choice,) = bcos_fx.certify(network, inputs, source="second").choices
    assert choice.why == "it does not depend on second"


def test_layers_of_a_gate_stay_plain_and_coverage_leaves_them_out() -> None:
    torch.manual_seed(0)

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.scale, self.fc = nn.Linear(5, 8), nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, meta: Tensor) -> Tensor:
            return self.fc(self.c(x).relu() * self.scale(meta))

    network = Gated().eval()
    report = bcos_fx.bcosify(network, example_inputs=[torch.randn(4, 5), torch.randn(4, 4)]).report
    plain = {row.module for row in report.nodes if row.op == "linear"}
    assert plain == {"scale"}
    assert report.coverage.converted == report.coverage.total == 5 * 8 + 8 * 3  # biases are stripped


def test_a_mask_that_comes_first_is_not_the_main_input() -> None:
    network, inputs, _ = made("mask")
    swapped = Net(lambda n, m, x: n.fc((n.c(x).relu() * m).sum((2, 3))), network.c, network.fc)
    found = bcos_fx.explain(swapped, {"x": inputs[1], "second": inputs[0]}, 1)
    torch.testing.assert_close(found.weights, gradient(network, inputs, 0)[:, 1], rtol=1e-9, atol=1e-11)


def test_a_kernel_that_is_computed_from_the_source_carries_it() -> None:
    """Cross-correlation, as trackers do: the template is the kernel."""
    torch.manual_seed(0)

    class Tracker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(3, 4, 3)

        def forward(self, search: Tensor, template: Tensor) -> Tensor:
            return F.conv2d(self.c(search).relu(), self.c(template).relu()).flatten(1)

    network = Tracker().double().eval()
    inputs = [torch.randn(1, 3, 8, 8).double(), torch.randn(1, 3, 5, 5).double()]
    for place, source in enumerate(["search", "template"]):
        found = bcos_fx.explain(network, inputs[0], [[0, 5]], others=inputs[1:], source=source)
        torch.testing.assert_close(found.weights, gradient(network, inputs, place)[:, [0, 5]], rtol=1e-9, atol=1e-11)


def test_dead_weights_are_not_called_complete() -> None:
    network = Net(lambda n, x, m: n.fc(n.c(x).relu() * m), linear(), nn.Linear(8, 3))
    network.c.bias.data.fill_(-100)
    inputs = [torch.rand(2, 5).double(), torch.rand(2, 8).double()]
    found = bcos_fx.explain(network, inputs[0], 0, others=inputs[1:])
    assert not found.complete
    assert found.verdict == "not tested"
    assert "W(x) = 0 everywhere" in repr(found)
    measured = bcos_fx.certify(network, inputs).completeness
    assert measured is not None
    assert measured.verdict == "not tested"
    assert "W(x) = 0 everywhere" in str(measured)


def test_the_report_names_the_main_input() -> None:
    network, inputs, _ = made("mask")
    report = bcos_fx.plan(network, example_inputs=inputs)
    assert any("for the input 'x'" in note for note in report.notes)
