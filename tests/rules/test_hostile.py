"""What may not be had through ops of one's own: no import, no code, and no second meaning of a name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx import rules
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.errors import ArtifactError, RewriteError, RuleError, UsageError
from bcos_fx.rewriting.core import ops, spelling
from tests.artifact.making import tampered
from tests.rules import own_ops

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def data() -> bytes:
    """A file with a Snake and a call of swish2."""
    parts = (nn.Conv2d(3, 8, 3), own_ops.Snake(8), own_ops.Inside("swish2"), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return to_bytes(bcos_fx.bcosify(nn.Sequential(*parts).eval(), example_inputs=X, recipe="equivalent"))


def snake(document: dict[str, Any]) -> dict[str, Any]:
    return next(module for module in document["modules"] if module.get("class") == "own.Snake")


# ---------------------------------------------------------------- files of networks


def test_a_file_of_an_unregistered_class_names_the_registration(data: bytes, unspoiled: None) -> None:
    for name in ("own_snake", "own_swish2"):
        del ops._DECLARED[name]
        del spelling._REGISTERED[ops.vocabulary().ops[name].modules[0] if name == "own_snake" else "own.swish2"]
        ops.forget_vocabulary()
    with pytest.raises(
        ArtifactError, match=r"not registered: 'own_snake', spelled 'own\.Snake'; 'own_swish2'"
    ) as caught:
        from_bytes(data)
    assert "@bcos_fx.rules.op('own.Snake')" in str(caught.value.hint)
    assert "--import" in str(caught.value.hint)


@pytest.mark.parametrize(
    "name",
    ["os.system", "subprocess.Popen", "tests.rules.own_ops.Inside", "own.swish2", "own.Unheard", "torch.os.system"],
)
def test_a_file_reaches_no_class_but_registered_ones(data: bytes, name: str) -> None:
    with pytest.raises(ArtifactError, match="op vocabulary has no layer"):
        from_bytes(tampered(data, lambda d: snake(d).update({"class": name})))


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "own.gated", "own.Snake"])
def test_a_file_reaches_no_function_but_those_of_the_op(data: bytes, name: str) -> None:
    def change(document: dict[str, Any]) -> None:
        (node,) = [node for node in document["nodes"] if node["op"] == "own_swish2"]
        node["target"] = name

    with pytest.raises(ArtifactError, match="nothing that a node of its kind can call"):
        from_bytes(tampered(data, change))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([["channels", 8], ["command", "ls"]], "no option 'command'"),
        ([["channels", "ls"]], "the constructor of Snake raised"),
        ([["channels", 10**12]], "shape"),
        ([["channels", 7]], "shape"),
        ([], "the constructor of Snake raised TypeError"),
        ([["channels", {"node": "input"}]], "means nothing in a file"),
    ],
)
def test_a_registered_class_takes_options_that_it_has_and_plain_data(
    data: bytes, options: list[list[Any]], words: str
) -> None:
    with pytest.raises(ArtifactError, match=words):
        from_bytes(tampered(data, lambda d: snake(d).update({"options": options})))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda op: op["fields"]["dict"].__setitem__(0, ["linearity", "linear"]), "linearity is 'linear' there"),
        (lambda op: op.update(fields="linear"), "makes no sense"),
        (lambda op: op.update(spelled=["own.Other"]), "has not registered"),
        (lambda op: op.update(name="relu"), "has not registered"),
        (lambda op: op.update(more=1), "means nothing here"),
    ],
)
def test_an_op_that_means_something_else_here_is_refused(
    data: bytes, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    with pytest.raises(ArtifactError, match=words):
        from_bytes(tampered(data, lambda d: change(d["ops"][0])))


def test_a_network_without_ops_of_its_own_is_of_the_older_format(data: bytes) -> None:
    plain = bcos_fx.bcosify(nn.Sequential(nn.Linear(4, 2)), recipe="equivalent").with_record(origin=None)
    own = from_bytes(data).with_record(origin=None)
    for content, number in ((to_bytes(plain), 2), (to_bytes(own), 3)):
        found: list[dict[str, Any]] = []
        tampered(content, found.append)
        assert found[0]["format"] == number
        assert ("ops" in found[0]) is (number == 3)


# ---------------------------------------------------------------- what no file can hold


class Remembers(nn.Module):
    def __init__(self, size: int, mode: str = "plain") -> None:
        super().__init__()
        self.size = size
        self.shout = mode == "loud"

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.shout else x


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.ones(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table


class Objects(nn.Module):
    """Its result depends on an object that its constructor's arguments do not tell."""

    def __init__(self, factor: int = 1) -> None:
        super().__init__()
        self.function = lambda x: factor * x

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def constructor_options(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (lambda: Remembers(3, "loud"), r"does not keep its constructor's argument 'mode'"),
        (lambda: Keeps(), r"'table', which is neither a parameter nor a buffer"),
        (lambda: Objects(3), r"computes something else"),
    ],
)
def test_a_layer_that_its_options_do_not_make_is_not_saved(
    layer: Callable[[], nn.Module], words: str, unspoiled: None
) -> None:
    module = layer()
    rules.op(f"own.{type(module).__name__}", linearity="linear")(type(module))
    network = bcos_fx.bcosify(nn.Sequential(module, nn.Conv2d(3, 2, 1)).eval(), example_inputs=X, recipe="equivalent")
    with pytest.raises(ArtifactError, match=words):
        to_bytes(network)


