"""Patterns that name stored tensors and values, and why a rule does not match."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx import rules
from bcos_fx.errors import RuleError
from tests.rules import own_ops

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@rules.builder("test-snake-around-alpha")
def snake(build: rules.Build) -> nn.Module:
    alpha = build.stored("alpha")
    if len(alpha) > 8:
        raise rules.Refused("its alpha has too many channels for this test")
    made = own_ops.Snake(len(alpha))
    made.alpha = alpha
    return made


PATTERN: dict[str, Any] = {
    "alpha": {"ops": "parameter"},
    "x": {"ops": "*"},
    "scaled": {"ops": "mul", "inputs": ["alpha", "x"], "commutative": True},
    "sine": {"ops": "sin", "inputs": "scaled"},
    "square": {"ops": "pow", "inputs": "sine", "where": {"exponent": 2}},
    "divided": {"ops": "div", "inputs": ["square", "alpha"]},
    "sum": {"ops": "add", "inputs": ["x", "divided"], "commutative": True},
}


def rule(match: dict[str, Any] | None = None, **changes: Any) -> rules.Rule:
    fields: dict[str, Any] = {
        "name": "test-snake-from-pieces",
        "phase": "canonical",
        "preserves": "always",
        "source": "a test",
        "why": "A test.",
        "match": PATTERN if match is None else match,
        "replace": {"sum": {"build": "test-snake-around-alpha", "inputs": "x"}},
    }
    return rules.rule(**{**fields, **changes})


class WrittenOut(nn.Module):
    def __init__(self, form: str = "plain", channels: int = 4) -> None:
        super().__init__()
        self.form = form
        self.alpha = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.beta = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        by = self.beta if self.form == "two parameters" else self.alpha
        scaled = x * self.alpha if self.form == "swapped" else self.alpha * x
        if self.form == "shifted":
            scaled = self.alpha * (x + 1)
        sine = torch.tan(scaled) if self.form == "tangent" else torch.sin(scaled)
        square = sine**3 if self.form == "cube" else sine**2
        result = square / by + x if self.form == "swapped" else x + square / by
        return result + square if self.form == "used twice" else result


def network(form: str = "plain", channels: int = 4) -> nn.Module:
    torch.manual_seed(0)
    body = nn.Conv2d(3, channels, 3), WrittenOut(form, channels), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(channels, 2)).eval()


def diagnosis(form: str, made: rules.Rule, channels: int = 4) -> bcos_fx.diagnosis.Diagnosis:
    return bcos_fx.why_not(made.name, network(form, channels), rules=[made], example_inputs=X, recipe="equivalent")


@pytest.mark.parametrize("form", ["plain", "swapped"])
def test_stored_tensors_and_a_value_read_twice_are_matched(form: str) -> None:
    module = network(form)
    converted = bcos_fx.bcosify(module, example_inputs=X, rules=[rule()], recipe="equivalent")
    verification = converted.report.figures.verification
    assert verification is not None
    assert verification["ok"]
    assert [row.op for row in converted.report.nodes].count("own_snake") == 1
    assert not {"odd_function", "pow"} & {row.op for row in converted.report.nodes}
    assert converted.get_parameter("1.alpha") is not module[1].alpha
    assert torch.equal(converted.get_parameter("1.alpha"), module[1].alpha)
    assert len(diagnosis(form, rule()).fits) == 1


@pytest.mark.parametrize(
    ("form", "condition"),
    [
        ("two parameters", "'alpha' is _1_alpha already, and here it would be _1_beta"),
        ("shifted", "'x' is _0 already, and here it would be add"),
        ("tangent", "tan is tan, and 'sine' must be sin"),
        ("cube", "pow_1 has exponent 3, the rule wants 2"),
        ("used twice", "pow_1 has 2 users, the rule wants 1"),
    ],
)
def test_the_first_condition_that_failed_is_named(form: str, condition: str) -> None:
    found = diagnosis(form, rule())
    assert not found.fits
    assert condition in [attempt.condition for attempt in found.attempts if attempt.tried]
    assert condition in found.to_text()
    assert found.to_dict()["attempts"]


def test_a_builder_that_refuses_is_named() -> None:
    found = diagnosis("plain", rule(), channels=9)
    assert "refuses: its alpha has too many channels" in found.to_text()


def test_inputs_without_the_parameter_say_that_stored_tensors_do_not_count() -> None:
    match = {"scaled": {"ops": "mul", "inputs": ["*", "*"]}}
    found = diagnosis("plain", rule(match, replace={"scaled": {"build": "relu-of-a-test", "inputs": "scaled.input"}}))
    text = found.to_text()
    assert "Stored tensors (_1_alpha) do not count" in text
    assert 'op = "parameter"' in text


@rules.builder("relu-of-a-test")
def relu(build: rules.Build) -> nn.Module:
    return nn.ReLU()


def test_a_rule_that_is_not_tried_says_why() -> None:
    made = rule(when={"bias": "strip"})
    found = diagnosis("plain", made)
    assert found.inactive == "it is for bias = strip, and bias is keep"
    assert "was not tried" in found.to_text()
    with pytest.raises(RuleError, match="no rule named 'test-snake'"):
        bcos_fx.why_not("test-snake", network(), rules=[made], example_inputs=X)


def test_a_rule_of_explanations_is_tried_in_the_view() -> None:
    converted = bcos_fx.bcosify(network(), example_inputs=X, recipe="equivalent")
    found = bcos_fx.why_not("layer-frozen", converted)
    assert len(found.fits) == 2
    assert all("bcos" in attempt.op for attempt in found.attempts if attempt.fits)


def test_the_layer_of_a_call_is_the_module_that_computes_the_same() -> None:
    seen: list[nn.Module] = []

    def note(build: rules.Build) -> nn.Module:
        seen.append(build.layer)
        return nn.ReLU()

    rules.builder("notes-its-layer")(note)
    made = rule(
        {"act": {"ops": ["leaky_relu", "gelu", "linear"], "form": "call"}},
        name="test-call-to-relu",
        phase="align",
        preserves="never",
        replace={"act": {"build": "notes-its-layer", "inputs": "act.input"}},
    )

    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.gelu(nn.functional.leaky_relu(x, 0.3), approximate="tanh")

    bcos_fx.bcosify(nn.Sequential(nn.Linear(4, 4), Calls()), rules=[made], verified=False)
    leaky, gelu = seen
    assert isinstance(leaky, nn.LeakyReLU)
    assert leaky.negative_slope == 0.3
    assert isinstance(gelu, nn.GELU)
    assert gelu.approximate == "tanh"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"match": {"x": {"ops": "*"}}, "replace": {}, "result": "x"}, "must be an operation"),
        ({"match": {"sum": {"inputs": "*"}}}, "names no op"),
        ({"match": {"sum": {"ops": "sine"}}}, "not a known op"),
        ({"match": {"sum": {"ops": "add", "typo": 1}}}, "typo"),
        ({"replace": {"sum": {"build": "test-snake-around-alpha", "inputs": "x.input"}}}, "nothing is known of what"),
    ],
)
def test_a_wrong_rule_made_in_python_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RuleError) as caught:
        rule(**changes)
    assert words in caught.value.what
