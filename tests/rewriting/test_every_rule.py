"""Every shipped rule is shown: it rewrites each spelling, keeps what it says, says why it stops, and can be caught."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import bcos_fx
from bcos_fx.rewriting.builders.input import input_affine
from bcos_fx.rewriting.core.build import Build, Rewired
from bcos_fx.rewriting.core.location import rule_files
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.passes import Engine
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import load_recipe, recipe_names
from bcos_fx.rewriting.core.registry import BUILDERS
from bcos_fx.rewriting.core.rule import PRESERVING_PHASES, Rule
from bcos_fx.rewriting.core.rulefile import load_rules
from bcos_fx.tracing import trace
from bcos_fx.verification import verify
from bcos_fx.verification.blame import find_culprit, is_encoded
from tests import golden
from tests.rewriting.catalogue import CASES, Case

GOLDEN = Path(__file__).parent / "golden"
CHANGELOG = Path(__file__).resolve().parents[2] / "CHANGELOG.md"


@functools.cache
def shipped() -> dict[str, Rule]:
    # Rules of views are shown in tests/explanation/test_every_view_rule.py, those of optimize in tests/test_folding.py.
    return {rule.name: rule for rule in load_rules(rule_files()) if rule.phase not in ("fold", "freeze")}


def images(case: Case, count: int = 6, channels: int | None = None) -> Tensor:
    shape = case.shape if channels is None else (channels, *case.shape[1:])
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def build(factory: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return factory().eval()


def convert(case: Case, module: nn.Module, *, verified: bool = True) -> bcos_fx.convert.BcosNetwork:
    return bcos_fx.bcosify(
        module, example_inputs=images(case, 2), recipe=case.recipe, verified=verified, **case.options
    )


def traced(case: Case, module: nn.Module) -> fx.GraphModule:
    return trace(module, images(case, 2), leaf_modules=vocabulary().leaves).graph_module


HITS = [pytest.param(name, spelling, id=f"{name}-{spelling}") for name, c in CASES.items() for spelling in c.hits]


def test_every_shipped_rule_is_in_the_catalogue() -> None:
    assert set(shipped()) == set(CASES)


@pytest.mark.parametrize("name", list(CASES))
def test_a_rule_has_all_it_needs(name: str) -> None:
    rule, case = shipped()[name], CASES[name]
    assert rule.source
    assert rule.why
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert f"`{name}`" in CHANGELOG.read_text(encoding="utf-8"), "the CHANGELOG's Rules heading does not name it"
    assert case.hits or rule.refuse, "nothing shows that it fires"
    assert case.near or case.untouched, "nothing shows where it stops"
    builds = any(entry.build for entry in rule.replace.values())
    if rule.phase in PRESERVING_PHASES and builds:
        assert case.mutant in {entry.build for entry in rule.replace.values()}, "no mutant shows that it can be caught"


@pytest.mark.parametrize(("name", "spelling"), HITS)
def test_it_rewrites_and_keeps_what_it_says(name: str, spelling: str) -> None:
    """The rule fires, and the whole conversion is proven equal; a changing rule reports its drift."""
    case = CASES[name]
    module = build(case.hits[spelling])
    before = copy.deepcopy(module.state_dict())
    network = convert(case, module)
    assert name in network.report.rule_counts(), network.report.rule_counts()
    verification = network.report.figures.verification
    assert verification is not None
    assert verification["ok"], verification
    if shipped()[name].preserves == "never":
        assert name in {drift.rule for drift in network.report.figures.drift}
    after = module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert set(before) == set(after)


@pytest.mark.parametrize(("name", "spelling"), [p for p in HITS if shipped()[p.values[0]].preserves == "always"])
def test_what_is_kept_always_is_kept_in_training_too(name: str, spelling: str) -> None:
    """Only this rule and those that it needs run, and the result is compared in train mode from the same seed."""
    case = CASES[name]
    module = build(case.hits[spelling])
    recipe = load_recipe(case.recipe).with_options(case.options)
    kept = tuple(rule for rule in recipe.rules if rule.preserves == "always")
    graph_module = traced(case, module).double()
    Engine(dataclasses.replace(recipe, rules=kept)).run(graph_module, PRESERVING_PHASES)
    transform = _transform(case) if is_encoded(graph_module) else lambda x: x
    result = verify(module, graph_module, images(case), transform=transform, preserves="always")
    assert result.ok, result.detail


def _transform(case: Case) -> Callable[[Tensor], Tensor]:
    options = load_recipe(case.recipe).with_options(case.options).options
    matrix, offset = input_affine(options, case.shape[0])
    return lambda x: (torch.einsum("dc,nchw->ndhw", matrix.to(x), x) + offset.to(x).view(1, -1, 1, 1)).contiguous()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.near])
def test_a_near_miss_has_a_reason_and_a_node(name: str) -> None:
    case = CASES[name]
    assert case.near is not None
    factory, words = case.near
    near = dataclasses.replace(case, options={}) if name == "image-input-encoded" else case
    module = build(factory)
    if name == "image-input-encoded":
        module.stem = nn.Conv2d(5, 4, 3)
        inputs = images(near, 2, channels=5)
    else:
        inputs = images(near, 2)
    report = bcos_fx.plan(module, example_inputs=inputs, recipe=near.recipe, **near.options)
    missed = [miss for miss in report.near_misses if miss.rule == name]
    assert missed, report.near_misses
    assert all(miss.node for miss in missed)
    assert any(words in miss.reason for miss in missed), missed


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.untouched])
def test_what_is_none_of_its_business_is_left_in_silence(name: str) -> None:
    case = CASES[name]
    assert case.untouched is not None
    options = case.options | ({"b": 1.0} if name == "alignment-raised" else {})
    report = bcos_fx.plan(build(case.untouched), example_inputs=images(case, 2), recipe=case.recipe, **options)
    assert name not in report.rule_counts()
    assert not [miss for miss in report.near_misses if miss.rule == name]


class Broken(nn.Module):
    """What a rule's builder should not have made: the right module, 1 % too loud."""

    def __init__(self, right: nn.Module) -> None:
        super().__init__()
        self.right = right

    def forward(self, *inputs: Tensor) -> Tensor:
        y: Tensor = self.right(*inputs) * 1.01
        return y


