"""What is exported: a network, or its explanation, as a module of tensors only, and as a program of plain operations.

An explanation is a gradient of the explanation view, so its program is the forward and the backward pass in one graph:
autograd runs while that is recorded, and what is recorded contains no autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export._trace import _export
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves

from bcos_fx.errors import TraceError
from bcos_fx.explanation.view import ExplanationView
from bcos_fx.exporting.transposes import decompositions

ANY = "N"
"""What the size of a batch is called where it may be any."""
_LABELS = ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn")


class NetworkGraph(nn.Module):
    """A network as it is: (*inputs) to all tensors that it gives, in order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the network."""
        return tuple(tree_leaves(self.network(*inputs)))


class ExplanationGraph(nn.Module):
    """An explanation: (*inputs, target) to (logits, contributions, constants, weights).

    Args:
        view: of the network, for one source.
        channel: the dimension of what outputs are explained by that holds its channels, or None.
    """

    def __init__(self, view: ExplanationView, channel: int | None) -> None:
        super().__init__()
        self.view, self.channel = view, channel
        self.graph_module = view.graph_module

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Explain one output of each sample.

        Args:
            inputs: those of the network, and the indices (N,) of the outputs.

        Returns:
            The outputs (N, C), of an inner layer the sums of its channels; contributions (N, H, W), or what
            :attr:`bcos_fx.Explanation.contributions` are; what each constant contributes (N, constants), in the order
            of the view's ``sources``; W(x), (N, 2C, H, W).
        """
        *given, target = inputs
        dynamic = self.view.dynamic_weights(given, lambda value: rows(value).gather(1, target.unsqueeze(1)))
        weights = dynamic.weights.squeeze(1)
        parts = weights * dynamic.start
        contributions = parts if self.channel is None else parts.sum(self.channel)
        none = torch.zeros_like(dynamic.output)
        # The first column is cut off again: a network may have no constants, and nothing cannot be joined.
        constants = [none, *(dynamic.constants.get(name, none) for name in self.view.sources)]
        return rows(dynamic.value), contributions, torch.cat(constants, 1)[:, 1:], weights


def rows(value: Tensor) -> Tensor:
    """Return a value as rows of scores (N, C): of (N, C, ...) the sums of the channels, as explanations have them."""
    return value.flatten(2).sum(2) if value.dim() > 2 else value


def program(graph: nn.Module, examples: Sequence[Tensor], *, any_batch: bool) -> ExportedProgram:
    """Record a graph as a program of ATen operations without autograd; what it refers to in this code is left out.

    Args:
        graph: a module of tensors only; not changed.
        examples: its inputs (N, ...).
        any_batch: whether the program takes any N.

    Raises:
        TraceError: the graph cannot be recorded, or not for any N.
    """
    shapes = ({0: Dim(ANY)} if any_batch else None,) * len(examples)
    try:
        # Below autograd, which torch.export.export is not; attention by products, whose transposes are known.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            recorded: ExportedProgram = _export(
                graph, tuple(examples), dynamic_shapes=(shapes,), strict=False, pre_dispatch=False
            )
            recorded = recorded.run_decompositions(decompositions())
    except Exception as error:  # whatever an operation raises that cannot be recorded
        raise TraceError(
            f"the network cannot be recorded as a program: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            hint="explain it from Python, or replace the operation by one that torch.export knows",
        ) from error
    for node in recorded.graph.nodes:
        for label in _LABELS:
            node.meta.pop(label, None)
    return recorded
