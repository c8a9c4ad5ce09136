"""Completeness is judged against what ``model(x)`` itself returns, in the same call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.explanation.view import ExplanationView
from bcos_fx.nn import BcosLayer


def _network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU()]
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    return bcos_fx.bcosify(module, recipe="equivalent", mean=(0.4,) * 3, std=(0.2,) * 3), torch.rand(3, 3, 9, 9)


@pytest.mark.parametrize("output", [None, "0", "4"])
def test_the_output_is_what_the_forward_returns(output: str | None) -> None:
    """A network whose forward returns something else than its view computes is incomplete at once."""
    model, x = _network()
    assert bcos_fx.explain(model, x, 0, output=output).complete
    if output is None:
        assert torch.equal(bcos_fx.explain(model, x, 0).output, model(x)[:, 0])
    layer = model.get_submodule("2")

    def changed(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> Tensor:
        return (
            result if torch.is_grad_enabled() else result * 1.01
        )  # what the view, which records gradients, never sees

    handle = layer.register_forward_hook(changed)
    expected = output != "0"
    for found in (bcos_fx.explain(model, x, 0, output=output).complete, _certified(model, x, output)):
        assert found is not expected
    handle.remove()
    assert bcos_fx.explain(model, x, 0, output=output).complete


def _certified(model: nn.Module, x: Tensor, output: str | None) -> bool:
    completeness = bcos_fx.certify(model, x, output=output).completeness
    assert completeness is not None
    return completeness.ok


def test_a_hook_on_the_network_itself_counts() -> None:
    model, x = _network()
    model.register_forward_hook(lambda module, inputs, result: result * 1.01)
    found = bcos_fx.explain(model, x, 0)
    assert torch.equal(found.output, model(x)[:, 0])
    assert not found.complete
    assert not _certified(model, x, None)


@pytest.fixture
def own_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes of the runs of a network by itself, while it is explained."""
    sizes: list[int] = []
    own_value = ExplanationView.own_value

    def counted(view: ExplanationView, inputs: Any) -> Tensor:
        sizes.append(len(inputs[0]))
        return own_value(view, inputs)

    monkeypatch.setattr(ExplanationView, "own_value", counted)
    return sizes


def test_the_network_is_not_run_again_where_its_view_gave_the_same_bits(own_runs: list[int]) -> None:
    model, x = _network()
    first, again = (bcos_fx.explain(model, x) for _ in range(2))
    assert own_runs == [3]
    assert torch.equal(first.output, again.output)
    assert torch.equal(first.prediction, again.prediction)
    assert torch.equal(bcos_fx.explain(model, x.flip(0)).output, model(x.flip(0)).amax(1))
    bcos_fx.explain(model, x[:2], [[0, 1], [2, 3]])
    bcos_fx.explain(model.double(), x.double())
    assert own_runs == [3, 2, 3]


def _hooked(model: nn.Module) -> None:
    model.get_submodule("4").register_forward_hook(lambda module, inputs, result: None)


def _hooked_before(model: nn.Module) -> None:
    model.register_forward_pre_hook(lambda module, inputs: None)


def _replaced(model: nn.Module) -> None:
    layer = model.get_submodule("2")
    layer.forward = type(layer).forward.__get__(layer)  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [_hooked, _hooked_before, _replaced])
def test_the_network_is_always_run_where_others_have_code_in_it(change: Any, own_runs: list[int]) -> None:
    model, x = _network()
    bcos_fx.explain(model, x)
    change(model)
    for _ in range(2):
        assert bcos_fx.explain(model, x).complete
    assert own_runs == [3, 3, 3]


def test_the_network_is_always_run_where_a_hook_is_for_all_modules(own_runs: list[int]) -> None:
    model, x = _network()
    bcos_fx.explain(model, x)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, result: None)
    try:
        bcos_fx.explain(model, x)
    finally:
        handle.remove()
    assert own_runs.count(3) == 2


def test_a_view_that_computes_something_else_never_stands_for_the_network(
    own_runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = _network()
    frozen = BcosLayer.frozen
    monkeypatch.setattr(BcosLayer, "frozen", lambda layer, value: frozen(layer, value) * 1.01)
    for _ in range(2):
        found = bcos_fx.explain(model, x, 0)
        assert torch.equal(found.output, model(x)[:, 0])
        assert not found.complete
    assert own_runs.count(3) == 2


@pytest.mark.parametrize("value", [0.0, 0.4, 0.5, 1.0])
def test_constant_images_are_never_complete_by_rounding(value: float) -> None:
    """Where everything cancels, what the network returns is rounding: complete to tolerance, or not tested."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with torch.no_grad():
        module[0].weight -= module[0].weight.mean((2, 3), keepdim=True)
    model = bcos_fx.bcosify(module, recipe="equivalent", mean=(0.4,) * 3, std=(0.2,) * 3)
    x = torch.full((2, 3, 8, 8), value)
    measured = bcos_fx.certify(model, x).completeness
    assert measured is not None
    assert torch.equal(measured.output, model(x)[:, :3])
    good = measured.relative_gap <= measured.tolerance
    assert measured.verdict != "incomplete"
    assert not bool((measured.tested & ~good).any()), "a sum that is not met is no evidence"
    assert measured.verdict == ("complete" if bool(measured.tested.any()) else "not tested")
