"""What can be calibrated in a network, and how each kind of layer is changed.

A batch norm takes the mean and variance of its input again. Its output, and that of a B-cos layer which no batch norm
takes up, is given the mean and deviation that the original's has, where that is known; then it is scaled until it has
the original's power, for without a constant its mean may be another one. Before a rectifier the power is that of the
positive part, which is what comes through: raising B makes outputs heavy-tailed, so that equal variances alone let too
little through. Elsewhere it is that of all values: a channel that is hardly ever positive would be blown up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from bcos_fx.calibration.moments import Moments
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosLayer
from bcos_fx.rewriting.core.op import Op
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader

_NORM_ATTRIBUTES = ("running_mean", "running_var", "weight", "bias", "eps", "num_features")


@dataclass(frozen=True)
class Layer(ABC):
    """A layer that can be calibrated; used through its subclasses.

    Attributes:
        node: that calls it, the only one.
        module: the layer.
        owns: its parameters are no other layer's, so that they may be changed.
        rectified: nothing but rectifiers reads its output, sums and changes of shape apart.
        constant: the share in [0, 1] of its constant that is left where constants fade.
    """

    node: fx.Node
    module: Any
    owns: bool
    rectified: bool
    constant: float = 1.0
    kind: ClassVar[str]

    @property
    def channel_dim(self) -> int:
        """The dimension of its output that counts channels."""
        return 1

    @property
    @abstractmethod
    def can_scale(self) -> bool:
        """Whether something in it sets its output's size per channel."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """How many channels its output has."""

    @abstractmethod
    def standardize(self, measured: Moments, target: Moments | None, live: Tensor) -> tuple[Tensor, Tensor]:
        """Set the output's mean and deviation, in place; the deviation for ``live`` channels (C,) only.

        Args:
            measured: the input of a norm, the output of another layer.
            target: the original's output.
            live: channels that vary.

        Returns:
            The factor (C,) by which the output grew, and how far its mean moved, in deviations as they were before.
        """

    def match_power(self, measured: Moments, target: Moments, live: Tensor) -> Tensor:
        """Multiply the output, bias and all, until what is read of it has the original's power; in place.

        Args:
            measured: the output.
            target: the original's output.
            live: channels that vary.

        Returns:
            The factor (C,) by which the output grew.
        """
        # A channel that is off in either network has no factor that makes them equal.
        has, wanted = (m.rectified_power if self.rectified else m.power for m in (measured, target))
        factors = torch.where(live & (has > 0) & (wanted > 0), (wanted / has).sqrt(), 1.0)
        self._scale_output(factors)
        if self.module.bias is not None:
            self.module.bias.mul_(factors)
        return factors

    @abstractmethod
    def _scale_output(self, factors: Tensor) -> None:
        """Multiply the output, bias apart, per channel."""


class Norm(Layer):
    """A batch norm with running statistics."""

    kind = "statistics"

    @property
    def can_scale(self) -> bool:
        """Whether it has a weight of its own."""
        return self.owns and self.module.weight is not None

    @property
    def channels(self) -> int:
        """How many channels it normalizes."""
        channels: int = self.module.num_features
        return channels

    def standardize(self, measured: Moments, target: Moments | None, live: Tensor) -> tuple[Tensor, Tensor]:
        """Take mean and unbiased variance of the input, the mean inside its constant while there is one."""
        norm, before = self.module, self.module.running_var.double() + self.module.eps
        shift = torch.zeros_like(before)
        if norm.running_mean is not None:
            # The mean is part of the constant that the norm subtracts, and fades with it.
            shift = (measured.mean * self.constant - norm.running_mean.double()) / before.sqrt()
            norm.running_mean.copy_(measured.mean * self.constant)
        # A dead channel keeps its variance: one near 0 would divide by eps alone and amplify rounding.
        norm.running_var.copy_(torch.where(live, measured.variance, norm.running_var.double()))
        factors = (before / (norm.running_var.double() + norm.eps)).sqrt()
        return factors if target is None else factors * self._match(target, live), shift

    def _match(self, target: Moments, live: Tensor) -> Tensor:
        """Give the output the original's deviation, and its mean while there is a constant; return the factors (C,)."""
        norm = self.module
        if not self.can_scale:
            return torch.ones_like(target.mean)
        # eps keeps the normalized deviation below 1, which the weight has to make up for.
        variance = norm.running_var.double()
        deviation = norm.weight.double().abs() * (variance / (variance + norm.eps)).sqrt()
        known = live & (deviation > 0) & (target.variance > 0)
        factors = torch.where(known, target.variance.sqrt() / deviation, 1.0)
        norm.weight.mul_(factors)
        if norm.bias is not None:
            norm.bias.copy_(torch.where(known, target.mean * self.constant, norm.bias.double()))
        return factors

    def _scale_output(self, factors: Tensor) -> None:
        self.module.weight.mul_(factors)


