"""Other weights for a converted network's graph: from scratch, or a new head for other classes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.errors import UsageError
from bcos_fx.nn import BcosLayer, LogitLayer
from bcos_fx.nn.construction import constructor_options
from bcos_fx.rewriting.network import BcosNetwork
from bcos_fx.training.places import constants_of


@torch.no_grad()
def reinitialised(network: BcosNetwork, seed: int) -> BcosNetwork:
    """Return the network with random weights, for training from scratch.

    Layers begin as their classes initialise them; norms with scale 1, shift 0 and unit statistics; other parameters of
    the graph (tokens, embeddings) with standard deviation 0.02, as is usual for transformers.
    """
    new = copy.deepcopy(network)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        begun: set[int] = set()
        for module in new.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif hasattr(module, "running_var"):
                _reset_norm(module)
            if isinstance(module, BcosLayer) and module.gain is not None:
                module.gain.copy_(torch.linalg.vector_norm(module.weight.flatten(1), dim=1))
            begun |= {id(p) for p in module.parameters(recurse=False)} if callable(reset) else set()
        for name, parameter in new.named_parameters():
            owner = new.get_submodule(name.rpartition(".")[0])
            if id(parameter) not in begun and not hasattr(owner, "running_var"):
                _reset_loose(owner, name.rpartition(".")[2], parameter)
    return new


def _reset_norm(module: nn.Module) -> None:
    for constant in constants_of(module):
        constant.zero_()
    for name in ("weight", "running_var"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, Tensor):
            tensor.fill_(1)


def _reset_loose(owner: nn.Module, name: str, parameter: nn.Parameter) -> None:
    if isinstance(owner, BcosNetwork) or parameter.dim() > 1:
        parameter.normal_(std=0.02)
    else:
        parameter.fill_(1.0 if name == "weight" else 0.0)


def with_new_head(network: BcosNetwork, classes: int, seed: int) -> BcosNetwork:
    """Return the network with a new last layer, of random weights, for another number of classes.

    Args:
        network: a classifier; it is not changed.
        classes: C >= 2.
        seed: of the weights: a run that goes on begins with those that it began with.

    Raises:
        UsageError: the output does not come from one layer with a class per channel.
    """
    new = copy.deepcopy(network)
    for node in _from_the_output(new):
        module = new.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, LogitLayer):
            new.set_submodule(str(node.target), _logit_layer(module, _outputs(new), classes))
        elif isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                new.set_submodule(str(node.target), _widened(module, classes))
            return _with_shapes(new)
    raise UsageError("the network does not end in one layer that could be exchanged for a new head")


def _from_the_output(network: BcosNetwork) -> list[fx.Node]:
    """The nodes that lead to the output, backwards, as long as there is one way only."""
    node = next(n for n in network.graph.nodes if n.op == "output")
    way = []
    while len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
        way.append(node)
    return way


def _outputs(network: BcosNetwork) -> int:
    """The number of classes as the graph's notes have it."""
    shape = _from_the_output(network)[0].meta["shape"]
    return int(shape[1])


def _logit_layer(layer: LogitLayer, old: int, classes: int) -> LogitLayer:
    """The usual bias follows the number of classes; any other is kept."""
    usual = old > 1 and math.isclose(layer.bias, math.log(1 / (old - 1)))
    return LogitLayer(math.log(1 / (classes - 1)) if usual else layer.bias, layer.temperature)


def _widened(layer: nn.Module, classes: int) -> nn.Module:
    options = constructor_options(layer)
    name = "out_features" if isinstance(layer, nn.Linear) else "out_channels"
    like: Any = layer.weight
    kind: Any = type(layer)
    made: nn.Module = kind(**{**options, name: classes}, device=like.device, dtype=like.dtype)
    return made.train(layer.training)


def _with_shapes(network: BcosNetwork) -> BcosNetwork:
    """The network with its graph's notes of shapes taken anew."""
    graph_module = network.graph_module()
    like = next(network.parameters())
    inputs = [torch.zeros(spec.shape, dtype=like.dtype, device=like.device) for spec in network.record.inputs]
    mode = graph_module.training
    with torch.no_grad():
        _Noting(graph_module.eval()).run(*inputs)
    return BcosNetwork(graph_module.train(mode), network.record)


class _Noting(fx.Interpreter):
    """Runs a graph, and notes the shape of every value."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and n.meta.get("shape") is not None:
            n.meta["shape"] = tuple(value.shape)
        return value
