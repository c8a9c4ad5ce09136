"""Running a graph piece by piece, every batch as far as the same node before any goes further.

A norm that is recalibrated must see what the recalibrated norms before it give, and its statistics are those of *all*
images. So the graph is run once, node by node, and what the batches still need of what was computed so far, their
frontier, is kept in between: in memory up to a limit, beyond it in temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from bcos_fx.tracing.program import attribute, run_node

Values = dict[str, Any]


class Program:
    """The nodes of a graph in order, which can be run from any place to any other."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.nodes: list[fx.Node] = list(graph.nodes)
        self.root = root
        self.places = {node.name: place for place, node in enumerate(self.nodes)}
        self._done_with: list[list[str]] = [[] for _ in self.nodes]
        for place, node in enumerate(self.nodes):
            # A value is dropped after its last reader, so the frontier holds what is still needed and nothing more.
            last = max((self.places[user.name] for user in node.users), default=place)
            self._done_with[last].append(node.name)

    @property
    def end(self) -> int:
        """The place of the output node: to run there is to run everything."""
        return len(self.nodes) - 1

    def start(self, inputs: tuple[Tensor, ...]) -> Values:
        """Return the values with which a run begins."""
        names = [node.name for node in self.nodes if node.op == "placeholder"]
        return dict(zip(names, inputs, strict=True))

    def run(self, values: Values, start: int, stop: int) -> None:
        """Compute the nodes of the places ``start`` to ``stop`` (exclusive), and drop what no later node needs."""
        for place in range(start, stop):
            node = self.nodes[place]
            if node.op.startswith("call_"):
                values[node.name] = self.value(node, values)
            for name in self._done_with[place]:
                values.pop(name, None)

    def value(self, node: fx.Node, values: Values) -> Any:
        """Compute one node from the values of its inputs, and keep nothing."""
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda read: self._value_of(read, values))
        return run_node(node, self.root, args, kwargs)

    def input_of(self, node: fx.Node, values: Values) -> Tensor:
        """Return the value of a node's first input."""
        value: Tensor = self._value_of(node.all_input_nodes[0], values)
        return value

    def result(self, values: Values) -> Any:
        """Return the graph's output, once everything before was run."""
        output = self.nodes[-1]
        return fx.node.map_arg(output.args[0], lambda read: self._value_of(read, values))

    def _value_of(self, node: fx.Node, values: Values) -> Any:
        # Stored tensors are read where they lie: a calibration may change them in between.
        return attribute(self.root, str(node.target)) if node.op == "get_attr" else values[node.name]


class Frontier:
    """What the runs of all batches need of what they have computed; a context, which removes its files."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._held: list[Values | None] = []
        self._sizes: list[int] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def add(self, values: Values) -> None:
        """Add a batch."""
        self._held.append(None)
        self._sizes.append(0)
        self._keep(len(self._held) - 1, values)

    def batches(self) -> Iterator[Values]:
        """Yield the values of each batch in turn, to be changed in place; they are put back afterwards."""
        for index, held in enumerate(self._held):
            values = torch.load(self._file(index), weights_only=True) if held is None else held
            # Values that are being worked on do not count, or a batch that grows would not find its own place again.
            self._held[index], self._sizes[index] = None, 0
            yield values
            self._keep(index, values)

    def _keep(self, index: int, values: Values) -> None:
        size = _bytes(values)
        if sum(self._sizes) + size <= self._memory:
            self._held[index], self._sizes[index] = values, size
        else:
            torch.save(values, self._file(index))

    def _file(self, index: int) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="bcos-fx-")
        return Path(self._folder.name) / f"{index}.pt"


def _bytes(values: Values) -> int:
    # Views share their storage, which is kept once.
    storages = [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
