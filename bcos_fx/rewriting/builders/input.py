"""Builders for the input: encoding, the fixed normalization map, and first layers on encoded channels.

The encoded input e = [x, 1 - x] passes a fixed, bias-free map to [x', -x'], where x' is what the original network
expects. A *decoding* takes that back to x', so that the network is whole and unchanged at every step; rules then
move the decoding toward the first layers and absorb it into their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx import nn as bnn
from bcos_fx.nn.construction import rebuilt
from bcos_fx.rewriting.builders.layers import new_parameter
from bcos_fx.rewriting.core.build import Build, Refused, Rewired
from bcos_fx.rewriting.core.channels import encoded_axis, image_channels
from bcos_fx.rewriting.core.options import Options
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder
from bcos_fx.tracing.program import attribute

WIDENING = {nn.Linear: "in_features", nn.Conv1d: "in_channels", nn.Conv2d: "in_channels", nn.Conv3d: "in_channels"}


@builder("input-encoding")
def input_encoding(build: Build) -> nn.Module:
    """Build the layer that encodes x as [x, 1 - x] along the channels."""
    return bnn.InputEncoding(dim=_axis(build))


@builder("input-decoding")
def input_decoding(build: Build) -> nn.Module:
    """Build the layer that halves the channels, [x', -x'] -> x': half the first half minus half the second."""
    return bnn.InputDecoding(dim=_axis(build))


def _axis(build: Build) -> int:
    """Return the dimension of the matched input that holds its channels."""
    axis = image_channels(build.reader, build.call.node)
    if isinstance(axis, str):
        raise Refused(axis)
    return axis


def input_affine(options: Options, channels: int) -> tuple[Tensor, Tensor]:
    """Return (A, a) with A x + a the input that the original expects, for x in [0, 1] in RGB order.

    Returns:
        A (C, C) and a (C,), float64.
    """
    mean = torch.tensor(options.mean or (0.0,) * channels, dtype=torch.float64)
    std = torch.tensor(options.std or (1.0,) * channels, dtype=torch.float64)
    order = torch.eye(channels, dtype=torch.float64)
    if options.channels == "bgr":
        order = order.flip(0)
    return options.pixel_max * order / std[:, None], -mean / std


@builder("input-normalisation")
def input_normalization(build: Build) -> nn.Module:
    """Build the fixed bias-free map from [x, 1 - x] to [x', -x'], x' = (pixel_max * x - mean) / std."""
    shape = build.reader.shape(build.call.node)
    if shape is None:
        raise Refused("the number of its channels is not known")
    axis = _axis(build)
    return _normalization(build, *input_affine(build.options, shape[axis]), axis)


def _normalization(build: Build, matrix: Tensor, offset: Tensor, axis: int) -> bnn.InputNormalisation:
    like = next((t for t in build.reader.graph_module.parameters() if t.is_floating_point()), torch.empty(0))
    return bnn.InputNormalisation(matrix, offset, like.device, like.dtype, axis)


@builder("absorbed-normalisation")
def absorbed_normalization(build: Build) -> nn.Module:
    """Build the normalization map that absorbs the shift or scale per channel that follows it."""
    calls = build.hit.calls
    normalization = calls["normalisation"].module
    if not isinstance(normalization, bnn.InputNormalisation):
        raise Refused("there is no normalization before it")
    matrix = torch.tensor(normalization.matrix, dtype=torch.float64)
    offset = torch.tensor(normalization.offset, dtype=torch.float64)
    step = calls["step"]
    other = _constant(build, step.arguments["other"]).to(matrix)
    name = step.op.name
    if name in ("mul", "div"):
        factor = other if name == "mul" else 1 / other
        matrix, offset = matrix * factor.reshape(-1, 1), offset * factor
    else:
        offset = offset + (other if name == "add" else -other)
    return _normalization(build, matrix, offset.expand(matrix.shape[0]), normalization.dim)


def _constant(build: Build, value: object) -> Tensor:
    if isinstance(value, fx.Node):
        stored = attribute(build.reader.graph_module, str(value.target))
        if isinstance(stored, Tensor):
            return stored.detach().reshape(-1).double()
    if isinstance(value, int | float):
        return torch.tensor([value], dtype=torch.float64)
    raise Refused(f"its constant {value!r} is not stored")


@builder("widened-layer")
def widened_layer(build: Build) -> Rewired:
    """Build the layer on [x', -x'] with weights [w/2, -w/2]: exact at B = 1, above it by the angle of w to x'."""
    layer = build.layer
    name = WIDENING.get(type(layer))
    if name is None:
        raise Refused(f"{type(layer).__name__} cannot be widened")
    wide = rebuilt(layer, **{name: 2 * int(getattr(layer, name))})
    weight = layer._parameters["weight"]
    if weight is None:
        raise Refused("it has no weight")
    wide._parameters["weight"] = new_parameter(bnn.widen(weight.detach()), weight)
    return Rewired(wide, metadata_moved(build.reader, build.hit.nodes["decoding"]), {})


def metadata_moved(
    reader: GraphReader, decoding: fx.Node, without: Sequence[fx.Node] = ()
) -> dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return new arguments for what reads of a decoding only what its input has too: type, device, or another size.

    So no decoding stays behind for the sake of its metadata. Reads of the number of channels stay.
    """
    source, axis = decoding.all_input_nodes[0], encoded_axis(reader, decoding)
    moved = {}
    for user in decoding.users:
        if user.meta.get("type") not in ("size", "other") or user in without:
            continue
        name = user.args[1] if len(user.args) > 1 else None
        size = user.target == "size" and isinstance(name, int) and name % len(reader.shape(decoding) or (0,)) != axis
        if size or name in ("dtype", "device"):
            moved[user] = ((source, *user.args[1:]), dict(user.kwargs))
    return moved


@builder("folded-layer")
def folded_layer(build: Build) -> nn.Module:
    """Build the widened layer with the normalization map inside its kernel, so that it reads [x, 1 - x] itself."""
    layer, normalization = build.layer, build.hit.calls["normalisation"].module
    weight = layer._parameters["weight"]
    if weight is None or not isinstance(normalization, bnn.InputNormalisation):
        raise Refused("there is nothing to fold")
    # The layer is wide already: the first half of its kernel, doubled, is the kernel on x'.
    plain = 2 * weight.detach().chunk(2, dim=1)[0]
    folded = bnn.fold(plain, normalization.matrix, normalization.offset)
    new = rebuilt(layer, **{WIDENING[type(layer)]: folded.shape[1]})
    new._parameters["weight"] = new_parameter(folded, weight)
    return new
