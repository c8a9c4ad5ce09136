"""The graph as data: its nodes in order, each with the canonical op that it means and the spelling that it calls.

Functions and methods are looked up in the op vocabulary, attributes in a table, paths among what is registered. The
names of nodes, inputs and keywords stay data too (:mod:`bcos_fx.tracing.program`); they are plain identifiers all the
same, because other tools that take a graph write them into source.
"""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.artifact.fields import Fields
from bcos_fx.artifact.modules import is_path
from bcos_fx.artifact.values import decode, encode, fits
from bcos_fx.errors import ArtifactError, nearest
from bcos_fx.rewriting.core.op import Op
from bcos_fx.rewriting.core.ops import Vocabulary
from bcos_fx.rewriting.core.spelling import resolve
from bcos_fx.tracing.program import ARITHMETIC, ATTRIBUTES

_META: dict[str, Any] = {
    "was": str | None,
    "rules": tuple[str, ...],
    "source": str | None,
    "text": str | None,
    "module_path": str | None,
    "module_type": str | None,
    "shape": tuple[int, ...] | None,
    "dtype": torch.dtype | None,
    "value": Any,
    "origin": str | None,
    "type": str | None,
    "training_argument": Any,
    "training_value": Any,
}
"""What is kept of a node's ``meta``: only what bcos_fx wrote itself, and its type."""

_KINDS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")


