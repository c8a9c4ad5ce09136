"""Small graphs for direct tests of what rules are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.tracing import trace


class Calling(nn.Module):
    """A module of named parts whose forward is a function of them and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def reader_of(forward: Callable[[Any, Tensor], Tensor], *shape: int, **parts: nn.Module | Tensor) -> GraphReader:
    torch.manual_seed(0)
    module = Calling(forward, **parts).eval()
    traced = trace(module, torch.rand(2, *(shape or (4,))), leaf_modules=vocabulary().leaves)
    return GraphReader(traced.graph_module, vocabulary(), Options())


def node_of(reader: GraphReader, op: str, place: int = 0) -> fx.Node:
    """Return the node of a canonical op, the first where several are."""
    found = [node for node in reader.graph_module.graph.nodes if reader.op(node) == op]
    return found[place]
