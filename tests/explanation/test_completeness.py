"""Completeness: its numbers by hand, what it must reject, and what it cannot see and W itself gives away."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bcos_fx import nn as bnn
from bcos_fx.errors import UsageError
from bcos_fx.explanation.certify import certify
from bcos_fx.explanation.completeness import Completeness, all_numbers, check_completeness, judged
from bcos_fx.explanation.view import view_of
from bcos_fx.explanation.weights import DynamicWeights, SourceWeights
from bcos_fx.nn.constants import count
from bcos_fx.nn.functional import default_tolerance
from bcos_fx.testing import randomise_
from tests.explanation.view_networks import Net


def by_hand(output: list[float], own: list[float], constant: list[float]) -> Completeness:
    row = [torch.tensor([values], dtype=torch.float64) for values in (output, own, constant)]
    return Completeness(row[0], row[1], {"bias": row[2]}, tolerance=1e-9)


def test_the_numbers() -> None:
    found = by_hand([3.0, 1.0, 0.0, 0.5], [2.0, -3.0, 0.0, 4.0], [1.0, 3.0, 0.0, -4.0])
    assert found.gap.tolist() == [[0.0, 1.0, 0.0, 0.5]]
    assert found.relative_gap.tolist() == [[0.0, 1.0 / 3.0, 0.0, 0.125]]
    assert found.share.tolist() == [[2 / 3, 0.5, 0.0, 0.5]]
    assert found.tested.tolist() == [[True, True, False, True]]
    assert found.worst == pytest.approx(1 / 3)
    assert found.verdict == "incomplete"
    assert not found


def test_a_share_below_one_percent_is_not_tested() -> None:
    assert by_hand([100.0], [0.9], [99.1]).verdict == "not tested"
    assert by_hand([100.0], [1.0], [99.0]).verdict == "complete"
    assert by_hand([100.0], [0.9], [99.0]).verdict == "incomplete"
    assert by_hand([0.0], [0.0], [0.0]).verdict == "not tested"
    assert "0.90%" in str(by_hand([100.0], [0.9], [99.1]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_incomplete(value: float) -> None:
    assert by_hand([value], [1.0], [0.0]).verdict == "incomplete"
    assert by_hand([1.0], [value], [0.0]).verdict == "incomplete"


def test_constants_add_up_with_their_signs() -> None:
    row = torch.ones(1, 1, dtype=torch.float64)
    found = Completeness(row * 2, row, {"a": row * 5, "b": row * -4}, tolerance=1e-9)
    assert float(found.total_of_constants) == 1
    assert found.ok
    assert found.to_dict()["constants"] == {"a": 5.0, "b": -4.0}


def test_what_cancels_is_measured_against_what_is_added_up() -> None:
    row = torch.ones(1, 1, dtype=torch.float64)
    constants = {"a": row * 3e6, "b": row * -2e6, "c": row * -1e6}
    found = Completeness(row + 1e-3, row, constants, tolerance=1e-9)
    assert found.terms.item() == 6e6
    assert found.worst == pytest.approx(1e-3 / 6e6)
    assert found.ok
    assert Completeness(row, row, constants | {"c": row * -1.01e6}, tolerance=1e-9).verdict == "incomplete"


def test_what_a_tolerance_would_hide_is_not_tested() -> None:
    row = torch.ones(1, 1, dtype=torch.float64)
    constants = {"a": row * 1e4, "b": row * -1e4}
    assert Completeness(row, row, constants, tolerance=1e-9).ok
    coarse = Completeness(row, row, constants, tolerance=1e-4)  # an error of twice the contributions would pass
    assert coarse.verdict == "not tested"
    assert "the constants cancel, and are 2e+04 times what the input contributes or more" in str(coarse)


def test_tolerances() -> None:
    assert default_tolerance(torch.float64) == 1e-9
    assert default_tolerance(torch.float32) == 1e-4


def test_no_samples_is_a_usage_error() -> None:
    network, x = made()
    with pytest.raises(UsageError, match="no samples"):
        check_completeness(view_of(network, x), [x[:0]])


# ---------------------------------------------------------------- mutants


def made() -> tuple[nn.Module, Tensor]:
    """A network of selections, so that autograd of the original gives W."""
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    return randomise_(network).double().eval(), torch.randn(4, 6, dtype=torch.float64)


def true_weights(network: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    output = network(x)
    rows = [torch.autograd.grad(output[:, k].sum(), x, retain_graph=True)[0] for k in range(output.shape[1])]
    return torch.stack(rows, 1)


def found_in(network: nn.Module, x: Tensor) -> DynamicWeights:
    return view_of(network, x).dynamic_weights([x], all_numbers())


def with_weights(found: DynamicWeights, weights: Tensor, constants: dict[str, Tensor]) -> DynamicWeights:
    sources = {name: SourceWeights(source.start, weights) for name, source in found.sources.items()}
    return dataclasses.replace(found, sources=sources, constants=constants)


def test_the_reference_agrees_where_nothing_is_wrong() -> None:
    network, x = made()
    torch.testing.assert_close(found_in(network, x).weights, true_weights(network, x), rtol=1e-9, atol=1e-12)


def test_a_gate_that_is_not_held_fixed_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Net(lambda n, x: n.a(x) * torch.sigmoid(n.b(x)), a=nn.Linear(6, 3), b=nn.Linear(6, 3))
    x = torch.randn(4, 6, dtype=torch.float64)
    assert check_completeness(view_of(network, x), [x]).ok
    monkeypatch.setattr(bnn.StopGradient, "forward", lambda self, gate: gate)
    assert check_completeness(view_of(network, x), [x]).verdict == "incomplete"


def test_a_forgotten_constant_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = made()
    found = found_in(network, x)
    for name in found.constants:
        less = {key: values for key, values in found.constants.items() if key != name}
        assert judged(dataclasses.replace(found, constants=less)).verdict == "incomplete"
    monkeypatch.setattr(bnn.CountedShift, "forward", lambda self, y, coefficients: y)
    assert check_completeness(view_of(network, x), [x]).verdict == "incomplete"


def test_an_eps_in_the_wrong_place_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen layer then computes another value than the layer, and must not vouch for itself."""
    network = randomise_(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8, eps=0.1), nn.Linear(8, 3))).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)

    def elsewhere(self: bnn.LayerNorm, value: Tensor) -> Tensor:
        linear, factor = self.decompose(value)
        sigma = (factor.pow(-2) - self.eps).sqrt()
        return self.recompose(linear, (1 / (sigma + self.eps)).detach())

    assert check_completeness(view_of(network, x), [x]).ok
    monkeypatch.setattr(bnn.LayerNorm, "frozen", elsewhere)
    assert check_completeness(view_of(network, x), [x]).verdict == "incomplete"


