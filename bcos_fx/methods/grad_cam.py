"""Grad-CAM (Selvaraju et al., "Grad-CAM", ICCV 2017, sec. 3), on a layer that is found by data flow.

captum's LayerGradCam needs the layer as a module and runs the network once per class. Here the graph is run to the
layer's result, whatever kind of node that is, and from there on once for all classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from bcos_fx.errors import UsageError
from bcos_fx.explanation.preparation import find_layer
from bcos_fx.methods.explained_network import ExplainedNetwork
from bcos_fx.methods.method import Method
from bcos_fx.methods.module_form import depends_on_input, traced
from bcos_fx.rewriting.core.ops import vocabulary
from bcos_fx.tracing.program import evaluate

_ENDS_SPACE = frozenset(
    "avg_pool2d adaptive_avg_pool2d max_pool2d adaptive_max_pool mean sum amax flatten reshape".split()
)
_NAME_IT = "name the layer with the option layer="


def grad_cam(explained: ExplainedNetwork, *, layer: str | None = None, relu: bool = True) -> Method:
    """Return Grad-CAM: a layer's feature maps, weighted with the mean of their gradients, and upsampled bilinearly.

    Args:
        explained: the network.
        layer: the layer whose result is taken (N, C, h, w); None: the last feature map before global pooling.
        relu: leave out negative evidence before upsampling, as published (eq. 2).
    """
    graphs: dict[torch.Size, tuple[fx.GraphModule, fx.Node]] = {}

    def at(differences: Tensor) -> tuple[fx.GraphModule, fx.Node]:
        if differences.shape[1:] not in graphs:
            graph_module = traced(explained, differences)
            node = last_feature_map(graph_module) if layer is None else _layer_node(graph_module, layer)
            graphs[differences.shape[1:]] = graph_module, node
        return graphs[differences.shape[1:]]

    def maps(images: Tensor, targets: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            differences, indices = explained.prepared(images, targets)
            run = at(differences)
            chunk = explained.at_once(differences)
            parts = zip(torch.split(differences, chunk), torch.split(indices, chunk), strict=True)
            small = torch.cat([_weighted(*run, part, classes) for part, classes in parts])
            small = small.clamp(min=0) if relu else small
            return F.interpolate(small, size=images.shape[2:], mode="bilinear", align_corners=False)

    settings = {
        "of": "logit",
        "layer": layer or "the last feature map before global pooling",
        "ReLU": relu,
        "upsampling": "bilinear",
    }
    return Method("Grad-CAM", settings, maps)


def _weighted(graph_module: fx.GraphModule, node: fx.Node, differences: Tensor, targets: Tensor) -> Tensor:
    """Compute the weighted sum of feature maps, (N, K, h, w)."""
    (start,) = graph_module.graph.find_nodes(op="placeholder")
    end = graph_module.graph.output_node().all_input_nodes[0]
    with torch.no_grad():
        features: Tensor = evaluate(graph_module, {start: differences}, node)
    # Gradients are needed from the layer on, and not through the part of the network before it.
    features = features.detach().requires_grad_()
    outputs: Tensor = evaluate(graph_module, {start: differences, node: features}, end)
    chosen = outputs.gather(1, targets)
    maps = []
    for k in range(targets.shape[1]):
        (gradient,) = torch.autograd.grad(chosen[:, k].sum(), features, retain_graph=True)
        maps.append((gradient.mean((2, 3), keepdim=True) * features).sum(1))
    return torch.stack(maps, 1).detach()


def last_feature_map(graph_module: fx.GraphModule) -> fx.Node:
    """Return the last node (N, C, h, w) with h·w > 1, if everything passes through it and only pooling ends its space.

    Raises:
        UsageError: the network has none, as a vision transformer, in which space does not end in pooling or flattening.
    """
    moving = depends_on_input(graph_module)
    # What bears no module's name is the normalization in front of the network.
    spatial = [node for node in moving if _is_map(node) and node.meta.get("module_path")]
    if not spatial:
        raise UsageError("Grad-CAM needs a feature map, and no node of this network has one", hint=_NAME_IT)
    last = spatial[-1]
    # Nodes are in the order of the graph, so everything past the map that depends on the image is here.
    after = moving[moving.index(last) + 1 :]
    past = [node for node in after if not _reads_only(node, {last, *after})]
    if past:
        raise _no_feature_map(last, f"the output depends on the image past it (node {past[0].name})")
    for node in last.users:
        call = vocabulary().call(node, graph_module)
        if node in after and (call is None or call.op.name not in _ENDS_SPACE):
            raise _no_feature_map(last, f"{node.name} reads it, which is not a pooling")
    wide = [node for node in after if len([s for s in (node.meta.get("shape") or ())[1:] if s > 1]) > 1]
    if wide:
        raise _no_feature_map(last, f"{wide[0].name} after it still has positions, {tuple(wide[0].meta['shape'][1:])}")
    return last


def _is_map(node: fx.Node) -> bool:
    shape = node.meta.get("shape")
    return shape is not None and len(shape) == 4 and math.prod(shape[2:]) > 1


def _reads_only(node: fx.Node, sources: set[fx.Node]) -> bool:
    """Return whether all tensors that a node reads are among some nodes, or stored in the network."""
    tensors = [read for read in node.all_input_nodes if read.meta.get("type") in ("tensor", "tuple", None)]
    return all(read in sources or read.op == "get_attr" for read in tensors)


def _no_feature_map(last: fx.Node, reason: str) -> UsageError:
    return UsageError(
        f"Grad-CAM needs the last feature map before global pooling, and this network has none: {reason}",
        where=f"after node {last.name}, {last.meta.get('source') or 'no line known'}",
        hint=_NAME_IT,
    )


def _layer_node(graph_module: fx.GraphModule, layer: str) -> fx.Node:
    node = find_layer(graph_module, layer if layer.startswith("network") else f"network.{layer}")
    depends_on_input(graph_module)
    if not _is_map(node):
        raise UsageError(
            f"the layer {layer!r} gives {tuple(node.meta.get('shape') or ())}, no feature maps (N, C, h, w)",
            hint="name an earlier layer",
        )
    return node