# ---------------------------------------------------------------- registration


def test_two_definitions_of_one_name_are_refused_and_one_may_be_run_again(unspoiled: None) -> None:
    def define(place: str) -> type[nn.Module]:
        return type(
            "Snake", (nn.Module,), {"__module__": place, "__qualname__": "Snake", "forward": nn.Identity.forward}
        )

    rules.op("twice.Snake", linearity="linear")(define("notebook"))
    rules.op("twice.Snake", linearity="ratio")(define("notebook"))
    assert ops.vocabulary()["twice.Snake"].linearity == "ratio"
    with pytest.raises(
        RuleError, match=r"two definitions are registered as the op's spelling 'twice\.Snake'"
    ) as caught:
        rules.op("twice.Snake", linearity="ratio")(define("elsewhere"))
    assert "notebook" in str(caught.value.where)
    assert "elsewhere" in str(caught.value.where)
    with pytest.raises(RuleError, match="two ops are named 'relu'"):
        rules.op("twice.Relu", name="relu", linearity="selection")(define("elsewhere"))
    with pytest.raises(RuleError, match="two definitions are registered as the builder 'average-pool'"):
        rules.builder("average-pool")(lambda build: nn.ReLU())


@pytest.mark.parametrize("name", ["Snake", "torch.Snake", "nn.Snake", "bcos.Snake", "my ops.A", "a..b", "", "é.A"])
def test_a_spelling_is_a_dotted_name_of_ones_own(name: str) -> None:
    with pytest.raises(RuleError, match="cannot be the spelling of an op"):
        rules.op(name, linearity="linear")(type("Snake", (nn.Module,), {}))


