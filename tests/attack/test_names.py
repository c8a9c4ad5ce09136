"""Nothing that a file contains reaches Python's compiler, and every name leads only to what the file registers."""

from __future__ import annotations

import contextlib
import copy
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.errors import ArtifactError, BcosFxError
from bcos_fx.network import BcosNetwork, reserved_names
from tests.artifact.making import Document, opened, tampered

_SEEN: list[str] = []
_LISTENING = [False]


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    """Keep every source that is compiled, and the constants and names of every code object that is run."""
    if not _LISTENING[0]:
        return
    if event == "compile":
        _SEEN.append(repr(arguments[0]))
    elif event == "exec":
        _SEEN.append(repr((arguments[0].co_consts, arguments[0].co_names)))


sys.addaudithook(_listen)


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """What was compiled during a test."""
    _SEEN.clear()
    _LISTENING[0] = True
    yield _SEEN
    _LISTENING[0] = False


class Small(nn.Module):
    """Reads a stored tensor, and calls modules, functions and methods with keywords and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.block = nn.ModuleDict({"inner": nn.Conv2d(4, 4, 1)})
        self.last = nn.Linear(4, 5)
        self.offset = nn.Parameter(torch.randn(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.block["inner"](self.first(x).relu()) + self.offset
        y = nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")
        return self.last(y.mean(dim=(2, 3), keepdim=False))


torch.manual_seed(0)
X = torch.rand(2, 3, 6, 6)
DATA = to_bytes(bcos_fx.bcosify(Small().eval(), recipe="equivalent", example_inputs=X, mean=(0.5,) * 3, std=(0.2,) * 3))


def renamed(document: Document, old: str, new: str) -> None:
    """Rename the module at a path, and all that lies below it, wherever the document speaks of it."""

    def moved(path: Any) -> Any:
        if not isinstance(path, str) or not f"{path}.".startswith(f"{old}."):
            return path
        return new + path[len(old) :]

    for entry in document["modules"]:
        entry["path"] = moved(entry["path"])
    for node in document["nodes"]:
        if node["kind"] in ("call_module", "get_attr"):
            node["target"] = moved(node["target"])


def used(model: BcosNetwork) -> None:
    """Do with a network what its users do."""
    model(X)
    copy.deepcopy(model)(X)
    bcos_fx.explain(model, X)
    bcos_fx.certify(model, X)
    bcos_fx.verify(model, model, X)
    model.graph_module()(X)
    model.report.to_text(nodes=True)
    to_bytes(model)


# Parts of the attribute chain that led from a network to a shell, spelled with letters that the compiler folds.
_CHAIN = ["forward", "__globals__", "__class__", "__init__", "__dict__", "_modules", "_graph", "_program"]


def _spellings(name: str) -> list[str]:
    wide = "".join(chr(ord(letter) + 0xFEE0) if letter != "_" else letter for letter in name)
    first = chr(ord(name.strip("_")[0]) + 0xFEE0)
    mathematical = "".join(chr(0x1D44E + ord(c) - 97) if c.isalpha() and c != "h" else c for c in name)
    return [name, wide, name.replace(name.strip("_")[0], first, 1), mathematical]


_HOSTILE = [f"{first}{rest}" for name in _CHAIN for first in _spellings(name) for rest in ("", ".x", ".__globals__")]


@pytest.mark.parametrize("name", _HOSTILE)
def test_a_name_that_folds_into_an_attribute_is_refused(name: str) -> None:
    """Whatever its spelling: the layer is refused, or it is an ordinary layer of that name."""
    for old in ("first", "block.inner"):
        with contextlib.suppress(ArtifactError):
            model = from_bytes(tampered(DATA, lambda d, old=old: renamed(d, old, name)))
            assert unicodedata.normalize("NFKC", name).split(".")[0] not in reserved_names()
            assert torch.equal(model(X), from_bytes(DATA)(X))


@pytest.mark.parametrize("name", sorted(reserved_names()))
def test_no_part_of_a_network_is_named_like_an_attribute(name: str) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(tampered(DATA, lambda document: renamed(document, "first", name)))


def test_no_text_of_a_file_is_compiled(compiled: list[str]) -> None:
    """All names of a file are replaced by words that stand nowhere else; none of them is ever compiled."""
    _LISTENING[0] = False
    names = {"first": "zqmodule", "block": "zqblock", "last": "zqlast", "block.inner": "zqblock.zqinner"}

    def marked(document: Document) -> None:
        for old, new in names.items():
            renamed(document, old if old != "block.inner" else "zqblock.inner", new)
        text = opened(DATA)[1]
        for node in text["nodes"]:
            _rename_node(document, node["name"], f"zqnode_{node['name']}")

    data = tampered(DATA, marked)
    _LISTENING[0] = True
    model = from_bytes(data)
    used(model)
    assert compiled, "nothing was compiled at all: the hook does not listen"
    assert not [source for source in compiled if "zq" in source]
    assert "zqmodule" in dict(model.named_modules())


def _rename_node(document: Document, old: str, new: str) -> None:
    def walk(value: Any) -> None:
        if isinstance(value, dict) and value.get("node") == old:
            value["node"] = new
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(item)

    for node in document["nodes"]:
        if node["name"] == old:
            node["name"] = new
    walk(document["nodes"])


class Letters(nn.Module):
    """Two layers whose names Python's compiler takes for one: U+00B5 and U+03BC."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({first: nn.Linear(4, 4), second: nn.Linear(4, 4)})

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers.values()
        return first(x).relu() + second(x * 2)