def write_graph(graph: fx.Graph, root: nn.Module, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return the nodes of a graph as JSON data.

    Raises:
        ArtifactError: an op that the vocabulary does not know, or an argument that no file can hold.
    """
    return [_write_node(node, root, vocabulary) for node in graph.nodes]


def _write_node(node: fx.Node, root: nn.Module, vocabulary: Vocabulary) -> dict[str, Any]:
    where = f"node {node.name!r}"
    op = vocabulary.of(node, root)
    if op is None:
        name = node.target if isinstance(node.target, str) else _dotted(node.target)
        if node.op == "call_module":
            name = type(root.get_submodule(str(node.target))).__name__
        source = node.meta.get("source")
        raise ArtifactError(
            f"the operation {name} cannot be stored: the op vocabulary does not know it",
            where=f"{where}, {source}" if source else where,
            hint="add it to the op vocabulary ([op.NAME] in a rule file, or @bcos_fx.rules.op for a function of your "
            "own), or write that line with operations that it knows",
        )
    meta = {key: encode(node.meta[key], f"{where}, {key}") for key in _META if key in node.meta}
    return {
        "name": node.name,
        "kind": node.op,
        "op": op.name,
        "target": vocabulary.spellings[node.target] if node.op == "call_function" else str(node.target),
        "args": [encode(value, f"{where}, argument {number}") for number, value in enumerate(node.args)],
        "kwargs": [[name, encode(value, f"{where}, argument {name!r}")] for name, value in node.kwargs.items()],
        "meta": meta,
    }


def _dotted(function: object) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', function)}"


class GraphBuilder:
    """Rebuilds a graph from its nodes as data."""

    def __init__(self, root: nn.Module, vocabulary: Vocabulary) -> None:
        self._root, self._vocabulary = root, vocabulary
        self._nodes: dict[str, fx.Node] = {}
        self._graph = fx.Graph()

    def read(self, entries: list[Any], inputs: Sequence[str]) -> fx.Graph:
        """Return the graph.

        Raises:
            ArtifactError: a name, a target or an argument that no graph of bcos_fx has, or other inputs.
        """
        for number, item in enumerate(entries):
            fields = Fields(item, f"node {number}")
            self._add(fields.within(f"node {fields.text('name')!r}"))
        kinds = [node.op for node in self._graph.nodes]
        if kinds.count("output") != 1 or kinds[-1] != "output":
            raise ArtifactError("the graph does not end in one output")
        given = [str(node.target) for node in self._graph.nodes if node.op == "placeholder"]
        if given != list(inputs) or kinds[: len(given)] != ["placeholder"] * len(given) or not given:
            raise ArtifactError("the graph does not begin with the inputs that the record names")
        return self._graph

    def _add(self, fields: Fields) -> None:
        fields.finish("name", "kind", "op", "target", "args", "kwargs", "meta")
        name, kind = fields.text("name"), fields.text("kind")
        if kind not in _KINDS:
            raise ArtifactError(f"no node is a {kind!r}", where=fields.where, hint=nearest(kind, _KINDS))
        args = tuple(decode(value, fields.where, self._nodes) for value in fields.items("args"))
        kwargs = {
            _identifier(key, fields.where): decode(value, f"{fields.where}, argument {key!r}", self._nodes)
            for key, value in fields.pairs("kwargs")
        }
        target = self._target(kind, fields)
        self._check_call(kind, target, args, kwargs, fields.where)
        node = self._graph.create_node(kind, target, args, kwargs, name=_identifier(name, fields.where))
        # fx renames a node whose name is taken; other nodes and the report refer to the name in the file.
        if node.name != name:
            raise ArtifactError("the name is taken, or none that a node can have", where=fields.where)
        # The vocabulary decides by the node itself; the file's word for the op only has to agree.
        op = self._vocabulary.of(node, self._root)
        if op is None or op.name != fields.text("op"):
            raise ArtifactError(f"the node is not a {fields.text('op')!r}", where=fields.where)
        node.meta.update(_read_meta(fields))
        self._nodes[name] = node

    def _target(self, kind: str, fields: Fields) -> Any:
        """Return what a node calls or reads, which must exist."""
        target = fields.text("target")
        if kind == "call_function":
            return resolve(target) if target in self._op(fields).functions else self._refuse(target, fields)
        if kind == "placeholder":
            _identifier(target, fields.where)
            if fields.items("args") or fields.items("kwargs"):
                raise ArtifactError("an input has no default", where=fields.where)
        known = {
            "placeholder": True,
            "output": target == "output",
            "call_method": kind == "call_method" and target in self._op(fields).methods,
            "call_module": is_path(target) and isinstance(_find(self._root, target, "_modules"), nn.Module),
            "get_attr": is_path(target) and isinstance(_find(self._root, target, "_parameters", "_buffers"), Tensor),
        }
        return target if known[kind] else self._refuse(target, fields)

    def _op(self, fields: Fields) -> Op:
        name = fields.text("op")
        if name not in self._vocabulary.ops:
            raise ArtifactError(
                f"the op vocabulary has no {name!r}", where=fields.where, hint=nearest(name, self._vocabulary.ops)
            )
        return self._vocabulary.ops[name]

    def _refuse(self, target: str, fields: Fields) -> None:
        raise ArtifactError(f"{target!r} is nothing that a node of its kind can call or read", where=fields.where)

    def _check_call(self, kind: str, target: object, args: tuple[Any, ...], kwargs: dict[str, Any], where: str) -> None:
        if kind == "call_method" and not (args and isinstance(args[0], fx.Node)):
            raise ArtifactError("a method is called on something that no node computes", where=where)
        attribute = args[1] if target is getattr and len(args) == 2 and not kwargs else None
        # getattr with any other name would reach Python's functions from a value of the network.
        if target is getattr and not (isinstance(args[0] if args else None, fx.Node) and attribute in ATTRIBUTES):
            raise ArtifactError(f"the attribute {attribute!r} may not be read", where=where)
        if target in ARITHMETIC and not any(isinstance(value, fx.Node) for value in args):
            raise ArtifactError("arithmetic on numbers alone has no place in a graph", where=where)
        if kind == "output" and (len(args) != 1 or kwargs):
            raise ArtifactError("an output has one value", where=where)
        if kind == "get_attr" and (args or kwargs):
            raise ArtifactError("a stored tensor takes no arguments", where=where)


def _find(root: nn.Module, path: str, *kinds: str) -> object:
    """Return the module or tensor at a path, where it is registered as one; None where it is not."""
    *parents, name = path.split(".")
    owner: nn.Module | None = root
    for parent in parents:
        owner = None if owner is None else owner._modules.get(parent)
    return None if owner is None else next((getattr(owner, k)[name] for k in kinds if name in getattr(owner, k)), None)


def _read_meta(fields: Fields) -> dict[str, Any]:
    meta = Fields(fields.value("meta"), f"{fields.where}, meta")
    meta.finish(*_META)
    values = {key: decode(meta.value(key), meta.where) for key in _META if key in meta}
    for key, value in values.items():
        if not fits(value, _META[key]):
            raise ArtifactError(f"{key!r} is {str(value)[:40]!r}", where=meta.where)
    return values


def _identifier(name: object, where: str) -> str:
    """Check a name that stands in the code as it is; ``self`` is the network there."""
    good = isinstance(name, str) and name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
    if not good or name == "self":
        raise ArtifactError(f"{str(name)[:40]!r} is not a name for a part of a graph", where=where)
    return str(name)
