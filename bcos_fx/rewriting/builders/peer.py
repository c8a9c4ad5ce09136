"""Builders and predicates for networks of the package ``bcos`` 0.1 and of the published B-cosification.

Their modules are read by their attributes; nothing of either package is imported. What they compute is B-cos v2 (Böhle
et al., "B-cos Alignment for Inherently Interpretable CNNs and Vision Transformers", TPAMI 2024, section 3), with
weights of unit norm, or B-cosification (Arya et al., NeurIPS 2024, section 3), with weights as they are. Both have
these stabilizers: a convolution has |x| = sqrt(sum x^2 + 1e-6), a linear layer |x| + 1e-12, and at a B other than 1
and 2 both add 1e-6 to |cos| as well, which our layers do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bcos_fx import nn as bnn
from bcos_fx.errors import UsageError
from bcos_fx.nn.construction import construct
from bcos_fx.rewriting.core.build import Build, Refused
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder, predicate


@predicate("is-a-plain-bcos-transform")
def is_a_plain_bcos_transform(reader: GraphReader, call: Call) -> Verdict:
    """Check that a peer's B-cos layer computes ours: B fixed at 1 or 2, no MaxOut, no bias inside, zero padding."""
    layer: Any = call.module
    b = float(layer.b)
    if layer.max_out != 1:
        return f"it takes the largest of {layer.max_out} units (MaxOut), which our layers do not"
    if getattr(layer, "b_loss", False) or getattr(layer, "clamping", False):
        return "its B is being learned: it is shifted or clamped, and 1e-6 is added to the cosine"
    if b not in (1, 2):
        return f"at B = {b:g} it adds 1e-6 to the cosine, which our layers do not"
    if b != 1 and layer.linear.bias is not None:
        return f"at B = {b:g} it scales its bias too, and ours is added after the scaling"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return f"it pads with {layer.padding_mode!r}, but measures its patches as if it padded with zeros"
    return True


@builder("peer-bcos-layer")
def peer_bcos_layer(build: Build) -> nn.Module:
    """Build the B-cos layer around a peer's weight (of unit norm or as it is), with the peer's B and eps."""
    peer: Any = build.layer
    inner = peer.linear
    cls = bnn.BcosConv2d if isinstance(inner, nn.Conv2d) else bnn.BcosLinear
    scale = getattr(peer, "scale", None)
    options: dict[str, Any] = {name: getattr(inner, name) for name in cls.plain_options}
    options |= {"bias": inner.bias is not None, "b": float(peer.b), "gain": scale is not None}
    options |= {"scale": "raw" if build.call.op.name.startswith("peer_bcos_raw_") else "unit"}
    layer = construct(cls, options | cls.published_eps())
    layer.weight, layer.bias = inner.weight, inner.bias
    if scale is not None:  # a fixed number in the peer
        gain = torch.full_like(inner.weight[:, 0].flatten(1)[:, 0], 1 / float(scale))
        layer.gain = nn.Parameter(gain, requires_grad=False)
    return layer.train(peer.training)


@builder("peer-batch-norm")
def peer_batch_norm(build: Build) -> nn.Module:
    """Build an uncentered batch norm around a peer's tensors; the peer's running mean does not affect its output."""
    peer: Any = build.layer
    shift = peer.bias is not None
    affine = peer.weight is not None
    if peer.bias is not None and not affine:
        raise Refused("it has a shift without a scale")
    options = {"num_features": peer.num_features, "eps": peer.eps, "momentum": peer.momentum}
    norm = construct(bnn.BatchNormUncentred2d, options | {"affine": affine, "shift": shift})
    norm.weight, norm.running_var, norm.num_batches_tracked = peer.weight, peer.running_var, peer.num_batches_tracked
    if shift:  # ours counts the mean into its shift; the peer never subtracts one, so it is 0
        norm.running_mean = torch.zeros_like(peer.running_var)
    norm.bias = peer.bias
    return norm.train(peer.training)


@builder("peer-norm")
def peer_norm(build: Build) -> nn.Module:
    """Build a layer, group or position norm around a peer's Parameters, centered if the peer's is."""
    peer: Any = build.layer
    name = type(peer).__name__
    options: dict[str, Any] = {"eps": peer.eps, "centred": "Uncentered" not in name}
    if isinstance(peer, nn.GroupNorm):
        cls: type[nn.Module] = bnn.GroupNorm
        options |= {"num_groups": peer.num_groups, "num_channels": peer.num_channels, "affine": peer.affine}
    else:
        cls = bnn.PositionNorm if "PositionNorm" in name else bnn.LayerNorm
        options |= {"normalized_shape": peer.normalized_shape, "elementwise_affine": peer.elementwise_affine}
    if peer.bias is not None and peer.weight is None:
        raise Refused("it has a shift without a scale")
    affine = "affine" if "affine" in options else "elementwise_affine"
    norm: Any = construct(cls, options | {affine: peer.weight is not None, "bias": peer.bias is not None})
    norm.weight, norm.bias = peer.weight, peer.bias
    return norm.train(peer.training)  # type: ignore[no-any-return]


@builder("peer-logit-layer")
def peer_logit_layer(build: Build) -> nn.Module:
    """Build a logit layer with a peer's bias and temperature; the peer may lack either."""
    peer: Any = build.layer
    bias, temperature = peer.logit_bias, peer.logit_temperature
    try:
        return bnn.LogitLayer(0.0 if bias is None else float(bias), 1.0 if temperature is None else float(temperature))
    except UsageError as error:
        raise Refused(error.what) from error
