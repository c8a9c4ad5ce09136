"""Files that somebody wrote to do harm, with a correct checksum: none runs code, each gives one clear error.

fx makes Python source of a graph, so each text that could get into that source is tried here.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bcos_fx.artifact import from_bytes, to_bytes
from bcos_fx.errors import ArtifactError
from bcos_fx.network import BcosNetwork
from tests.artifact.making import Document, everything, opened, tampered

_CODE = "setattr(__import__('builtins'),'pwned',1)"
PAYLOADS = [
    _CODE,
    f"x={_CODE}",
    f"x\n    {_CODE}\n    y",
    f"x;{_CODE};y",
    f"x: {_CODE}",
    f"x), {_CODE}, (x",
    f'a"), {_CODE}, ("b',
    f"a'), {_CODE}, ('b",
    f'a\\"), {_CODE}, ("b',
    f"x # \n{_CODE}",
    f'"""\n{_CODE}\n"""',
    "{" + _CODE + "}",
    f"# COUNTER: 1\n    {_CODE}",
]

torch.manual_seed(0)
DATA = to_bytes(everything())
DOCUMENT: Document = opened(DATA)[1]


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    yield
    assert not hasattr(builtins, "pwned")


def node(document: Document, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n for n in document["nodes"] if n["name"] == name)
    return found


def module(document: Document, path: str) -> dict[str, Any]:
    found: dict[str, Any] = next(m for m in document["modules"] if m["path"] == path)
    return found


def renamed(document: Document, old: str, new: str) -> None:
    """Rename a node and all references to it."""

    def walk(value: Any) -> None:
        if isinstance(value, dict) and value.get("node") == old:
            value["node"] = new
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(item)

    node(document, old)["name"] = new
    walk(document["nodes"])


def moved(document: Document, old: str, new: str) -> None:
    """Rename a module, its tensors staying where they are, and the calls of it."""
    module(document, old)["path"] = new
    for entry in document["nodes"]:
        if entry["target"] == old:
            entry["target"] = new


PLACES: dict[str, Callable[[Document, str], Any]] = {
    "node name": lambda d, s: renamed(d, "add", s),
    "placeholder name": lambda d, s: renamed(d, "x", s),
    "placeholder": lambda d, s: node(d, "x").update(target=s),
    "keyword": lambda d, s: node(d, "mean").update(kwargs=[[s, 1]]),
    "method": lambda d, s: node(d, "mean").update(target=s),
    "function": lambda d, s: node(d, "add").update(target=s),
    "attribute of getattr": lambda d, s: node(d, "getattr_1")["args"].__setitem__(1, s),
    "tensor path": lambda d, s: node(d, "mask").update(target=s),
    "module target": lambda d, s: node(d, "first").update(target=s),
    "class": lambda d, s: module(d, "first").update({"class": s}),
    "option name": lambda d, s: module(d, "first")["options"].append([s, 1]),
    "kind": lambda d, s: node(d, "add").update(kind=s),
    "op": lambda d, s: node(d, "add").update(op=s),
    "output": lambda d, s: d["nodes"][-1].update(target=s),
    "device": lambda d, s: node(d, "to_1")["kwargs"].__setitem__(0, ["device", {"device": s}]),
    "dtype": lambda d, s: node(d, "to")["args"].__setitem__(1, {"dtype": s}),
    "memory format": lambda d, s: node(d, "to")["args"].__setitem__(1, {"memory_format": s}),
    "layout": lambda d, s: node(d, "to")["args"].__setitem__(1, {"layout": s}),
    "part of a complex number": lambda d, s: node(d, "add")["args"].__setitem__(1, {"complex": [0.5, s]}),
    "float": lambda d, s: node(d, "clamp")["kwargs"].__setitem__(0, ["min", {"float": s}]),
    "reference": lambda d, s: node(d, "add")["args"].__setitem__(0, {"node": s}),
    "tag": lambda d, s: node(d, "add")["args"].__setitem__(0, {s: [1]}),
    "meta key": lambda d, s: node(d, "add")["meta"].update({s: 1}),
    "tensor name": lambda d, s: d["modules"][0]["parameters"][0].update(name=s),
    "dataclass": lambda d, s: d["record"].update({s: {}}),
    "record field": lambda d, s: d["record"]["Record"].update({s: 1}),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("place", PLACES)
def test_a_name_cannot_carry_code(place: str, payload: str) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(tampered(DATA, lambda document: PLACES[place](document, payload)))


def _constants(payload: str) -> list[Callable[[Document], Any]]:
    return [
        lambda d: node(d, "mean").update(kwargs=[["dim", payload]]),
        lambda d: node(d, "mean").update(kwargs=[["dim", {"tuple": [payload, {"dict": [[payload, [payload]]]}]}]]),
        lambda d: node(d, "getitem")["args"].__setitem__(1, {"slice": [payload, None, payload]}),
        lambda d: node(d, "x").update(args=[payload]),
        lambda d: moved(d, "first", payload),
        lambda d: node(d, "add")["meta"].update(source=payload, text=payload, was=payload, value=payload),
        lambda d: d["record"]["Record"].update(train_difference=payload),
        lambda d: module(d, "first")["options"].append(["padding_mode", payload]),
    ]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_constant_stays_a_constant(payload: str) -> None:
    """Texts may hold anything, paths nearly so; they are never more than texts, not even when the network runs."""
    for change in _constants(payload):
        with contextlib.suppress(ArtifactError):
            model = from_bytes(tampered(DATA, change))
            with contextlib.suppress(Exception):
                model(torch.rand(2, 3, 6, 6))


_FUNCTIONS = """
    os.system builtins.eval builtins.exec builtins.__import__ torch.load torch.hub.load torch.ops torch.nn.os.system
    operator.methodcaller operator.attrgetter torch.serialization.load nn.Linear tracing.torch.load torch.sin.__call__
