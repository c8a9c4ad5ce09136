"""Builders for networks that are not trained any more: eval norms inside the layers before them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bcos_fx import nn as bnn
from bcos_fx.nn.batchnorm import BatchNormUncentred1d, BatchNormUncentred2d, BatchNormUncentred3d
from bcos_fx.nn.construction import rebuilt
from bcos_fx.nn.functional import default_eps
from bcos_fx.rewriting.builders.layers import new_parameter
from bcos_fx.rewriting.core.build import Build, Refused
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder, predicate

_NORMS = (BatchNormUncentred1d, BatchNormUncentred2d, BatchNormUncentred3d)


@predicate("normalizes-the-outputs-of-a-layer")
def normalizes_outputs(reader: GraphReader, call: Call) -> Verdict:
    """Check that the norm's channels are the outputs of the layer before; a linear layer's are the last dimension."""
    norm, layer = call.module, reader.call(call.inputs[0])
    rank = len(reader.shape(call.inputs[0]) or ())
    if layer is not None and isinstance(layer.module, bnn.BcosLinear) and rank != 2:
        return "its channels are not the outputs of the linear layer, which are in the last dimension"
    return isinstance(norm, _NORMS)


@builder("layer-with-norm")
def layer_with_norm(build: Build) -> bnn.BcosLayer:
    """Build the B-cos layer that computes what an eval batch norm makes of its output."""
    layer, norm = build.layer, build.hit.calls["norm"].module
    if not (isinstance(layer, bnn.BcosLayer) and isinstance(norm, _NORMS)):
        raise Refused("it is not a B-cos layer with a batch norm behind it")
    if layer.pressure is not None:
        raise Refused("its B is being trained")
    # norm(y) = y * factors + shift: the bias is scaled like the output that it is added to, and the shift joins it.
    with torch.no_grad():
        factors, shift = norm._scale(norm.running_var), norm.constant()
        bias = None if layer.bias is None else layer.bias * factors
        bias = shift if bias is None else bias if shift is None else bias + shift
        folded: bnn.BcosLayer = rebuilt(layer, bias=bias is not None)
        for name in ("weight", "gain"):
            tensor = getattr(layer, name)
            if tensor is not None:
                folded._parameters[name] = new_parameter(tensor, tensor)
        folded.scale_output_(factors)
        if bias is not None:
            folded._parameters["bias"] = new_parameter(bias, layer.weight)
    _check_length(folded, factors)
    return folded


def _check_length(folded: bnn.BcosLayer, factors: Tensor) -> None:
    """Check that no weight became so short that its cosine is not computed any more."""
    if folded.b == 1 or folded.scale != "cosine":
        return
    # In float32, in which networks run: under this length the layer's eps would outweigh the norm of its weight.
    floor = math.sqrt(default_eps(torch.float32))
    if bool(((folded._weight_norm().flatten() <= floor) & (factors != 0)).any()):
        raise Refused("the norm makes an output so small that its weight would have no direction any more")
