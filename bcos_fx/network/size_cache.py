"""Graphs for inputs of other sizes, over the parts of one network.

A graph that took a branch or a number from a shape holds for that shape only. Where the source is at hand it is
converted again for another one; that graph then runs over the first network's own layers, so there is one set of
parameters.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from bcos_fx.errors import UsageError
from bcos_fx.network.network import BcosNetwork
from bcos_fx.nn.construction import constructor_options
from bcos_fx.tracing.graph_module import GraphModule
from bcos_fx.tracing.modules import keep_modes
from bcos_fx.tracing.program import attribute

_OWN = "of_this_size"
_STORES = ("_parameters", "_buffers", "_modules")

Convert = Callable[[Sequence[Tensor]], BcosNetwork]
"""Converts the source again, with these inputs of the converted network as the example."""


class SizeCache:
    """The networks for other sizes that were asked for so far."""

    def __init__(self, source: nn.Module, convert: Convert) -> None:
        self._source, self._convert = source, convert
        self._buffers = frozenset(name for name, _ in source.named_buffers())
        self._made: dict[tuple[tuple[int, ...], ...], BcosNetwork] = {}
        self._lock = threading.Lock()

    def empty(self) -> SizeCache:
        """Return the same for a copy of the network, with nothing made yet."""
        return SizeCache(self._source, self._convert)

    def network(self, main: BcosNetwork, inputs: Sequence[Tensor]) -> BcosNetwork:
        """Return the network for inputs like these, over the parts of ``main``; it follows them.

        Raises:
            UsageError: the source does not take such inputs, or needs parameters for them that ``main`` has not.
        """
        key = tuple(spec.sizes(value.shape) for spec, value in zip(main.record.inputs, inputs, strict=True))
        with self._lock:  # two threads that ask for one new size would convert it twice
            if key not in self._made:
                self._made[key] = _over(main, self._convert(inputs), self._buffers)
            return _synchronize(self._made[key], main)


def _over(main: BcosNetwork, new: BcosNetwork, buffers: frozenset[str]) -> BcosNetwork:
    """Rebuild a network over the parts of another one; what only it needs is its own."""
    added, targets = nn.Module(), dict[str, str]()
    for node in new.graph.nodes:
        path = str(node.target)
        if node.op not in ("call_module", "get_attr") or path in targets or _serves(main, new, node, buffers):
            continue
        part = attribute(new, path)
        holds = part if isinstance(part, nn.Parameter) else next(iter(getattr(part, "parameters", list)()), None)
        if holds is not None:
            raise UsageError(
                f"for inputs of another size the network needs the parameters of {path!r}, which it has not",
                where=str(node.meta.get("source")),
                hint="convert the original again with example_inputs of that size",
            )
        targets[path] = f"{_OWN}.part_{len(targets)}"
        name = targets[path].rpartition(".")[2]
        if isinstance(part, Tensor):
            added.register_buffer(name, part, persistent=False)
        else:
            added.add_module(name, part)
    graph = copy.deepcopy(new.graph)
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            node.target = targets.get(str(node.target), node.target)
    holder = nn.Module()
    for store in _STORES:
        getattr(holder, store).update(getattr(main, store))
    holder.add_module(_OWN, added)
    with keep_modes(main):  # a new network sets the mode of its parts, and these are the main one's
        return type(main)(GraphModule(holder, graph), new.record)


def _serves(main: BcosNetwork, new: BcosNetwork, node: fx.Node, buffers: frozenset[str]) -> bool:
    """Return whether what stands at a node's target in the network is what the new graph means by it."""
    path = str(node.target)
    try:
        old = attribute(main, path)
    except AttributeError:
        return False
    wanted = attribute(new, path)
    if type(old) is not type(wanted):
        return False
    if isinstance(old, Tensor) and isinstance(wanted, Tensor):
        same = old.shape == wanted.shape
        if isinstance(old, nn.Parameter) or path in buffers:
            return same
        return same and torch.equal(old.to(wanted), wanted)
    return isinstance(old, nn.Module) and isinstance(wanted, nn.Module) and _alike(old, wanted)


def _alike(old: nn.Module, wanted: nn.Module) -> bool:
    shapes = [{name: tensor.shape for name, tensor in part.named_parameters()} for part in (old, wanted)]
    # Of a layer that is trained options may have changed since, such as B.
    return (bool(shapes[0]) and shapes[0] == shapes[1]) or constructor_options(old) == constructor_options(wanted)


def _synchronize(network: BcosNetwork, main: BcosNetwork) -> BcosNetwork:
    """Bring a network's parts, place, precision and mode to those of the main one, in place."""
    for store in _STORES:
        entries, newest = getattr(network, store), getattr(main, store)
        entries.update({name: newest[name] for name in entries if name in newest})
    parts = network._modules.get(_OWN)
    like = next((tensor for tensor in main.parameters() if tensor.is_floating_point()), None)
    if parts is not None and like is not None:
        parts.to(device=like.device, dtype=like.dtype).train(main.training)
    network.training = main.training
    return network
