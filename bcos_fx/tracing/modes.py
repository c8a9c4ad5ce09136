"""PyTorch's modes that a forward may switch, as far as a graph has to know of them: gradients, autocast, transforms."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from bcos_fx.tracing.source import current_source


@contextmanager
def own_modes() -> Iterator[None]:
    """While this lasts the caller's modes do not count: inference mode and autocast are off, no gradients are kept."""
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        with torch.inference_mode(False), torch.no_grad():
            yield


@contextmanager
def enable_gradients(root: nn.Module) -> Iterator[None]:
    """While this lasts gradients are enabled unless ``root`` disables them; none are kept, as nothing requires them."""
    required = [parameter for parameter in root.parameters() if parameter.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)


class GradientStops:
    """Values that a forward computes under ``torch.no_grad()``: what leaves that block is detached in the graph.

    Args:
        graph: that is recorded.
        marks: sets of nodes; a detached node belongs to those that the node itself is in.

    """

    def __init__(self, graph: Graph, marks: Sequence[set[Node]]) -> None:
        self._lines: dict[str, None] = {}  # that read such a value where gradients are enabled again
        self._graph, self._marks = graph, marks
        self._detached: dict[Node, Node | None] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each line that reads such a value where gradients are enabled again."""
        reason = "what comes before is computed under torch.no_grad(), and is not trained"
        return tuple(f"no gradients pass {line}: {reason}" for line in self._lines)

    def note(self, node: Node) -> None:
        """Remember that a node's value is computed without gradients, if it is."""
        if not torch.is_grad_enabled() and getattr(node.meta["dtype"], "is_floating_point", False):
            self._detached[node] = None

    def leaving(self, arguments: Any) -> Any:
        """Return a node's arguments as they are where gradients are disabled; else with what was noted detached."""
        return map_arg(arguments, self._outside) if torch.is_grad_enabled() and self._detached else arguments

    def _outside(self, node: Node) -> Node:
        if node not in self._detached:
            return node
        known = self._detached[node]
        detached = self._detached[node] = known or self._graph.call_method("detach", (node,))
        if known is None:
            source = current_source()
            self._lines[str(source)] = None
            detached.meta.update(node.meta, source=str(source), text=source.text, origin=detached.name)
            for marked in self._marks:
                if node in marked:
                    marked.add(detached)
        return detached


TRANSFORMED = "a transform of torch.func (vmap, grad, jvp) runs, inside which tensors have no memory to follow"

_TRANSFORMS = ("vmap", "eager_transforms")  # its neighbors in that folder serve torch.compile


def is_transforming(error: BaseException) -> bool:
    """Return whether an error came from within a transform of ``torch.func``."""
    files = (Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(file.parent.name == "_functorch" and file.stem in _TRANSFORMS for file in files)


def unfollowable(tensor: Tensor) -> str | None:
    """Return what kind of tensor no recording can follow this one is, or None: it is an ordinary one."""
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return TRANSFORMED
    if tensor.is_inference():
        return "a tensor is made in inference mode, in which no changes are counted (torch.no_grad() can be followed)"
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return "autocast is on inside the forward, so that precision depends on where the network runs"
    return None