def assert_complete_and_wrong(found: DynamicWeights, network: nn.Module, x: Tensor) -> None:
    """Completeness cannot see it; the weights themselves can."""
    assert judged(found).ok
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found.weights, true_weights(network, x), rtol=1e-9, atol=1e-12)


def test_a_ledger_filled_by_difference_is_complete_and_wrong() -> None:
    network, x = made()
    found = found_in(network, x)
    wrong = found.weights * 1.01
    rest = found.output - (wrong * x.unsqueeze(1)).sum(2)
    filled = with_weights(found, wrong, {"bias": rest})
    assert_complete_and_wrong(filled, network, x)


def test_weights_rescaled_to_fit_are_complete_and_wrong() -> None:
    network, x = made()
    found = found_in(network, x)
    own = (found.weights * x.unsqueeze(1)).sum(2)
    rescaled = with_weights(found, found.weights * (found.output / own).unsqueeze(2), {})
    assert_complete_and_wrong(rescaled, network, x)


def test_weights_made_of_the_output_are_complete_and_wrong() -> None:
    """W = f(x) x / |x|² is complete for any function, which is why completeness is not enough."""
    network, x = made()
    found = found_in(network, x)
    along = found.output.unsqueeze(2) * (x / x.square().sum(1, keepdim=True)).unsqueeze(1)
    made_up = with_weights(found, along, {})
    assert_complete_and_wrong(made_up, network, x)


def test_an_output_that_underflows_names_the_node() -> None:
    network = (
        nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 3, bias=False))
        .double()
        .eval()
    )
    with torch.no_grad():
        for layer in network:
            layer.weight.mul_(1e-160)
    x = torch.randn(2, 6, dtype=torch.float64)
    found = check_completeness(view_of(network, x), [x])
    assert found.vanished is not None
    assert found.verdict == "not tested"
    assert found.vanished in str(found)
    view = view_of(network, x)
    nodes = [node.name for node in view.graph_module.graph.nodes if node.op == "call_module"]
    assert found.vanished == nodes[1]


# ---------------------------------------------------------------- counting


def test_counting_is_by_sample_whatever_the_layout() -> None:
    constant = torch.randn(3, 1, dtype=torch.float64)
    for times in (1, 4):
        gradient = torch.randn(2 * times, 3, 5, dtype=torch.float64)
        coefficient = torch.ones(2, dtype=torch.float64, requires_grad=True)
        y = torch.randn(2 * times, 3, 5, dtype=torch.float64, requires_grad=True)
        counted = count(y, constant, coefficient)
        assert torch.equal(counted, y)
        own, found = torch.autograd.grad((counted * gradient).sum(), (y, coefficient))
        assert torch.equal(own, gradient)
        expected = (gradient * constant).reshape(2, times, 3, 5).sum((1, 2, 3))
        torch.testing.assert_close(found, expected)


def test_an_infinity_that_nothing_chose_contributes_nothing() -> None:
    """Maxima are padded with -inf."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            padded = functional.pad(self.conv(x), (0, 1, 0, 1), value=-math.inf)
            return self.fc(functional.max_pool2d(padded, 3, 2).mean((2, 3)))

    x = torch.rand(2, 3, 10, 10, dtype=torch.float64)
    found = check_completeness(view_of(Padded().double().eval(), x), [x])
    assert found.ok, str(found)
    assert not found.constants["pad at pad"].any()
    constant, gradient = torch.tensor([-math.inf, 2.0]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    coefficient = torch.ones(2, requires_grad=True)
    counted = count(torch.zeros(2, 2, requires_grad=True), constant, coefficient)
    (found_by_sample,) = torch.autograd.grad((counted * gradient).sum(), coefficient)
    assert found_by_sample.tolist() == [2.0, -math.inf]  # what was chosen does contribute


class Coarse(nn.Module):
    """Goes through float32 whatever it is given: on the way of the value, or of a gate alone."""

    def __init__(self, *, gate: bool) -> None:
        super().__init__()
        self.first, self.second, self.gate = nn.Linear(6, 8), nn.Linear(8, 3), gate

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.gate:
            return self.second(y * y.float().sigmoid())
        return self.second(y.float().relu().to(y.dtype))


@pytest.mark.parametrize(("gate", "tolerance"), [(False, 1e-4), (True, 1e-9)])
def test_the_tolerance_is_that_of_the_coarsest_precision_of_the_value(gate: bool, tolerance: float) -> None:
    torch.manual_seed(0)
    network = Coarse(gate=gate).double().eval()
    measured = certify(network, torch.rand(2, 6, dtype=torch.float64)).completeness
    assert measured is not None
    assert measured.tolerance == tolerance
    assert measured.ok, str(measured)
