"""Rule files that are wrong: each message has the file, the line and the nearest known name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import bcos_fx
from bcos_fx.errors import RewriteError, RuleError, UsageError
from bcos_fx.rewriting.core.location import rule_files, rules_directory
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.recipe import load_recipe
from bcos_fx.rewriting.core.rule import NodePattern, Replacement, Rule, validate
from bcos_fx.rewriting.core.rulefile import known_names, load_rules, read_rules

GOOD = """
[[rule]]
name = "relu-to-relu"
phase = "activation"
preserves = "always"
source = "definition"
why = "A ReLU is a ReLU."
[rule.match.relu]
op = "relu"
form = "call"
[rule.replace.relu]
build = "module-form"
inputs = "relu.input"
"""


def written(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


WRONG = {
    "unknown key": (('form = "call"', 'frm = "call"'), "unknown key 'frm'", "'form'", 10),
    "unknown key of a rule": (('why = "A', 'reason = "A'), "'why' is missing", "", 2),
    "unknown op": (('op = "relu"', 'op = "reluu"'), "'reluu' is not a known op", "'relu'", 2),
    "unknown builder": (('build = "module-form"', 'build = "module-from"'), "not a known builder", "'module-form'", 2),
    "unknown predicate": (('form = "call"', 'require = "has-bais"'), "not a known predicate", "'has-bias'", 2),
    "unknown phase": (('phase = "activation"', 'phase = "activaton"'), "not a known phase", "'activation'", 4),
    "unknown word": (('preserves = "always"', 'preserves = "alway"'), "not a known preserves", "'always'", 5),
    "unknown option": (('why = "A', 'when = { scal = "raw" }\nwhy = "A'), "not a known option", "'scale'", 2),
    "wrong type": (('name = "relu-to-relu"', "name = 3"), "'name' must be a text", "", 3),
    "wrong type below": (('form = "call"', "optional = 1"), "'optional' must be true or false", "", 10),
    "changes while preserving": (('preserves = "always"', 'preserves = "never"'), "changes the function", "pool", 2),
    "unknown form": (('form = "call"', 'form = "cal"'), "not a known form", "'call'", 2),
    "unknown input": (('form = "call"', 'inputs = "pol"'), "not a known pattern node", "", 2),
    "unknown result": (('inputs = "relu.input"', 'inputs = "rely.input"'), "not a known node", "'relu'", 2),
    "does nothing": (
        ('[rule.replace.relu]\nbuild = "module-form"\ninputs = "relu.input"\n', ""),
        "does nothing",
        "",
        2,
    ),
    "arguments for a module that is built": (
        ('inputs = "relu.input"', "arguments = { inplace = true }"),
        "must reuse a node of form",
        "",
        2,
    ),
    "unknown argument": (
        ('build = "module-form"', "arguments = { inpt = true }"),
        "'inpt' is not a known argument of relu",
        "'input'",
        2,
    ),
    "reuses nobody": (('[rule.replace.relu]\nbuild = "module-form"', "[rule.replace.other]"), "to reuse", "", 2),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_rule_file_is_named_with_file_line_and_nearest_name(name: str, tmp_path: Path) -> None:
    (old, new), words, nearest, line = WRONG[name]
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(RuleError) as caught:
        read_rules(path)
    assert words in str(caught.value)
    assert nearest in (caught.value.hint or "")
    assert caught.value.where == f"{path}:{line}"


def test_a_good_rule_file_is_read(tmp_path: Path) -> None:
    (rule,) = read_rules(written(tmp_path, GOOD))
    assert rule.name == "relu-to-relu"
    assert rule.origin.endswith("mine.toml:2")
    network = bcos_fx.bcosify(
        _relu_network(), example_inputs=torch.rand(2, 4), recipe="equivalent", rules=[tmp_path / "mine.toml"]
    )
    assert network.report.rule_counts()["relu-to-relu"] == 1


class _Relu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.fc(x))


def _relu_network() -> nn.Module:
    return _Relu().eval()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("this is no TOML", "not valid TOML"),
        ("", "holds no [[rule]]"),
        ("[other]\nx = 1\n" + GOOD, "unknown key 'other'"),
        (GOOD.replace('name = "relu-to-relu"', 'name = "relu-to-relu"\nname = "again"'), "not valid TOML"),
    ],
)
def test_a_file_that_is_no_rule_file(content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RuleError) as caught:
        read_rules(written(tmp_path, content))
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="cannot be read"):
        read_rules(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleError, match="not UTF-8"):
        read_rules(tmp_path / "binary.toml")


def test_two_rules_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="two rules are named 'relu-to-relu'") as caught:
        load_rules([written(tmp_path, GOOD), written(tmp_path, GOOD, "other.toml")])
    assert "mine.toml:2" in str(caught.value)
    assert "other.toml:2" in str(caught.value)


def test_two_rules_that_undo_each_other_are_named() -> None:
    """One rule doubles what a ReLU sees, the other takes it back: no phase of them settles."""
    base = load_recipe("equivalent")
    there = Rule("relu-to-dropout", "activation", "eval", "test", "test", {"x": NodePattern(ops=("relu",))},
                 {"x": Replacement("to-dropout", inputs=("x.input",))})  # fmt: skip
    back = dataclasses.replace(there, name="dropout-to-relu", match={"x": NodePattern(ops=("dropout",))},
                               replace={"x": Replacement("to-relu", inputs=("x.input",))})  # fmt: skip
    from bcos_fx.rewriting.core.passes import Engine
    from bcos_fx.tracing import trace

    builders = {"to-dropout": lambda build: nn.Dropout(0.5), "to-relu": lambda build: nn.ReLU()}
    engine = Engine(dataclasses.replace(base, rules=(there, back)), builders=builders)
    with pytest.raises(RewriteError) as caught:
        engine.run(trace(_relu_network(), torch.rand(2, 4)).graph_module)
    for words in ("'relu-to-dropout'", "'dropout-to-relu'", "undo each other", "node relu"):
        assert words in str(caught.value)


def test_a_sum_that_promotes_its_first_part_stays_out_of_place() -> None:
    """float32 + float64 is float64, which does not fit into the memory of the float32 part."""

    class Promoting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + x.double()

    counts = bcos_fx.plan(Promoting().eval(), example_inputs=torch.rand(2, 4), recipe="equivalent").rule_counts()
    assert "batch-norm-uncentred" in counts
    assert "sum-in-place" not in counts


def test_a_rule_that_never_stops_is_named_alone() -> None:
    from bcos_fx.rewriting.core.passes import Engine
    from bcos_fx.tracing import trace

    again = Rule("relu-again", "activation", "always", "test", "test", {"x": NodePattern(ops=("relu",))},
                 {"x": Replacement("to-relu", inputs=("x.input",))})  # fmt: skip
    engine = Engine(
        dataclasses.replace(load_recipe("equivalent"), rules=(again,)), builders={"to-relu": lambda build: nn.ReLU()}
    )
    with pytest.raises(RewriteError, match=r"'relu-again'.*never stops applying"):
        engine.run(trace(_relu_network(), torch.rand(2, 4)).graph_module)


def test_a_rule_made_in_python_goes_through_the_same_validator() -> None:
    rule = Rule("nonsense", "linear", "never", "test", "test", {"x": NodePattern(ops=("relu",))}, result="x.input")
    with pytest.raises(RuleError, match="changes the function") as caught:
        validate(rule, known_names())
    assert caught.value.where == "made in Python"


def test_no_rule_file_names_python() -> None:
    """A rule file names ops, predicates and builders; nothing in it could be imported or run."""
    for path in rule_files():
        assert "torch" not in path.read_text(encoding="utf-8")


def test_recipes_that_do_not_exist_or_fix_an_option() -> None:
    with pytest.raises(RuleError, match="did you mean 'equivalent'"):
        load_recipe("equivalnt")
    with pytest.raises(UsageError, match=r"fixes b=1\.0"):
        load_recipe("equivalent").with_options({"b": 2.0})
    with pytest.raises(UsageError, match="did you mean 'scale'"):
        load_recipe("equivalent").with_options({"scal": "raw"})


def test_a_recipe_with_an_unknown_option_or_rule(tmp_path: Path) -> None:
    text = (rules_directory() / "recipes" / "equivalent.toml").read_text(encoding="utf-8")
    path = written(tmp_path, text.replace("b = 1.0", "bb = 1.0"))
    with pytest.raises(RuleError, match="no option is named 'bb'") as caught:
        load_recipe(path)
    assert caught.value.where == f"{path}:6"
    path = written(tmp_path, 'without = ["layer-to-bcoss"]\n' + text)
    with pytest.raises(RuleError, match="did you mean 'layer-to-bcos'"):
        load_recipe(path)


def test_every_spelling_of_the_vocabulary_exists_and_means_one_op() -> None:
    words = vocabulary()
    seen: dict[object, str] = {}
    for op in words:
        for spelling in (*op.modules, *op.functions, *(f"method {m}" for m in op.methods)):
            assert seen.setdefault(spelling, op.name) == op.name, f"{spelling} means {seen[spelling]} and {op.name}"
    assert len(seen) > 250
