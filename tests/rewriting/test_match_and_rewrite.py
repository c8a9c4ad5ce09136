"""One rule on one small graph: what it matches, what it says otherwise, what the graph and its modules are then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bcos_fx.errors import RewriteError
from bcos_fx.rewriting.core.build import Build, Refused
from bcos_fx.rewriting.core.match import Hit, Mismatch, NearMiss, attempt, match
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.rewrite import Rewriter, RuleApplication
from bcos_fx.rewriting.core.rule import NodePattern, Replacement, Rule
from tests.rewriting.graphs import node_of, reader_of

LAYER = NodePattern(ops=("linear",))
RELU = NodePattern(ops=("relu",), inputs=("layer",))


def a_rule(match: dict[str, NodePattern], replace: dict[str, Replacement], **changes: Any) -> Rule:
    fields = {"name": "made-up", "phase": "activation", "preserves": "always", "source": "a test", "why": "A test."}
    return Rule(**{**fields, "match": match, "replace": replace, **changes})


MADE = Replacement(build="fused", inputs=("layer.input",), source="layer")
FUSED = a_rule({"layer": LAYER, "relu": RELU}, {"relu": MADE})


def fused(build: Build) -> nn.Module:
    return nn.Sequential(build.layer, nn.ReLU())


def chain(m: Any, x: Tensor) -> Tensor:
    return m.a(x).relu()


# ---------------------------------------------------------------- matching


def test_a_hit_names_every_node_of_the_pattern() -> None:
    reader = reader_of(chain, a=nn.Linear(4, 3))
    hit = match(FUSED, node_of(reader, "relu"), reader, {})
    assert isinstance(hit, Hit)
    assert hit.nodes == {"layer": node_of(reader, "linear"), "relu": node_of(reader, "relu")}
    assert hit.anchor is node_of(reader, "relu")
    assert not hit.stand_in


@pytest.mark.parametrize(
    ("forward", "pattern", "matched", "words"),
    [
        (lambda m, x: x.relu(), {}, 1, "linear"),
        (lambda m, x: (y := m.a(x)).relu() + y, {}, 2, "users"),
        (chain, {"form": "call"}, 1, "call"),
        (chain, {"where": {"out_features": 5}}, 2, "out_features"),
        (chain, {"require": ("never",)}, 2, "it never holds"),
    ],
    ids=["another op", "another user", "another form", "another attribute", "a predicate"],
)
def test_the_first_condition_that_fails_is_named(
    forward: Callable[[Any, Tensor], Tensor], pattern: dict[str, Any], matched: int, words: str
) -> None:
    reader = reader_of(forward, a=nn.Linear(4, 3))
    rule = a_rule({"layer": NodePattern(ops=("linear",), **pattern), "relu": RELU}, FUSED.replace)
    predicates = {"never": lambda reader, call: "it never holds"}
    found = attempt(rule, node_of(reader, "relu"), reader, predicates)
    assert isinstance(found, Mismatch)
    assert words in found.condition
    assert found.matched <= matched
    near = match(rule, node_of(reader, "relu"), reader, predicates)
    assert isinstance(near, NearMiss) == found.near
    assert near is None or near.reason == found.condition


def test_an_optional_node_that_is_absent_has_a_stand_in() -> None:
    optional = {
        "layer": LAYER,
        "norm": NodePattern(ops=("layer_norm",), inputs=("layer",), optional=True),
        "relu": NodePattern(ops=("relu",), inputs=("norm",)),
    }
    reader = reader_of(chain, a=nn.Linear(4, 3))
    hit = match(a_rule(optional, FUSED.replace), node_of(reader, "relu"), reader, {})
    assert isinstance(hit, Hit)
    assert "norm" not in hit.nodes
    assert hit.stand_in == {"norm": node_of(reader, "linear")}


def test_a_commutative_node_fits_in_either_order() -> None:
    pattern = {"layer": LAYER, "sum": NodePattern(ops=("add",), inputs=("layer", "*"), commutative=True)}
    for forward in (lambda m, x: m.a(x) + x, lambda m, x: x + m.a(x)):
        reader = reader_of(forward, a=nn.Linear(4, 4))
        assert isinstance(match(a_rule(pattern, {}, result="layer"), node_of(reader, "add"), reader, {}), Hit)


# ---------------------------------------------------------------- rewriting, and where modules go


def applied(rule: Rule, reader: GraphReader, op: str, **builders: Callable[[Build], Any]) -> RuleApplication | NearMiss:
    hit = match(rule, node_of(reader, op), reader, {})
    assert isinstance(hit, Hit)
    rewriter = Rewriter(reader, builders)
    done = rewriter.apply(hit)
    rewriter.finish()
    return done


def test_the_result_takes_the_place_of_what_was_matched() -> None:
    reader = reader_of(chain, a=nn.Linear(4, 3))
    x = torch.rand(5, 4)
    before = reader.graph_module(x)
    done = applied(FUSED, reader, "relu", fused=fused)
    assert isinstance(done, RuleApplication)
    assert (done.rule, done.before) == ("made-up", "relu")
    assert torch.equal(reader.graph_module(x), before)
    calls = [node.target for node in reader.graph_module.graph.nodes if node.op == "call_module"]
    assert calls == ["a"], "a module that nothing else keeps stands in the old one's place"
    assert isinstance(reader.graph_module.get_submodule("a"), nn.Sequential)
    (node,) = [node for node in reader.graph_module.graph.nodes if node.op == "call_module"]
    assert node.meta["rules"] == ("made-up",)


def test_a_module_that_others_call_stays_and_the_new_one_stands_beside_it() -> None:
    reader = reader_of(lambda m, x: m.a(x).relu() + m.a(x + 1), a=nn.Linear(4, 4))
    x = torch.rand(5, 4)
    before = reader.graph_module(x)
    applied(FUSED, reader, "relu", fused=fused)
    assert torch.equal(reader.graph_module(x), before)
    calls = {str(node.target) for node in reader.graph_module.graph.nodes if node.op == "call_module"}
    assert "a" in calls
    assert len(calls) == 2
    assert isinstance(reader.graph_module.get_submodule("a"), nn.Linear)


def test_two_calls_of_one_module_get_one_new_module() -> None:
    reader = reader_of(lambda m, x: m.a(m.a(x).relu()).relu(), a=nn.Linear(4, 4))
    rewriter = Rewriter(reader, {"fused": fused})
    for _ in range(2):
        hit = match(FUSED, node_of(reader, "relu"), reader, {})
        assert isinstance(hit, Hit)
        rewriter.apply(hit)
        reader.refresh()
    rewriter.finish()
    calls = [str(node.target) for node in reader.graph_module.graph.nodes if node.op == "call_module"]
    assert calls == ["a", "a"], "once no call keeps the old module, the new one moves into its place"


def test_what_a_builder_refuses_changes_nothing() -> None:
    reader = reader_of(chain, a=nn.Linear(4, 3))

    def refusing(build: Build) -> nn.Module:
        raise Refused("not this one")

    before = str(reader.graph_module.graph)
    assert applied(FUSED, reader, "relu", fused=refusing) == NearMiss("made-up", "relu", "not this one")
    assert str(reader.graph_module.graph) == before


@pytest.mark.parametrize(
    ("builder", "words"), [(lambda build: 1 / 0, "raised ZeroDivisionError"), (lambda build: 3, "returned a int")]
)
def test_a_broken_builder_is_named_with_rule_and_node(builder: Callable[[Build], Any], words: str) -> None:
    reader = reader_of(chain, a=nn.Linear(4, 3))
    with pytest.raises(RewriteError, match=words) as caught:
        applied(FUSED, reader, "relu", fused=builder)
    assert "'fused'" in str(caught.value)
    assert "'made-up'" in str(caught.value.where)


def test_a_node_that_is_left_out_hands_on_its_input() -> None:
    removed = a_rule({"relu": NodePattern(ops=("relu",))}, {}, result="relu.input", preserves="never")
    reader = reader_of(lambda m, x: m.a(x).relu() * 2, a=nn.Linear(4, 3))
    done = applied(removed, reader, "relu")
    assert isinstance(done, RuleApplication)
    assert done.after == "removed"
    x = torch.rand(5, 4)
    assert torch.equal(reader.graph_module(x), reader.graph_module.a(x) * 2)
