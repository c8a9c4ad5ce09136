"""Another head for a converted network: a new one, or some rows of its own."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.heads.classes import find_classes
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import LogitLayer
from bcos_fx.nn.construction import constructor_options

_SHOWN = 10


def with_new_head(network: BcosNetwork, classes: int, seed: int) -> BcosNetwork:
    """Return the network with a new last layer, of random weights, for another number of classes.

    Args:
        network: a classifier; it is not changed.
        classes: C >= 2.
        seed: of the weights: a run that goes on begins with those that it began with.

    Raises:
        UsageError: the output does not come from one layer with a class per channel.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _exchanged(network, classes, lambda layer: _widened(layer, classes))


def with_subset_head(network: BcosNetwork, indices: Sequence[int]) -> BcosNetwork:
    """Return the network with some of its classes: their outputs are what they were, in another order.

    Args:
        network: a classifier whose last layer with weights is linear or a convolution; it is not changed.
        indices: which of its classes, at least two, each once, in their new order.

    Raises:
        UsageError: the output does not come from one layer with a class per channel, or an index is not a class.
    """
    outputs, rows = network.class_count(), [int(index) for index in indices]
    if len(rows) < 2 or len(set(rows)) < len(rows) or not all(0 <= index < outputs for index in rows):
        raise UsageError(f"the classes {rows} cannot be kept of {outputs}", hint="two or more of them, each once")
    new = _exchanged(network, len(rows), lambda layer: _selected(layer, rows, outputs))
    shown = ", ".join(map(str, rows[:_SHOWN])) + (", ..." if len(rows) > _SHOWN else "")
    note = (
        f"the head has {len(rows)} of the original's {amount(outputs, 'class')} ({shown}); figures are of all of them"
    )
    new.with_report(dataclasses.replace(new.report, notes=(*new.report.notes, note)))
    return new.with_record(classes=tuple(network.record.classes[index] for index in rows if network.record.classes))


def with_classes(
    network: BcosNetwork, classes: Sequence[int | str] | None, names: Sequence[str] | None = None
) -> BcosNetwork:
    """Return the network with the classes that are named, as :func:`find_classes` reads them; with all for None.

    Args:
        network: a classifier; it is not changed.
        classes: which to keep, in order.
        names: of the network's classes, in order; None: those that it keeps itself.
    """
    if classes is None:
        return network
    return with_subset_head(
        network, find_classes(classes, network.class_count(), names or network.record.classes or None)
    )


def last_layer(network: nn.Module) -> nn.Module:
    """Return the last layer with weights of a converted classifier.

    Raises:
        UsageError: the network was not converted, or does not end in one linear layer or convolution.
    """
    path = _weighted(network) if isinstance(network, BcosNetwork) else None
    if path is None:
        raise UsageError(
            "which layer is the head is not known: the network does not end in one layer with a row per class",
            hint="leave lr_of_head out, or convert the network first",
        )
    return network.get_submodule(path)


def _weighted(network: BcosNetwork) -> str | None:
    """Return the path of the last layer with weights, if it is linear or a convolution that is called once."""
    for node in _from_the_output(network):
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            # A layer that is called twice is not only the head.
            calls = [other.target for other in network.graph.nodes if other.op == "call_module"]
            return str(node.target) if calls.count(node.target) == 1 else None
        # Past another layer with tensors nothing is a head any more.
        if node.op == "get_attr" or (module is not None and module.state_dict()):
            return None
    return None


def _exchanged(network: BcosNetwork, classes: int, changed_layer: Callable[[nn.Module], nn.Module]) -> BcosNetwork:
    """Return a copy of the network with another last layer."""
    new = copy.deepcopy(network)
    path = _weighted(new)
    if path is None:
        raise UsageError("the network does not end in one layer that could be exchanged for a new head")
    behind = _from_the_output(new)
    for name in [str(node.target) for node in behind if node.op == "call_module"]:
        if isinstance(layer := new.get_submodule(name), LogitLayer):
            new.set_submodule(name, _logit_layer(layer, int(behind[0].meta["shape"][1]), classes))
    new.set_submodule(path, changed_layer(new.get_submodule(path)))
    return _with_shapes(new)


@torch.no_grad()
def _selected(layer: nn.Module, rows: Sequence[int], outputs: int) -> nn.Module:
    """Return the layer with some of its rows."""
    if len(layer.get_parameter("weight")) != outputs or getattr(layer, "groups", 1) != 1:
        raise UsageError(
            f"the last layer has {len(layer.get_parameter('weight'))} rows for {amount(outputs, 'class')}",
            hint="only a linear layer or a convolution with a row per class can keep some of its rows",
        )
    with torch.random.fork_rng():
        # Its random weights are overwritten; the generator of the caller stays where it was.
        layer_of_rows = _widened(layer, len(rows))
    for name, parameter in layer_of_rows.named_parameters():
        parameter.copy_(layer.get_parameter(name)[list(rows)])
        parameter.requires_grad_(layer.get_parameter(name).requires_grad)
    return layer_of_rows


def _from_the_output(network: BcosNetwork) -> list[fx.Node]:
    """Return the nodes that lead to the output, last first, as long as each reads a single node."""
    node = network.graph.output_node()
    nodes = []
    while len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
        nodes.append(node)
    return nodes


def _logit_layer(layer: LogitLayer, outputs: int, classes: int) -> LogitLayer:
    """Build a logit layer for another number of classes: the usual bias follows that number, another is kept."""
    # The bias log(1 / (C - 1)) belongs to the number of classes: C scores of 0 then have the probability 1/C each.
    usual = outputs > 1 and math.isclose(layer.bias, math.log(1 / (outputs - 1)))
    return LogitLayer(math.log(1 / (classes - 1)) if usual else layer.bias, layer.temperature)


def _widened(layer: nn.Module, classes: int) -> nn.Module:
    options = constructor_options(layer)
    name = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    like: Any = layer.weight
    kind: Any = type(layer)
    widened: nn.Module = kind(**{**options, name: classes}, device=like.device, dtype=like.dtype)
    return widened.train(layer.training)


def _with_shapes(network: BcosNetwork) -> BcosNetwork:
    """Return the network with its graph's shapes recorded again, and without the names of its former classes."""
    graph_module = network.graph_module()
    like = next(network.parameters())
    inputs = [torch.zeros(spec.shape, dtype=like.dtype, device=like.device) for spec in network.record.inputs]
    mode = graph_module.training
    with torch.no_grad():
        _Noting(graph_module.eval()).run(*inputs)
    return BcosNetwork(graph_module.train(mode), dataclasses.replace(network.record, classes=()))


class _Noting(fx.Interpreter):
    """Runs a graph, and notes the shape of every value."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.meta.get("shape") is not None:
            n.meta["shape"] = tuple(value.shape)
        return value
