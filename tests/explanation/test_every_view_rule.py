"""Every rule of explanation views is shown: it fires, keeps every value, makes the sums add up, and can be caught."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from bcos_fx import nn as bnn
from bcos_fx.explanation import preparation, view
from bcos_fx.explanation.completeness import check_completeness
from bcos_fx.explanation.view import ExplanationView, view_of
from bcos_fx.nn.constants import count
from bcos_fx.nn.norms import NormLayer
from bcos_fx.rewriting.core.location import rules_directory
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import Recipe
from bcos_fx.rewriting.core.rule import Rule
from bcos_fx.rewriting.core.rulefile import load_rules
from tests import golden
from tests.explanation.view_catalogue import CASES, Case

GOLDEN = Path(__file__).parent / "golden"
CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"
SHIPPED: dict[str, Rule] = {rule.name: rule for rule in load_rules([rules_directory() / "explain.toml"])}
HITS = [pytest.param(name, spelling, id=f"{name}-{spelling}") for name, c in CASES.items() for spelling in c.hits]
LEFT_OUT = [name for name, case in CASES.items() if case.mutant == "left out"]


def inputs(case: Case, shape: tuple[int, ...] | None = None) -> Tensor:
    return torch.rand(3, *(shape or case.shape), dtype=torch.float64) * 2 - 1


def built(case: Case, spelling: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = case.hits[spelling]().double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.uniform_(-0.5, 0.5)
    return module, inputs(case, (2, 6, 6) if spelling == "response norm" else None)


def fired(found: ExplanationView) -> set[str]:
    return {rule for node in found.graph_module.graph.nodes for rule in node.meta.get("rules", ())}


def text(graph_module: fx.GraphModule) -> str:
    reader = GraphReader(graph_module, vocabulary(), Options())
    rows = [(n.name, reader.op(n) or str(n.target), n.all_input_nodes) for n in graph_module.graph.nodes]
    return "\n".join(f"{name:<24} {op:<24} ({', '.join(source.name for source in read)})" for name, op, read in rows)


def test_every_shipped_rule_is_in_the_catalogue() -> None:
    assert set(SHIPPED) == set(CASES)
    assert {rule.phase for rule in SHIPPED.values()} == {"freeze"}


@pytest.mark.parametrize("name", list(CASES))
def test_a_rule_has_all_it_needs(name: str) -> None:
    rule = SHIPPED[name]
    assert rule.source
    assert rule.why
    assert rule.preserves == "always"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert CASES[name].hits
    assert f"`{name}`" in CHANGELOG.read_text(encoding="utf-8"), "the CHANGELOG's Rules heading does not name it"


@pytest.mark.parametrize(("name", "spelling"), HITS)
def test_it_keeps_every_value_and_the_sums_add_up(name: str, spelling: str) -> None:
    module, x = built(CASES[name], spelling)
    found = view_of(module, x)
    assert name in fired(found), text(found.graph_module)
    assert found.certificate.ok, found.certificate.to_text()
    with torch.no_grad():
        torch.testing.assert_close(found.value([x]), module(x), rtol=1e-12, atol=1e-13)
    measured = check_completeness(found, [x])
    assert measured.ok, str(measured)


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_none_of_its_business_is_left(name: str) -> None:
    module = CASES[name].untouched().double().eval()
    found = view_of(module, inputs(CASES[name]))
    assert found.certificate.ok, found.certificate.to_text()
    graph = found.graph_module.graph
    touched = [n.name for n in graph.nodes if name in n.meta.get("rules", ()) and n.op != "placeholder"]
    biases_aside = [node for node in touched if not node.startswith(("a", "b", "v"))]
    assert not biases_aside, text(found.graph_module)


def without(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    whole = preparation.recipe()
    less: Recipe = dataclasses.replace(whole, rules=tuple(rule for rule in whole.rules if rule.name != name))
    monkeypatch.setattr(view, "recipe", lambda: less)


@pytest.mark.parametrize(("name", "spelling"), [p for p in HITS if p.values[0] in LEFT_OUT])
def test_left_out_it_is_missed_by_the_sums_and_by_the_certificate(
    name: str, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = built(CASES[name], spelling)
    without(monkeypatch, name)
    found = view_of(module, x)
    measured = check_completeness(found, [x])
    # A B-cos layer is homogeneous, so its own gradient adds up as well: Euler's theorem. W itself tells them apart.
    blind = spelling == "alignment"
    assert measured.verdict == ("complete" if blind else "incomplete"), str(measured)
    assert not found.certificate.ok


@pytest.mark.parametrize("name", sorted(set(CASES) - set(LEFT_OUT)))
def test_out_of_place_the_network_keeps_its_own_memory(name: str) -> None:
    """These rules change no number; what shows is that nothing in the view overwrites what it reads."""
    for spelling in CASES[name].hits:
        module, x = built(CASES[name], spelling)
        graph_module = view_of(module, x).graph_module
        modules = [graph_module.get_submodule(str(n.target)) for n in graph_module.graph.nodes if n.op == "call_module"]
        assert not any(getattr(part, "inplace", False) for part in modules)
        assert "in_place_sum" not in text(graph_module)


def _half(self: bnn.CountedShift, y: Tensor, coefficients: list[Tensor]) -> Tensor:
    return count(y, self.layer.constant_like(y) / 2, coefficients[self.column])


def _eps_elsewhere(self: NormLayer, x: Tensor) -> Tensor:
    linear, factor = self.decompose(x)
    sigma = (factor.pow(-2) - self.eps).clamp_min(0).sqrt()
    return self.recompose(linear, (1 / (sigma + self.eps)).detach())


WRONG: dict[str, tuple[type, str, Callable[..., Tensor], str, str]] = {
    "a norm not held fixed": (bnn.FrozenLayer, "forward", lambda self, x: self.layer(x), "layer-frozen", "layer norm"),
    "eps elsewhere": (bnn.LayerNorm, "frozen", _eps_elsewhere, "layer-frozen", "layer norm"),
    "a gate not held fixed": (bnn.StopGradient, "forward", lambda self, gate: gate, "gate-held-fixed", "operator"),
    "attention not held fixed": (bnn.StopGradient, "forward", lambda self, gate: gate, "gate-held-fixed", "attention"),
    "a ratio not held fixed": (
        bnn.FrozenRatio,
        "forward",
        lambda self, x: self.function(x),
        "activation-ratio-frozen",
        "module",
    ),
    "half a constant": (bnn.CountedShift, "forward", _half, "layer-constant-counted", "batch norm"),
}


@pytest.mark.parametrize("mutant", list(WRONG))
def test_a_wrong_part_is_caught_by_the_sums(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, method, wrong, name, spelling = WRONG[mutant]
    module, x = built(CASES[name], spelling)
    found = view_of(module, x)
    assert check_completeness(found, [x]).ok
    monkeypatch.setattr(owner, method, wrong)
    assert check_completeness(found, [x]).verdict == "incomplete"


def _traced(module: nn.Module, x: Tensor) -> fx.GraphModule:
    from bcos_fx.network import BcosNetwork
    from bcos_fx.tracing import trace

    return module.graph_module() if isinstance(module, BcosNetwork) else trace(module, x).graph_module


@pytest.mark.parametrize("name", list(CASES))
def test_golden_text(name: str, request: pytest.FixtureRequest) -> None:
    """What the first network of each rule looks like before and after; ``pytest --golden`` writes the texts again."""
    module, x = built(CASES[name], next(iter(CASES[name].hits)))
    written = f"before\n{text(_traced(module, x))}\n\nafter\n{text(view_of(module, x).graph_module)}\n"
    golden.compare(written, GOLDEN / f"{name}.txt", request)


def test_every_golden_text_belongs_to_a_rule() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)