class Gain(Layer):
    """A B-cos layer whose output reaches the network's output past all batch norms."""

    kind = "gain"
    module: BcosLayer

    @property
    def channel_dim(self) -> int:
        """The second dimension of a convolution's output, the last of a linear layer's."""
        return 1 if self.module.spatial else -1

    @property
    def can_scale(self) -> bool:
        """Whether a gain or the weight's length sets the output's size."""
        return self.owns and (self.module.scale != "unit" or self.module.gain is not None)

    @property
    def channels(self) -> int:
        """How many outputs it has."""
        module: Any = self.module
        return int(module.out_channels if self.module.spatial else module.out_features)

    def standardize(self, measured: Moments, target: Moments | None, live: Tensor) -> tuple[Tensor, Tensor]:
        """Take the original's deviation, and its mean where there is a bias."""
        if target is None:
            raise AssertionError("a gain is only ever matched to the original's")
        shift = torch.where(live, (target.mean - measured.mean) / measured.variance.sqrt(), 0.0)
        factors = torch.where(live, (target.variance / measured.variance).sqrt(), 1.0)
        self._scale_output(factors)
        bias = self.module.bias
        if bias is None:
            return factors, torch.zeros_like(shift)
        # Written so that nothing at all is added where nothing differs.
        bias.add_((target.mean - measured.mean) + (1 - factors) * (measured.mean - bias.double())).mul_(self.constant)
        return factors, shift

    def _scale_output(self, factors: Tensor) -> None:
        self.module.scale_output_(factors.to(self.module.weight.dtype))


def layers_of(
    network: BcosNetwork, constants: Mapping[str, float] = MappingProxyType({})
) -> tuple[list[Layer], dict[str, str]]:
    """Find what can be calibrated.

    Returns:
        The layers, in the order of the graph; and node -> why not, for those that are of a kind but cannot be.
    """
    reader = GraphReader(network.graph_module(), vocabulary(), Options())
    layers: list[Layer] = []
    reasons: dict[str, str] = {}
    for node, norm in _calls_of(reader, lambda op, module: op is not None and op.batch_statistics):
        missing = [name for name in _NORM_ATTRIBUTES if not hasattr(norm, name)]
        if missing:
            reasons[node.name] = f"it is declared a norm with batch statistics, and has no {' and no '.join(missing)}"
        elif norm.running_var is None:
            reasons[node.name] = "it has no running statistics: its output depends on the other samples"
        elif (calls := len(reader.callers[id(norm)])) > 1:
            reasons[node.name] = f"it is called {calls} times, and one set of statistics cannot fit them all"
        else:
            layers.append(Norm(node, norm, *_facts(reader, node, norm), constants.get(str(node.target), 1.0)))
    # A gain before a batch norm has no effect: the norm divides it out again.
    open_nodes = _reaching_the_output(reader.graph_module.graph, {layer.node for layer in layers})
    for node, layer in _calls_of(reader, lambda op, module: isinstance(module, BcosLayer)):
        if node not in open_nodes:
            continue
        gain = Gain(node, layer, *_facts(reader, node, layer), constants.get(str(node.target), 1.0))
        if gain.can_scale:
            layers.append(gain)
        else:
            reasons[node.name] = (
                "its weight's length has no effect" if gain.owns else "its parameters are used elsewhere too"
            )
    order = {node: place for place, node in enumerate(reader.graph_module.graph.nodes)}
    return sorted(layers, key=lambda layer: order[layer.node]), reasons


def _calls_of(reader: GraphReader, wanted: Callable[[Op | None, nn.Module], bool]) -> Iterator[tuple[fx.Node, Any]]:
    for node in reader.graph_module.graph.nodes:
        if node.op == "call_module":
            module = reader.graph_module.get_submodule(str(node.target))
            if wanted(reader.vocabulary.of(node, reader.graph_module), module):
                yield node, module


def _facts(reader: GraphReader, node: fx.Node, module: nn.Module) -> tuple[bool, bool]:
    return _owns(reader, module), _rectified(reader, node)


def _rectified(reader: GraphReader, node: fx.Node) -> bool:
    """Return whether all paths from a node lead to a rectifier, through linear operations without weights alone."""
    pending, passed = [node], {node}
    while pending:
        users = pending.pop().users
        if not users:
            return False
        for user in users:
            op = reader.vocabulary.of(user, reader.graph_module)
            if op is not None and op.rectifier:
                continue
            # Through weights the positive part of one channel reaches others, so what comes through is not known here.
            if op is None or op.linearity != "linear" or _has_state(reader, user):
                return False
            if user not in passed:
                passed.add(user)
                pending.append(user)
    return True


def _has_state(reader: GraphReader, node: fx.Node) -> bool:
    return node.op == "call_module" and bool(reader.graph_module.get_submodule(str(node.target)).state_dict())


def _owns(reader: GraphReader, module: nn.Module) -> bool:
    # One change of a shared parameter cannot fit two places.
    alone = len(reader.callers[id(module)]) == 1
    return alone and all(len(reader.owners[id(parameter)]) == 1 for parameter in module.parameters())


def _reaching_the_output(graph: fx.Graph, barriers: set[fx.Node]) -> set[fx.Node]:
    """Return the nodes from which a path leads to the output past all barriers."""
    (output,) = graph.find_nodes(op="output")
    reached, pending = {output}, [output]
    while pending:
        for input_node in pending.pop().all_input_nodes:
            if input_node not in reached and input_node not in barriers:
                reached.add(input_node)
                pending.append(input_node)
    return reached
