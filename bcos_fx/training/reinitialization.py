"""Random weights for a converted network's graph, to train it from scratch."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosLayer
from bcos_fx.training.schedulable_layers import constants_of


@torch.no_grad()
def reinitialized(network: BcosNetwork, seed: int) -> BcosNetwork:
    """Return the network with random weights, for training from scratch.

    Layers begin as their classes initialize them; norms with scale 1, shift 0 and unit statistics; other parameters of
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