_PAIRS = [("\u00b5", "\u03bc"), ("\ufb01", "fi"), ("\u017f", "s"), ("\u212a", "K"), ("\uff58", "x"), ("\u00b2", "2")]


@pytest.mark.parametrize("names", _PAIRS, ids=str)
def test_names_that_fold_into_each_other_stay_two(names: tuple[str, str]) -> None:
    """An honest network with such names converts, is stored and read back, and its explanation is its own."""
    module, x = Letters(*names).eval(), torch.rand(3, 4)
    model = bcos_fx.bcosify(module, recipe="equivalent", example_inputs=x)
    again = from_bytes(to_bytes(model))
    for network in (model, again):
        torch.testing.assert_close(network(x), module(x))
        found = bcos_fx.explain(network, x)
        assert found.complete
        torch.testing.assert_close(found.output, network(x).amax(1))


@pytest.mark.parametrize("names", _PAIRS, ids=str)
def test_one_file_is_one_network(names: tuple[str, str]) -> None:
    """What the forward runs is what explanations and certificates speak of."""

    def swapped(document: Document) -> None:
        paths = [f"layers.{name}" for name in names]
        targets = [node for node in document["nodes"] if node["kind"] == "call_module" and node["target"] in paths]
        for node in targets:
            node["target"] = paths[0]

    module, x = Letters(*names).eval(), torch.rand(3, 4)
    data = tampered(to_bytes(bcos_fx.bcosify(module, recipe="equivalent", example_inputs=x)), swapped)
    model = from_bytes(data)
    first = next(iter(module.layers.values()))
    torch.testing.assert_close(model(x), first(x).relu() + first(x * 2))
    torch.testing.assert_close(bcos_fx.explain(model, x).output, model(x).amax(1))


# ---------------------------------------------------------------- operations


def _node(document: Document, **fields: Any) -> None:
    """Put a node before the output that computes something of the input's number of samples, and forget the result."""
    entry = {"kind": "call_function", "kwargs": [], "meta": {}, **fields}
    document["nodes"].insert(-1, {"name": "evil", **entry})


_SIZE = {"name": "rows", "kind": "call_method", "op": "size", "target": "size", "args": [{"node": "x"}, 0]}

_ARITHMETIC: dict[str, Callable[[Any], list[Any]]] = {
    "operator.pow": lambda n: [[9**15, 9**8], [n, 9**8], [n, 2**62], [2.5, n]],
    "operator.mod": lambda n: [["%9999999999d", 5], ["%9999999999d", n], ["%s", n]],
    "operator.mul": lambda n: [["a", 10**9], [[1], 10**10], [n, [1]], [{"tuple": [1]}, 10**9], ["ab", n]],
    "operator.add": lambda n: [["a", "b"], ["a", n], [[1], [2]]],
}
_CALLS = [(target, call) for target, make in _ARITHMETIC.items() for call in make({"node": "rows"})]


@pytest.mark.parametrize(("target", "arguments"), _CALLS, ids=str)
def test_arithmetic_on_literals_is_bounded(target: str, arguments: list[Any]) -> None:
    """It is refused, or the network runs at once."""

    def change(document: Document) -> None:
        document["nodes"].insert(1, {**_SIZE, "kwargs": [], "meta": {}})
        _node(document, op=target.partition(".")[2].replace("mod", "remainder"), target=target, args=arguments)

    with contextlib.suppress(BcosFxError):
        from_bytes(tampered(DATA, change))(X)


