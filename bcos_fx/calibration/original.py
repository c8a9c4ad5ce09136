"""What the original network's layers give for the images: what gains are matched to.

Layers correspond by the names of nodes: the original is traced again, its graph must be the one that the converted
network keeps on record, and a node that a rule rewrote keeps its name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.calibration.batches import Batch
from bcos_fx.calibration.layers import Layer
from bcos_fx.calibration.moments import Moments
from bcos_fx.calibration.walk import Program
from bcos_fx.errors import UsageError
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosLayer
from bcos_fx.report.collect import describe_target
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.tracing import trace

ORIGINAL, ITSELF = "original", "itself at B = 1"


@dataclass
class Targets:
    """What the original gives for the images, measured once and usable for many calibrations on the same images.

    Attributes:
        kind: ``original`` or ``itself at B = 1``.
        moments: node -> moments of its output.
        dims: node -> number of dimensions of its output.
        images: how many samples it was measured on.
        predictions: per batch, the index of each sample's highest output; empty where outputs are not classes.
        classes: how many there are; None where outputs are not classes.
    """

    kind: str
    moments: dict[str, Moments] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    images: int = 0
    predictions: list[Tensor] = field(default_factory=list)
    classes: int | None = None


def counterparts(network: BcosNetwork) -> dict[str, str]:
    """Return node of the converted network -> node of the original that it continues.

    A node that was rewritten keeps its name; one that was moved (the classifier, before the pool) calls a module at
    the path where the original has its own.
    """
    before = {row.name: row for row in network.report.before}
    callers: dict[str, list[str]] = {}
    for row in network.report.before:
        callers.setdefault(row.module or "", []).append(row.name)
    continued = {}
    for row in network.report.nodes:
        if row.name in before and before[row.name].op == row.was:
            continued[row.name] = row.name
        elif row.module and row.was and len(callers.get(row.module, ())) == 1:
            continued[row.name] = callers[row.module][0]
    return continued


class Original:
    """The original network, ready to be measured.

    Args:
        network: the converted network.
        reference: the original module, a conversion of it at B = 1, or None for ``network`` itself at B = 1.
        example: a batch of the network's inputs, to trace the original with.
        output: which part of the original's output to take, where that is not one tensor.

    Raises:
        UsageError: the reference is not a network, not the one that was converted, or a conversion of it that computes
            something else; TraceError as for conversion.
    """

    def __init__(
        self, network: BcosNetwork, reference: nn.Module | None, example: Batch, output: int | str | None = None
    ) -> None:
        self.targets = Targets(ITSELF if reference is None else ORIGINAL)
        self._specs = [] if isinstance(reference, BcosNetwork | None) else list(network.record.inputs)
        if reference is None:
            root: nn.Module = _at_b_1(network)
        elif isinstance(reference, BcosNetwork):
            _check_original(reference)
            _check_same(_recorded(reference), network)
            root = copy.deepcopy(reference)
        else:
            root = self._traced(network, reference, example, output)
        # A conversion has the network's own node names; another module is matched by what the report recorded.
        names = {node.name: node.name for node in network.graph.nodes}
        self._counterparts = counterparts(network) if self._specs else names
        self.root = root.eval()
        self._program = Program(root.graph, root)  # type: ignore[arg-type]

    def _traced(
        self, network: BcosNetwork, reference: nn.Module, example: Batch, output: int | str | None
    ) -> nn.Module:
        if not isinstance(reference, nn.Module):
            raise UsageError(
                f"the original is a {type(reference).__name__}, not a network",
                hint="give the module that was converted, or leave original= out",
            )
        self._like = next(iter(reference.parameters()), example.inputs[0])
        inputs = self._inputs(tuple(value[:2] for value in example.inputs))
        # The trace takes two samples, and a batch may hold one.
        twice = tuple(torch.cat([value, value])[:2] for value in inputs)
        graph_module = trace(reference, twice, output=output, leaf_modules=vocabulary().leaves).graph_module
        reader = GraphReader(graph_module, vocabulary(), Options())
        nodes = [(node.name, reader.op(node) or describe_target(node)) for node in graph_module.graph.nodes]
        _check_same(nodes, network)
        return graph_module

    def _inputs(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Convert the network's inputs to the original's; newly allocated, because the original may write into them."""
        if not self._specs:
            return tuple(value.clone() for value in inputs)
        given = [spec.original(value) for spec, value in zip(self._specs, inputs, strict=True)]
        dtypes = [self._like.dtype if value.is_floating_point() else value.dtype for value in given]
        return tuple(value.to(self._like.device, dtype, copy=True) for value, dtype in zip(given, dtypes, strict=True))

    def has(self, name: str) -> bool:
        """Return whether the original has a counterpart of a node of the network."""
        return self._place(name) >= 0

    def _place(self, name: str) -> int:
        return self._program.places.get(self._counterparts.get(name, ""), -1)

    def run(self, inputs: tuple[Tensor, ...], names: Sequence[str], seen: Callable[[str, Tensor], None]) -> Any:
        """Run the original, and return its output."""
        program = self._program
        values, position = program.start(self._inputs(inputs)), 0
        # One run serves all nodes: values that no later node reads are dropped on the way.
        for name in sorted(names, key=self._place):
            place = self._place(name)
            program.run(values, position, place + 1)
            seen(name, values[program.nodes[place].name])
            position = place + 1
        program.run(values, position, program.end)
        return program.result(values)

    def measure(self, inputs: tuple[Tensor, ...], layers: Sequence[Layer]) -> None:
        """Run the original on a batch, and note the moments of the layers that it has too."""
        targets, dims = self.targets, {layer.node.name: layer.channel_dim for layer in layers}

        def note(name: str, value: Tensor) -> None:
            targets.dims[name] = value.dim()
            targets.moments.setdefault(name, Moments(dims[name])).add(value)

        targets.images += len(inputs[0])
        output = self.run(inputs, [name for name in dims if self.has(name)], note)
        if is_classes(output):
            targets.predictions.append(output.argmax(1).cpu())
            targets.classes = output.shape[1]


