"""Where the graph of train mode differs from that of eval mode."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from bcos_fx.nn import DropPath
from bcos_fx.tracing.arguments import describe
from bcos_fx.tracing.drop_path import path_of
from bcos_fx.tracing.graph_module import GraphModule
from bcos_fx.tracing.program import Walk, run_node


class _GraphsDiffer(Exception):
    """Two nodes differ in more than literals that follow the mode."""


class GraphAlignment:
    """Both graphs, walked through side by side.

    Arguments that only say which mode it is are marked. Such a literal is False in eval mode and True in train mode, or
    the share of its weights that attention drops: 0 in eval mode. Its name or its position goes into
    ``node.meta["training_argument"]`` of the node of eval mode, its value in train mode into
    ``node.meta["training_value"]``; nothing else is changed.

    What train mode alone computes may be a path that is dropped at random: :meth:`insert_paths` puts it into the graph.

    Args:
        evaluated: the graph of eval mode, without dead nodes.
        trained: the graph of train mode, without dead nodes.
        root: holds what that graph calls; None: it cannot be run.
        constants: the tensors made in forward, of either graph.

    Attributes:
        difference: None if the graphs are the same but for all that, else one sentence on the first difference.
    """

    def __init__(
        self,
        evaluated: GraphModule,
        trained: Graph,
        root: nn.Module | None,
        constants: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    ) -> None:
        self._evaluated, self._trained, self._root, self._constants = evaluated, trained, root, constants
        self._same: dict[Node, Node] = {}
        self._extra: set[Node] = set()
        self._paths: dict[Node, tuple[Node, DropPath]] = {}  # node of train mode -> what it drops, and how
        self._readers: list[tuple[Node, Node]] = []  # node of eval mode, and what it reads in train mode
        self.difference = self._walked()

    def insert_paths(self) -> str | None:
        """Put the dropped paths into the graph of eval mode, where they are the identity; return the difference."""
        if self.difference is not None:
            return self.difference
        calls: dict[Node, Node] = {}
        graph = self._evaluated.graph
        for reader, dropped in self._readers:
            value, layer = self._paths[dropped]
            if dropped not in calls:
                name = next(n for n in map("drop_path_{}".format, count()) if not hasattr(self._evaluated, n))
                self._evaluated.add_submodule(name, layer)
                with graph.inserting_before(reader):
                    calls[dropped] = graph.call_module(name, (value,))
                calls[dropped].meta = {**value.meta, "source": dropped.meta["source"], "text": dropped.meta["text"]}
                calls[dropped].meta["origin"] = calls[dropped].name
            reader.replace_input_with(value, calls[dropped])
        if calls:
            graph.lint()
            self._evaluated.recompile()
        return None

    def _walked(self) -> str | None:
        left = deque(self._trained.nodes)
        for node in list(self._evaluated.graph.nodes):
            first, matched = (left[0] if left else None), False
            # Greedy: a node of eval mode takes the next node of train mode that equals it. Those passed over are what
            # train mode alone computes; _drops() decides whether that is a path dropped at random.
            while left and not matched:
                other = left.popleft()
                matched = self._is_same(node, other)
                if not matched:
                    self._extra.add(other)
            if not matched:
                return None if first is None else _sentence(node, first)
        return None

    def _is_same(self, node: Node, other: Node) -> bool:
        if (node.op, node.target) != (other.op, other.target) or not _same_constant(node, *self._constants):
            return False
        try:
            marks, dropped = self._mode_literals(node, other)
        except _GraphsDiffer:
            return False
        if len(marks) > 1:
            return False
        self._same[node] = other
        self._readers += [(node, path) for path in dropped]
        if marks:
            node.meta["training_argument"], node.meta["training_value"] = marks[0]
        return True

    def _mode_literals(self, node: Node, other: Node) -> tuple[list[tuple[int | str, bool | float]], set[Node]]:
        """Return the literals that say the mode, and the dropped paths that are read in train mode."""
        if len(node.args) != len(other.args) or node.kwargs.keys() != other.kwargs.keys():
            raise _GraphsDiffer
        pairs: list[tuple[int | str, Any, Any]] = [
            (i, *pair) for i, pair in enumerate(zip(node.args, other.args, strict=True))
        ]
        pairs += [(name, value, other.kwargs[name]) for name, value in node.kwargs.items()]
        marks: list[tuple[int | str, bool | float]] = []
        read: list[tuple[Node, Node]] = []
        for place, value, trained in pairs:
            if (value is False and trained is True) or (_is_dropped_share(node, place) and value == 0 != trained):
                marks.append((place, trained))
            else:
                _require_same(value, trained, read)
        changed = {(value, trained) for value, trained in read if self._same.get(value) is not trained}
        dropped = {trained: value for value, trained in changed if self._drops(value, trained)}
        whole = {value for value, trained in read if self._same.get(value) is trained}
        # insert_paths() exchanges a value wherever this node reads it, so it must be read dropped or whole, not both.
        if len(dropped) < len(changed) or len({*dropped.values()} - whole) < len(changed):
            raise _GraphsDiffer  # something else, or one value in two ways
        return marks, set(dropped)

    def _drops(self, value: Node, trained: Node) -> bool:
        """Return whether train mode computes of a value what drops it at random, and nothing else."""
        if trained in self._extra and trained not in self._paths:
            # All that train mode alone computes on the way to that node: the path, and the draw that drops it.
            region = Walk([trained])
            for node in region:
                region.go_on(self._extra.intersection(node.all_input_nodes))
            layer = self._path(self._same[value], trained, sorted(region.reached)) if value in self._same else None
            if layer is not None:
                self._paths[trained] = value, layer
        return trained in self._paths and self._paths[trained][0] is value

    def _path(self, start: Node, end: Node, region: list[Node]) -> DropPath | None:
        read = {source for node in region for source in node.all_input_nodes} - set(region)
        known = {source: source.meta.get("value") for source in read if source.meta.get("type") in ("size", "other")}
        shape = start.meta.get("shape")
        if (root := self._root) is None or read - known.keys() != {start} or not shape:
            return None

        def run(x: Tensor) -> Tensor:
            values: dict[Node, Any] = {**known, start: x}
            for node in region:
                args, kwargs = map_arg((node.args, dict(node.kwargs)), values.__getitem__)
                values[node] = run_node(node, root, args, kwargs)
            result: Tensor = values[end]
            return result

        literals = [item for node in region for item in tree_leaves((node.args, dict(node.kwargs)))]
        stored = [run_node(node, root, (), {}) for node in region if node.op == "get_attr"]
        literals += [number for tensor in stored for number in tensor.unique().tolist()[:1]]
        return path_of(run, tuple(shape), literals)


def _same_constant(node: Node, evaluated: Mapping[str, Tensor], trained: Mapping[str, Tensor]) -> bool:
    name = str(node.target)
    if node.op != "get_attr" or name not in evaluated:
        return True
    return name in trained and torch.equal(evaluated[name], trained[name])


def _is_dropped_share(node: Node, place: int | str) -> bool:
    return node.target is functional.scaled_dot_product_attention and place in (4, "dropout_p")


def _require_same(value: object, trained: object, read: list[tuple[Node, Node]]) -> None:
    """Compare two arguments, and note which nodes they read."""
    if isinstance(value, Node) and isinstance(trained, Node):
        read.append((value, trained))
    elif isinstance(value, (tuple, list)):
        if not isinstance(trained, type(value)) or len(value) != len(trained):
            raise _GraphsDiffer
        for item, other in zip(value, trained, strict=True):
            _require_same(item, other, read)
    elif isinstance(value, dict):
        _require_same(list(value.items()), list(trained.items()) if isinstance(trained, dict) else trained, read)
    elif isinstance(value, slice) and isinstance(trained, slice):
        _require_same((value.start, value.stop, value.step), (trained.start, trained.stop, trained.step), read)
    elif type(value) is not type(trained) or not (value == trained or value != value):
        raise _GraphsDiffer


def _sentence(node: Node, other: Node) -> str:
    if (node.op, node.target) != (other.op, other.target):
        return (
            f"train mode calls {describe(other.target)} at {other.meta['source']}, "
            f"where eval mode calls {describe(node.target)} at {node.meta['source']}"
        )
    return f"the arguments of {describe(node.target)} differ in train mode, at {other.meta['source']}"