def _broken(name: str) -> Callable[[Build], nn.Module]:
    def builder(build: Build) -> nn.Module:
        module = BUILDERS[name](build)
        if build.hit.rule.name != builder.only:  # type: ignore[attr-defined]
            return module
        if isinstance(module, Rewired):
            return dataclasses.replace(module, module=Broken(module.module))
        return Broken(module)

    return builder


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.mutant])
def test_a_mutant_is_caught_and_its_rule_and_node_are_named(name: str) -> None:
    case = CASES[name]
    assert case.mutant is not None
    module = build(next(iter(case.hits.values())))
    recipe = load_recipe(case.recipe).with_options(case.options)
    mutant = _broken(case.mutant)
    mutant.only = name  # type: ignore[attr-defined]
    engine = Engine(recipe, builders={**BUILDERS, case.mutant: mutant})
    log = Engine(recipe).run(traced(case, module).double(), PRESERVING_PHASES)
    step = next(step for step in log.steps if step.rule == name)

    blame = find_culprit(
        lambda: traced(case, module),
        engine,
        (images(case, 3),),
        lambda inputs: (_transform(case)(inputs[0]),),
    )
    assert blame is not None, "the checker let a wrong rewrite through"
    assert (blame.rule, blame.node) == (name, step.node)
    assert blame.origin.endswith(f".toml:{_line(name)}")


def _line(name: str) -> int:
    origin = shipped()[name].origin
    return int(origin.rpartition(":")[2])


def _text(graph_module: fx.GraphModule, options: bcos_fx.convert.Recipe) -> str:
    reader = GraphReader(graph_module, vocabulary(), options.options)
    lines = []
    for node in graph_module.graph.nodes:
        call = reader.call(node)
        kind = type(call.module).__name__ if call is not None and call.module is not None else node.op
        inputs = ", ".join(source.name for source in node.all_input_nodes)
        rules = " ".join(node.meta.get("rules", ()))
        lines.append(f"{node.name:<24} {reader.op(node) or node.target!s:<24} {kind:<22} ({inputs})  {rules}".rstrip())
    return "\n".join(lines)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.hits])
def test_golden_text(name: str, request: pytest.FixtureRequest) -> None:
    """What the first network of each rule looks like before and after, node by node.

    ``pytest --golden`` writes the texts again; read the difference before committing it.
    """
    case = CASES[name]
    module = build(next(iter(case.hits.values())))
    recipe = load_recipe(case.recipe).with_options(case.options)
    graph_module = traced(case, module)
    before = _text(graph_module, recipe)
    Engine(recipe).run(graph_module)
    text = f"before\n{before}\n\nafter\n{_text(graph_module, recipe)}\n"
    golden.compare(text, GOLDEN / f"{name}.txt", request)


def test_every_golden_text_belongs_to_a_rule() -> None:
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {name for name, case in CASES.items() if case.hits}


def test_every_recipe_loads_and_says_where_it_comes_from() -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.source
        assert recipe.description