def test_a_doubling_chain_is_refused() -> None:
    """Sixty sums of a tuple with itself would hold 2^60 numbers."""

    def change(document: Document) -> None:
        document["nodes"].insert(1, {**_SIZE, "args": [{"node": "x"}], "kwargs": [], "meta": {}})
        last = "rows"
        for level in range(60):
            entry = {"kind": "call_function", "op": "add", "target": "operator.add", "kwargs": [], "meta": {}}
            sides = [{"node": last}, {"node": last}]
            document["nodes"].insert(2 + level, {"name": f"twice_{level}", "args": sides, **entry})
            last = f"twice_{level}"

    with pytest.raises(ArtifactError):
        from_bytes(tampered(DATA, change))


@pytest.mark.parametrize(
    ("target", "op", "arguments"),
    [
        ("torch.zeros", "zeros", [{"tuple": [10**6, 10**6]}]),
        ("torch.ones", "ones", [10**11]),
        ("torch.arange", "arange", [10**11]),
    ],
)
def test_a_value_out_of_proportion_is_refused(target: str, op: str, arguments: list[Any]) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(tampered(DATA, lambda d: _node(d, op=op, target=target, args=arguments)))


def test_the_old_format_goes_through_the_same_checks() -> None:
    old = tampered(DATA, lambda document: document.update(format=1))
    assert torch.equal(from_bytes(old)(X), from_bytes(DATA)(X))
    for name in ("\uff46orward", "_program"):
        with pytest.raises(ArtifactError):
            from_bytes(tampered(old, lambda document, name=name: renamed(document, "first", name)))


@pytest.mark.parametrize("text", ["\ud800", "a\udfff", "\ude00\ud83d"])
def test_halves_of_surrogate_pairs_are_refused(text: str) -> None:
    """They are no Unicode: printing or writing them fails later, somewhere else."""
    for change in (
        lambda d: d["record"]["Record"]["report"]["Report"].update(recipe=text),
        lambda d: d["record"]["Record"]["report"]["Report"].update(notes={"tuple": [text]}),
        lambda d: renamed(d, "first", text),
        lambda d: d["versions"].update({text: "1"}),
    ):
        with pytest.raises(ArtifactError, match="damaged"):
            from_bytes(tampered(DATA, change))
    from_bytes(tampered(DATA, lambda d: d["record"]["Record"]["report"]["Report"].update(recipe="\U0001f600")))


def test_modules_below_each_other_are_bounded() -> None:
    """Four hundred levels of modules overflow Python's stack in torch's own methods."""

    def deep(document: Document) -> None:
        container = {**document["modules"][0], "parameters": [], "buffers": []}
        path = "deep"
        for _ in range(400):
            document["modules"].append({**container, "path": path})
            path += ".x"

    with pytest.raises(ArtifactError, match="no place"):
        from_bytes(tampered(DATA, deep))


def _spec(document: Document) -> Any:
    return document["record"]["Record"]["inputs"]["tuple"][0]["InputSpec"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["nodes"].insert(3, d["nodes"].pop(0)),
        lambda d: d["nodes"][0].update(args=[1.0]),
        lambda d: d["nodes"][0].update(target="other"),
        lambda d: d["record"]["Record"].update(inputs={"tuple": []}),
        lambda d: d["record"]["Record"]["inputs"]["tuple"].append(d["record"]["Record"]["inputs"]["tuple"][0]),
        lambda d: _spec(d).update(shape={"tuple": []}),
        lambda d: _spec(d).update(shape={"tuple": [2, 3, 0, 6]}),
        lambda d: _spec(d).update(shape={"tuple": [2, 3, 10**6, 10**6]}),
        lambda d: _spec(d).update(matrix={"tuple": []}),
        lambda d: d["record"]["Record"].update(train="yes"),
        lambda d: d["record"]["Record"]["report"]["Report"]["options"]["dict"].__setitem__(0, ["b", "two"]),
        lambda d: d["record"]["Record"]["report"]["Report"].update(
            rules={"dict": [["a", {"RuleUse": {"phase": "never", "preserves": "always"}}]]}
        ),
        lambda d: d["record"]["Record"]["report"]["Report"]["figures"]["Figures"].update(
            verification={"dict": [["ok", True]]}
        ),
    ],
)
def test_a_record_that_would_fail_later_is_refused(change: Callable[[Document], Any]) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(tampered(DATA, change))