def is_classes(output: object) -> bool:
    """Return whether an output is (N, C) with several classes."""
    return isinstance(output, Tensor) and output.dim() == 2 and output.shape[1] > 1


def own_record(network: BcosNetwork) -> str | None:
    """Return why a network at B = 1 is not its original, or None where it is, as far as its record shows."""
    report = network.report
    if report.figures.calibration is not None:
        return "it was calibrated before"
    if report.options["bias"] != "keep":
        return "its biases were removed"
    if report.options["pool"] != "keep":
        return "its pooling was exchanged"
    return None


def _check_original(reference: BcosNetwork) -> None:
    """Check that a converted network has neither a raised B nor lost its biases."""
    raised = max((float(layer.b) for layer in _own_layers(reference)), default=1.0)
    reason = "its biases were removed" if reference.report.options["bias"] != "keep" else None
    if raised > 1:
        reason = f"its B is {raised:g}"
    if reason is not None:
        raise UsageError(
            f"the original given does not compute what the original does: {reason}",
            hint="give the original, or a conversion of it by the recipe equivalent",
        )


def _at_b_1(network: BcosNetwork) -> BcosNetwork:
    """Return a copy whose layers are plain ones; those of another package keep the B that they came with."""
    twin = copy.deepcopy(network)
    for layer in _own_layers(twin):
        layer.b = 1.0
    return twin


def _own_layers(network: BcosNetwork) -> Iterator[BcosLayer]:
    """Yield the layers whose B is the conversion's, not another package's."""
    peers = {row.module for row in network.report.nodes if (row.was or "").startswith("peer_")}
    for path, module in network.named_modules():
        if isinstance(module, BcosLayer) and path not in peers:
            yield module


def _recorded(network: BcosNetwork) -> list[tuple[str, str]]:
    return [(row.name, row.op) for row in network.report.before]


def _check_same(nodes: Sequence[tuple[str, str]], network: BcosNetwork) -> None:
    wanted = _recorded(network)
    if nodes == wanted:
        return
    pairs = zip([*nodes, ("nothing", "nothing")], [*wanted, ("nothing", "nothing")], strict=False)
    (has, op), (name, was) = next((mine, its) for mine, its in pairs if mine != its)
    raise UsageError(
        "the original given is not the network that was converted: their graphs differ",
        where=f"node {has} ({op}) of the original given, where the converted network had {name} ({was})",
        hint="give the very module that was converted, or leave original= out",
    )


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and back into the mode that each was in."""
    modes = {module: module.training for module in network.modules()}
    try:
        for module in modes:
            module.training = False
        yield
    finally:
        for module, training in modes.items():
            module.training = training