"""


@pytest.mark.parametrize("function", _FUNCTIONS.split())
def test_only_functions_of_the_vocabulary_are_called(function: str) -> None:
    for op in ("add", "getattr", "embedding"):
        with pytest.raises(ArtifactError):
            from_bytes(tampered(DATA, lambda d, op=op: node(d, "add").update(target=function, op=op)))


@pytest.mark.parametrize(
    "cls", ["nn.Module", "nn.Sequential", "torch.nn.Linear", "builtins.open", "torch.relu", "nn.Conv1d"]
)
def test_only_layers_of_the_vocabulary_are_made(cls: str) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(tampered(DATA, lambda d: module(d, "first").update({"class": cls})))


@pytest.mark.parametrize(
    "name", ["__class__", "__init__", "__globals__", "register_hook", "data", "grad_fn", "_backward_hooks"]
)
def test_only_attributes_that_are_data_are_read(name: str) -> None:
    with pytest.raises(ArtifactError, match="attribute"):
        from_bytes(tampered(DATA, lambda d: node(d, "getattr_1")["args"].__setitem__(1, name)))


@pytest.mark.parametrize(
    "call",
    [
        {"args": []},
        {"args": [{"node": "x"}]},
        {"args": ["x", "shape"]},
        {"args": [{"node": "x"}, {"node": "x"}]},
        {"args": [{"node": "x"}, "shape", 1]},
        {"args": [{"node": "x"}], "kwargs": [["name", "shape"]]},
    ],
)
def test_getattr_takes_a_node_and_a_name(call: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(tampered(DATA, lambda d: node(d, "getattr_1").update(call)))


@pytest.mark.parametrize("name", ["self", "torch", "class", "None", "x-y", "", "ünïcode", "add", "device", "print"])
def test_a_name_that_would_hide_another_is_refused(name: str) -> None:
    for place in ("node name", "placeholder name"):
        if (name, place) != ("add", "node name"):
            with pytest.raises(ArtifactError):
                from_bytes(tampered(DATA, lambda d, place=place: PLACES[place](d, name)))


_STRUCTURES: dict[str, Callable[[Document], Any]] = {
    "no output": lambda d: d["nodes"].pop(),
    "two outputs": lambda d: d["nodes"].append({**d["nodes"][-1], "name": "output_1"}),
    "output first": lambda d: d["nodes"].insert(0, d["nodes"].pop()),
    "output of nothing": lambda d: d["nodes"][-1].update(args=[]),
    "no nodes": lambda d: d.update(nodes=[]),
    "used before it is made": lambda d: d["nodes"].insert(1, d["nodes"].pop(7)),
    "uses itself": lambda d: node(d, "add").update(args=[{"node": "add"}, 1]),
    "name twice": lambda d: d["nodes"].insert(2, copy.deepcopy(d["nodes"][1])),
    "method of a number": lambda d: node(d, "mean").update(args=[5]),
    "too few arguments": lambda d: node(d, "add").update(args=[]),
    "op of another": lambda d: node(d, "add").update(op="mul"),
    "module op of another": lambda d: node(d, "first").update(op="linear"),
    "call of a container": lambda d: node(d, "first").update(target="block"),
    "call of the root": lambda d: node(d, "first").update(target=""),
    "reads a module": lambda d: node(d, "mask").update(target="first"),
    "reads a method": lambda d: node(d, "mask").update(target="forward"),
    "no modules": lambda d: d.update(modules=[]),
    "module twice": lambda d: d["modules"].append(copy.deepcopy(d["modules"][-1])),
    "module without parent": lambda d: d["modules"].append({**module(d, "block.1"), "path": "nowhere.1"}),
    "module in a layer": lambda d: d["modules"].insert(2, {**module(d, "block.1"), "path": "first.1"}),
    "module named like an attribute": lambda d: d["modules"].append({**module(d, "block.1"), "path": "forward"}),
    "module named like the report": lambda d: d["modules"].append({**module(d, "block.1"), "path": "report"}),
    "root twice": lambda d: d["modules"].append(copy.deepcopy(d["modules"][0])),
    "same as nothing": lambda d: d["modules"].append({"path": "z", "same": "nowhere"}),
    "same as the root": lambda d: d["modules"].append({"path": "z", "same": ""}),
    "same as itself": lambda d: d["modules"].append({"path": "z", "same": "z"}),
    "inside itself": lambda d: d["modules"].insert(
        d["modules"].index(module(d, "block")) + 1, {"path": "block.z", "same": "block"}
    ),
    "layer without its tensor": lambda d: module(d, "norm")["buffers"].pop(),
    "layer with a tensor too many": lambda d: module(d, "block.1").update(parameters=module(d, "bound")["parameters"]),
    "tensor of another shape": lambda d: module(d, "bound")["parameters"][1].update(key="norm.num_batches_tracked"),
    "no such tensor": lambda d: module(d, "bound")["parameters"][1].update(key="nowhere"),
    "parameter of integers": lambda d: d["modules"][0]["parameters"].append(
        {"name": "count", "key": "norm.num_batches_tracked", "gradient": True}
    ),
    "parameter and buffer": lambda d: module(d, "block")["parameters"].append(
        {"name": "c", "key": "mask", "gradient": False}
    ),
    "unknown option": lambda d: module(d, "first")["options"].append(["strides", 2]),
    "device option": lambda d: module(d, "first")["options"].append(["device", "cpu"]),
    "dtype option": lambda d: module(d, "first")["options"].append(["dtype", {"dtype": "float64"}]),
    "senseless option": lambda d: module(d, "first").update(options=[["in_channels", "a"], ["out_channels", None]]),
    "negative option": lambda d: module(d, "first")["options"].append(["groups", 0]),
    "giant option": lambda d: module(d, "bound").update(options=[["in_features", 2**62], ["out_features", 2**62]]),
    "missing option": lambda d: module(d, "first").update(options=[]),
    "unknown key": lambda d: d.update(more=1),
    "unknown field": lambda d: d["record"]["Record"].update(more=1),
    "missing field": lambda d: d["record"]["Record"].pop("report"),
    "another record": lambda d: d.update(record={"Coverage": {"converted": 1, "total": 2}}),
    "list in the record": lambda d: d["record"]["Record"].update(guards=[]),
    "text for a number": lambda d: d["record"]["Record"]["report"]["Report"].update(
        coverage={"Coverage": {"converted": "1", "total": 2}}
    ),
    "true for a number": lambda d: d["record"]["Record"]["report"]["Report"].update(
        coverage={"Coverage": {"converted": True, "total": 2}}
    ),
    "deep nesting": lambda d: node(d, "mean").update(args=[{"node": "clamp"}, deep(40)]),
    "very deep nesting": lambda d: d["record"]["Record"]["report"]["Report"].update(options=deep(400)),
    "giant number": lambda d: node(d, "add")["args"].__setitem__(1, 10**400),
    "two tags": lambda d: node(d, "add")["args"].__setitem__(1, {"tuple": [], "dict": []}),
    "slice of two": lambda d: node(d, "getitem")["args"].__setitem__(1, {"slice": [1, 2]}),
    "unhashable key": lambda d: node(d, "add")["args"].__setitem__(1, {"dict": [[[1], 1]]}),
    "size of texts": lambda d: node(d, "add")["args"].__setitem__(1, {"size": ["a"]}),
    "list for a device": lambda d: node(d, "add")["args"].__setitem__(1, {"device": [1]}),
    "full ellipsis": lambda d: node(d, "add")["args"].__setitem__(1, {"ellipsis": 1}),
    "format as text": lambda d: d.update(format="1"),
    "format true": lambda d: d.update(format=True),
    "format zero": lambda d: d.update(format=0),
    "versions as text": lambda d: d.update(versions="1"),
    "rules as text": lambda d: node(d, "add")["meta"].update(rules="abc"),
}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("name", _STRUCTURES)
def test_a_description_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError):
        from_bytes(tampered(DATA, _STRUCTURES[name]))


def test_shared_modules_in_shared_modules_cannot_grow_without_bound() -> None:
    def doubling(document: Document) -> None:
        container = {**document["modules"][0], "parameters": [], "buffers": []}
        relu = module(document, "block.1")
        document["modules"] += [{**container, "path": "a0"}, {**relu, "path": "a0.x"}]
        for level in range(1, 64):
            document["modules"].append({**container, "path": f"a{level}"})
            document["modules"] += [{"path": f"a{level}.{part}", "same": f"a{level - 1}"} for part in "xy"]

    with pytest.raises(ArtifactError, match="places"):
        from_bytes(tampered(DATA, doubling))


def test_modules_cannot_contain_each_other() -> None:
    def crossed(document: Document) -> None:
        container = {**document["modules"][0], "parameters": [], "buffers": []}
        document["modules"] += [{**container, "path": "a"}, {**container, "path": "b"}]
        document["modules"] += [{"path": "b.x", "same": "a"}, {"path": "a.y", "same": "b"}]

    with pytest.raises(ArtifactError, match="no place"):
        from_bytes(tampered(DATA, crossed))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where anything stands in a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def put(document: Document, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    document[path[-1]] = value


_VALUES = [None, True, 0, -1, 2**62, 2**80, 1.5, "", "x", "a.b", [], {}, [[]], [1, "x"], {"tuple": []}, {"node": "x"}]
_VALUES += [{"float": "inf"}, {"ellipsis": None}, {"dict": [["a", 1]]}, {"dtype": "int8"}, PAYLOADS[2], PAYLOADS[6]]


@settings(max_examples=250)
@given(st.sampled_from([path for path in places(DOCUMENT) if path]), st.sampled_from(_VALUES))
def test_anything_in_any_place_loads_or_is_refused(path: tuple[Any, ...], value: Any) -> None:
    """Whatever is put wherever: a network, or one ArtifactError."""
    with contextlib.suppress(ArtifactError):
        assert type(from_bytes(tampered(DATA, lambda document: put(document, path, value)))) is BcosNetwork
