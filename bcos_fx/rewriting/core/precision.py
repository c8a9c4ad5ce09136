"""Rewriting in float64, whatever the network's own precision.

A preserving rule may have to compute a new tensor (a kernel with a normalization inside it, the length of a
weight). Done in float64 and rounded once at the end, such a tensor is as exact as the network's precision allows,
and the proof can be held to float64 before that rounding. A large network is raised piece by piece: what a builder
reads while it works, and afterwards only what its own precision cannot hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from bcos_fx.rewriting.core.build import Build, Builder, Part, Rewired
from bcos_fx.rewriting.core.stored import sources_of
from bcos_fx.tracing.program import attribute, module_at


class Precision:
    """The floating-point types of a network's tensors, so that they can be raised and restored."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._dtypes = {name: t.dtype for name, t in _tensors(network).items() if t.is_floating_point()}
        counted = Counter(self._dtypes.values())
        self._usual = counted.most_common(1)[0][0] if counted else torch.get_default_dtype()

    def raise_(self) -> None:
        """Turn every floating-point tensor into float64, in place."""
        self._network.double()

    def in_double(self, builder: Builder) -> Builder:
        """Return a builder that computes in float64 from what it matched, and keeps in float64 only what needs it."""

        def build(given: Build) -> nn.Module | Part | Rewired:
            raised = {
                id(t): (t, t.dtype)
                for t in _stored_tensors(given)
                if t.is_floating_point() and t.dtype != torch.float64
            }
            # Through .data: the Parameter stays the same object, and a shared weight stays shared.
            for tensor, _ in raised.values():
                tensor.data = tensor.data.double()
            try:
                built = builder(given)
                module = built if isinstance(built, nn.Module) else built.module
                new = [t for t in (*module.parameters(), *module.buffers()) if t.dtype == torch.float64]
                # The raised ones last: a tensor that the module took over goes back to its own type, not the usual one.
                raised = {id(t): (t, self._usual) for t in new} | raised
            finally:
                for tensor, dtype in raised.values():
                    rounded = tensor.data.to(dtype)
                    # A tensor that its own precision cannot hold stays in float64 until the proof is done; restore_()
                    # rounds it.
                    if torch.equal(rounded.double(), tensor.data):
                        tensor.data = rounded
            return built

        return build

    def restore_(self) -> None:
        """Give every tensor its own type again, in place; a new one gets the type that most had."""
        if set(self._dtypes.values()) <= {self._usual}:
            self._network.to(self._usual)
            return
        # By data, so that the tensors stay the objects that optimizers and other modules hold.
        for path, module in self._network.named_modules():
            names = {name: f"{path}.{name}" if path else name for name in (*module._parameters, *module._buffers)}
            for name, qualified in names.items():
                tensor = getattr(module, name)
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.to(self._dtypes.get(qualified, self._usual))


def _stored_tensors(build: Build) -> Iterator[Tensor]:
    """Yield the stored tensors that matched nodes hold, or are given, computed from others or not."""
    root = build.reader.graph_module
    for node in build.hit.nodes.values():
        if node.op == "call_module":
            module = module_at(root, str(node.target))
            yield from (*module.parameters(), *module.buffers())
        for source in (node, *node.all_input_nodes):
            for stored in _stored_sources(source):
                value = attribute(root, str(stored.target))
                if isinstance(value, Tensor):
                    yield value


def _stored_sources(node: fx.Node) -> list[fx.Node]:
    """Return the stored tensors that a node is computed from; none where it depends on anything else."""
    sources = sources_of(node)
    if any(source.op in ("placeholder", "call_module", "output") for source in sources):
        return []
    return [source for source in sources if source.op == "get_attr"]


def _tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    named = dict(network.named_parameters(remove_duplicate=False))
    return named | dict(network.named_buffers(remove_duplicate=False))
