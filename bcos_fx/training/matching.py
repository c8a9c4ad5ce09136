"""What B-cos layers read, beside what the original's layers read: the loss ``distil-layers``.

Raising B and taking biases away changes every layer, so an error of the output does not show which layer it comes from.
Here the input of every B-cos layer is compared with that of its counterpart in the original: hints
(Romero et al., "FitNets", ICLR 2015, section 2.2) at all layers, where no regressor is needed, for a converted network
has the original's shapes. Gradients pass through the whole network. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx.calibration.batches import Batch
from bcos_fx.calibration.original import Original, counterparts
from bcos_fx.errors import UsageError
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import BcosLayer
from bcos_fx.training.schedulable_layers import synthetic_batch

_DROPOUTS = ("dropout", "feature_dropout", "drop_path")


def read_by_layers(network: BcosNetwork) -> list[str]:
    """Return the names of the nodes that B-cos layers read, behind other layers, and that the original has too.

    In the graph's order. What a dropout takes away at random is compared as it is before.
    """
    known, ops = counterparts(network), {row.name: row.op for row in network.report.nodes}
    read: set[fx.Node] = set()
    behind: set[fx.Node] = set()
    for node in network.graph.nodes:
        layer = node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), BcosLayer)
        if layer or not behind.isdisjoint(node.all_input_nodes):
            behind.add(node)
        if layer:
            input_node = node.all_input_nodes[0]
            while ops.get(input_node.name) in _DROPOUTS:
                input_node = input_node.all_input_nodes[0]
            read.add(input_node)
    return [node.name for node in network.graph.nodes if node in read & behind and node.name in known]


class LayerMatching:
    """Runs a network and its original side by side, and compares what their layers read.

    Args:
        network: the converted network; its layers are shared, so that it is what is trained.
        reference: the original, or a conversion of it at B = 1; a copy of it is run.
        compiled: run the network through torch.compile.
        agreed: called with statistics of this process's batch; returns their mean over all processes.

    Raises:
        UsageError: the reference is not the network that was converted, or no layer reads what the original has.
        TraceError: the reference cannot be traced.
    """

    def __init__(
        self,
        network: BcosNetwork,
        reference: nn.Module,
        *,
        compiled: bool = False,
        agreed: Callable[[Tensor], Tensor] = lambda moments: moments,
    ) -> None:
        self._original = Original(network, reference, Batch((synthetic_batch(network),), None))
        self.names = [name for name in read_by_layers(network) if self._original.has(name)]
        if not self.names:
            raise UsageError(
                "no B-cos layer reads anything that the original has too, so that there is nothing to compare",
                hint="leave distil-layers out: distil-kl or distil-cosine compares outputs",
            )
        self._network, self._agreed = network, agreed
        tapped: Any = _tapped(network, self.names)
        self._run = torch.compile(tapped) if compiled else tapped

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the network's outputs, the original's, and the loss; the images are as the network takes them.

        Raises:
            UsageError: the network does not take them, or needs another graph for their size.
        """
        self._network.check_inputs((images,))
        # Another size runs another graph, whose nodes are not those that were tapped.
        if self._network.of_size((images,)) is not self._network:
            raise UsageError(
                f"distil-layers compares layers at the size that the network was converted with, and images have "
                f"{tuple(images.shape[1:])}",
                hint=f"give images of {self._network.input_shape}, or convert the network at their size",
            )
        wanted: dict[str, Tensor] = {}
        with torch.no_grad():
            theirs: Tensor = self._original.run((images,), self.names, wanted.__setitem__)
        with self._network.naming_shapes((images,)):
            ours, values = self._run(images)
        # Over all processes, so that each divides by the same variance and the mean of the losses is the loss of one.
        statistics = self._agreed(torch.stack([moments(wanted[name]) for name in self.names]))
        parts = [layer_distance(v, wanted[n], of) for n, v, of in zip(self.names, values, statistics, strict=True)]
        return ours, theirs, torch.stack(parts).mean()


def moments(values: Tensor) -> Tensor:
    """Return (mean, mean square) of values, in float32."""
    values = values.float()
    return torch.stack([values.mean(), values.square().mean()])


def layer_distance(ours: Tensor, theirs: Tensor, statistics: Tensor) -> Tensor:
    """Return the mean squared difference in units of the reference's variance: 1 for its mean; in float32.

    What hardly varies in the reference does not depend on the image; the mean square keeps the divisor above 0.

    Args:
        ours: (N, ...) of the network.
        theirs: (N, ...) of the reference.
        statistics: (mean, mean square) of the reference over all processes.

    Returns:
        A scalar.
    """
    mean, square = statistics.unbind()
    variance = square - mean.square()
    return (ours.float() - theirs.float()).square().mean() / (variance + 1e-4 * square).clamp_min(
        torch.finfo(square.dtype).tiny
    )


def _tapped(network: BcosNetwork, names: list[str]) -> fx.GraphModule:
    """Return the network over the same parts, with the values of some nodes as further outputs."""
    tapped = network.graph_module()
    (output,) = tapped.graph.find_nodes(op="output")
    nodes = {node.name: node for node in tapped.graph.nodes}
    output.args = ((output.args[0], [nodes[name] for name in names]),)
    tapped.recompile()
    return tapped
