"""Builders and predicates for layers of the ``bcos`` package, which is read and never imported."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bcos_fx import nn as bnn
from bcos_fx.nn.construction import construct
from bcos_fx.rewriting.build import Build, builder
from bcos_fx.rewriting.match import Verdict
from bcos_fx.rewriting.ops import Call
from bcos_fx.rewriting.predicates import predicate
from bcos_fx.rewriting.reader import GraphReader

# What the package adds inside the root of a patch's norm, and to the norm of a vector.
_CONV_EPS, _LINEAR_EPS = 1e-6, 1e-12


@predicate("peer-transform-is-ours")
def peer_transform_is_ours(reader: GraphReader, call: Call) -> Verdict:
    """A B-cos layer of the package that computes what ours does: no MaxOut, and B 1 or 2."""
    layer: Any = call.module
    if layer.max_out != 1:
        return f"it takes the maximum of {layer.max_out} units (MaxOut), which no layer here does"
    if layer.b not in (1, 2):
        return f"at B = {layer.b:g} it adds a constant to the cosine, which no layer here does"
    return True


@builder("bcos-of-peer")
def bcos_of_peer(build: Build) -> nn.Module:
    """Our layer around the package's own weight, with a gain of 1 that is not trained."""
    layer: Any = build.layer
    inner = layer.linear
    is_conv = isinstance(inner, nn.Conv2d)
    cls: type[bnn.BcosLayer] = bnn.BcosConv2d if is_conv else bnn.BcosLinear
    # An eps beside the root is its square inside, but for what rounding eats.
    eps = _CONV_EPS if is_conv else _LINEAR_EPS**2
    options = {name: getattr(inner, name) for name in cls.plain_options}
    new: Any = construct(cls, {**options, "bias": False, "b": float(layer.b), "scale": "unit", "eps": eps})
    new.weight = inner.weight
    new.gain = nn.Parameter(torch.ones_like(inner.weight[(slice(None), *[0] * (inner.weight.dim() - 1))]), False)
    module: nn.Module = new.train(layer.training)
    return module


@builder("uncentred-norm-of-peer")
def uncentred_norm_of_peer(build: Build) -> nn.Module:
    """Our uncentred batch norm around the package's own tensors; there is no mean in it."""
    norm: Any = build.layer
    options = {"num_features": norm.num_features, "eps": norm.eps, "momentum": norm.momentum}
    affine = norm.weight is not None
    new = construct(bnn.BatchNormUncentred2d, {**options, "affine": affine, "shift": norm.bias is not None})
    if affine:
        new._parameters["weight"] = norm.weight
    if norm.bias is not None:
        new._parameters["bias"] = norm.bias
        new._buffers["running_mean"] = torch.zeros_like(norm.running_var)
    new._buffers["running_var"] = norm.running_var
    new._buffers["num_batches_tracked"] = norm.num_batches_tracked
    return new.train(norm.training)


@builder("logit-layer-of-peer")
def logit_layer_of_peer(build: Build) -> nn.Module:
    """Our logit layer with the package's numbers."""
    layer: Any = build.layer
    temperature = 1.0 if layer.logit_temperature is None else float(layer.logit_temperature)
    bias = 0.0 if layer.logit_bias is None else float(layer.logit_bias)
    return bnn.LogitLayer(bias=bias, temperature=temperature)