def test_the_class_of_pytorch_keeps_its_meaning(unspoiled: None) -> None:
    with pytest.raises(RuleError, match=r"is the op 'relu' already"):
        rules.op("mine.ReLU", linearity="linear")(nn.ReLU)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("functions", "os.system"),
        ("functions", "torch.os.system"),
        ("functions", "builtins.eval"),
        ("functions", "builtins.getattr"),
        ("functions", "operator.methodcaller"),
        ("functions", "torch.load"),
        ("functions", "torch.hub.load"),
        ("functions", "torch.compile"),
        ("functions", "torch.as_strided"),
        ("functions", "torch.Tensor.apply_"),
        ("functions", "tracing.torch.load"),
        ("functions", "bcos.Attention"),
        ("functions", "own.Snake"),
        ("modules", "os.system"),
        ("modules", "nn.modules.linear.Linear"),
        ("modules", "torch.nn.Linear"),
        ("modules", "own.swish2"),
        ("methods", "__reduce__"),
        ("methods", "register_hook"),
        ("methods", "numpy"),
        ("methods", "data_ptr"),
        ("methods", "add_"),
        ("methods", "system"),
    ],
)
def test_a_rule_file_names_layers_and_functions_on_tensors_only(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / "evil.toml"
    path.write_text(f'[op.evil]\nclass = "linear"\n{kind} = ["{name}"]\n')
    with pytest.raises(RuleError) as caught:
        rules.load(path)
    assert f"{path}:3" in str(caught.value.where)
    assert "evil" not in ops.vocabulary().ops


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('class = "linear"\nfunctions = ["F.relu"]', "is the op 'relu' already"),
        ('class = "lineal"\nfunctions = ["own.swish2"]', "did you mean 'linear'"),
        ('class = "linear"', "has no spelling"),
        ('class = "linear"\nfunctions = ["own.gated"]\nvalue = ["y"]', "no parameter 'y'"),
        ('class = "linear"\nfunctions = ["own.gated"]\npeers = ["os.system"]', "unknown key 'peers'"),
        ('class = "linear"\nfunctions = ["own.gated"]\nview = true', "unknown key 'view'"),
    ],
)
def test_a_wrong_declaration_is_named_with_its_line(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(f"[op.wrong]\n{lines}\n")
    with pytest.raises(RuleError) as caught:
        rules.load(path)
    assert words in f"{caught.value.what} {caught.value.hint}"
    assert str(path) in str(caught.value.where)


# ---------------------------------------------------------------- claims that numbers refute


def _shifted(x: Tensor) -> Tensor:
    return x.relu() + 1


class WrongSplit(rules.DynamicLayer):
    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.square(), x.new_ones(())

    def recompose(self, linear: Tensor, factor: Tensor) -> Tensor:
        return linear * factor


class Untold(rules.DynamicLayer):
    """Adds a constant that it does not declare."""

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.norm()

    def recompose(self, linear: Tensor, factor: Tensor) -> Tensor:
        return linear / factor + 1


CLAIMS: dict[str, tuple[Any, str, str]] = {
    "a gate as linear": (lambda x: x.sigmoid() - 0.5, "linear", "a sum of two inputs"),
    "a constant untold": (_shifted, "linear", "name what it adds in 'constants'"),
    "a shift as selection": (_shifted, "selection", "three times"),
    "a square as selection": (lambda x: x * x.abs(), "selection", "three times"),
    "a norm as selection": (lambda x: x.relu().detach() + 0 * x, "selection", "gradient times"),
    "a pool as ratio": (lambda x: x.mean((2, 3), keepdim=True) * x, "ratio", "other numbers"),
    "a ratio of another shape": (lambda x: x.flatten(1), "ratio", "shape of its input"),
    "a ratio that is not 0 at 0": (torch.exp, "ratio", "at 0, so it is not a weight"),
    "a value as constant": (lambda x: x.sum(1), "constant", "depends on the input"),
    "a wrong split": (WrongSplit, "linear", "not linear in the input"),
    "a constant in recompose": (Untold, "normalise", "name it in 'constants'"),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_wrong_linearity_class_is_no_certificate(claim: str, unspoiled: None) -> None:
    target, linearity, words = CLAIMS[claim]
    name = f"wrong.{claim.replace(' ', '_')}"
    if isinstance(target, type):
        layer = rules.op(name, linearity=linearity)(target)()
    else:
        function = rules.op(name, linearity=linearity)(lambda x: target(x))
        layer = _Calling(function)
    module = nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.AdaptiveAvgPool2d(1)).eval()
    if claim == "a ratio of another shape":
        module = nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.Linear(768, 2)).eval()
    if claim == "a value as constant":
        module = nn.Sequential(nn.Conv2d(3, 3, 1), layer, nn.Flatten(), nn.Linear(256, 2)).eval()
    found = bcos_fx.certify(module, X)
    assert not found.ok
    assert any(words in broken.reason for broken in found.breaks), found.to_text()


class _Calling(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# ---------------------------------------------------------------- mistakes in the user's own Python


@pytest.mark.parametrize(
    ("body", "words"),
    [(lambda build: 1 / 0, "raised ZeroDivisionError"), (lambda build: None, "returned a NoneType, not a module")],
)
def test_a_builders_mistake_is_named(body: Callable[[Any], Any], words: str, unspoiled: None) -> None:
    rules.builder("mistaken")(body)
    rule = rules.rule(
        name="gelu-to-mistake",
        phase="align",
        preserves="never",
        source="a test",
        why="A test.",
        match={"gelu": {"ops": "gelu"}},
        replace={"gelu": {"build": "mistaken", "inputs": "gelu.input"}},
    )
    with pytest.raises(RewriteError, match=words) as caught:
        bcos_fx.bcosify(nn.Sequential(nn.Linear(4, 4), nn.GELU()), rules=[rule], verified=False)
    assert "gelu-to-mistake" in str(caught.value.where)


def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    from bcos_fx.cli.imports import import_rules

    for text, words in (("raise SystemError('no')", "raised SystemError"), ("def", "raised SyntaxError")):
        path = tmp_path / f"wrong{len(text)}.py"
        path.write_text(text)
        with pytest.raises(UsageError, match=words):
            import_rules(path)
    with pytest.raises(UsageError, match="does not exist"):
        import_rules(tmp_path / "missing.py")
