"""Builders for layers, norms, pools and activations: as modules of their own, in B-cos form, and without biases."""

from __future__ import annotations

import inspect
import math
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from bcos_fx import nn as bnn
from bcos_fx.nn.construction import adopt_tensors, construct, constructor_options, rebuilt
from bcos_fx.rewriting.core.build import Build, Refused, module_form
from bcos_fx.rewriting.core.ops import Call, vocabulary
from bcos_fx.rewriting.core.options import PUBLISHED
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder
from bcos_fx.rewriting.core.spelling import resolve
from bcos_fx.rewriting.core.stored import sources_of
from bcos_fx.tracing.program import attribute

# ---------------------------------------------------------------- functional calls as modules


@builder("module-form")
def as_module(build: Build) -> nn.Module:
    """Build the module of a parameterless functional call, with those of the call's options that it has."""
    return module_form(build.call)


@builder("layer-from-parameters")
def layer_from_parameters(build: Build) -> nn.Module:
    """Build a linear or convolution module around the very Parameters of a functional call."""
    weight, bias = build.tensor("weight"), build.tensor("bias")
    return _layer(build.call, weight, bias)


def _layer(call: Call, weight: Tensor | None, bias: Tensor | None) -> nn.Module:
    if weight is None:
        raise Refused("its weight is not a stored tensor")
    names = ("stride", "padding", "dilation", "groups", "output_padding")
    options = {name: value for name, value in call.arguments.items() if name in names}
    shape = weight.shape
    if call.op.name == "linear":
        options |= {"in_features": shape[1], "out_features": shape[0]}
    else:
        groups = int(options["groups"])
        # A transposed convolution's weight holds its inputs first, and its outputs by group.
        transposed = "transpose" in call.op.name
        inside, outside = (shape[0], shape[1] * groups) if transposed else (shape[1] * groups, shape[0])
        options |= {"in_channels": inside, "out_channels": outside, "kernel_size": tuple(shape[2:])}
    layer: nn.Module = construct(resolve(call.op.modules[0]), options | {"bias": bias is not None})
    layer._parameters |= {"weight": as_parameter(weight), "bias": None if bias is None else as_parameter(bias)}
    return layer


@builder("layer-from-computed-parameters")
def layer_from_computed_parameters(build: Build) -> nn.Module:
    """Build a linear or convolution module with a functional call's computed weight and bias as new Parameters."""
    parameters: dict[str, Tensor | None] = {"weight": None, "bias": None}
    for name in parameters:
        for node in build.call.nodes(name):
            stored = build.tensor(name) if node.op == "get_attr" else None
            parameters[name] = computed_parameter(build.reader, node) if stored is None else stored
    return _layer(build.call, parameters["weight"], parameters["bias"])


def computed_parameter(reader: GraphReader, node: fx.Node) -> nn.Parameter:
    """Return what a node comes to, as a new Parameter that is trained if one of those that it is computed from is."""
    read = [n for n in sources_of(node) if n.op == "get_attr"]
    tensors = [attribute(reader.graph_module, str(n.target)) for n in read]
    trained = any(isinstance(tensor, nn.Parameter) and tensor.requires_grad for tensor in tensors)
    return nn.Parameter(reader.stored_value(node).detach().clone(), trained)


@builder("batch-norm-from-parameters")
def batch_norm_from_parameters(build: Build) -> nn.Module:
    """Build a batch-norm module around the tensors of a functional call."""
    arguments = build.call.arguments
    mean, variance = build.tensor("running_mean"), build.tensor("running_var")
    if mean is None or variance is None:
        raise Refused("without running statistics its output depends on the other samples of the batch")
    shape = build.reader.shape(build.call.inputs[0]) or ()
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(shape))
    if cls is None:
        raise Refused("the rank of its input is not known")
    weight, bias = build.tensor("weight"), build.tensor("bias")
    norm = cls(len(mean), eps=arguments["eps"], momentum=arguments["momentum"], affine=weight is not None)
    norm._buffers |= {"running_mean": mean, "running_var": variance}
    if weight is not None and bias is not None:
        norm._parameters |= {"weight": as_parameter(weight), "bias": as_parameter(bias)}
    elif weight is not None or bias is not None:
        raise Refused("it has a scale without a shift, or a shift without a scale")
    return norm


@builder("norm-from-parameters")
def norm_from_parameters(build: Build) -> nn.Module:
    """Build a layer, group or RMS norm module around the very Parameters of a functional call."""
    call = build.call
    cls = resolve(call.op.modules[0])
    options = {
        name: call.arguments[name] for name in ("normalized_shape", "num_groups", "eps") if name in call.arguments
    }
    weight, bias = build.tensor("weight"), build.tensor("bias")
    shape = build.reader.shape(call.inputs[0])
    if "num_groups" in options:
        if shape is None:
            raise Refused("the number of its channels is not known")
        options["num_channels"] = shape[1]
    if weight is None and bias is not None:
        raise Refused("it has a shift without a scale")
    affine = "affine" if "num_groups" in options else "elementwise_affine"
    options[affine] = weight is not None
    if call.op.name == "layer_norm":
        options["bias"] = bias is not None
    elif call.op.name == "group_norm" and weight is not None and bias is None:
        cls, options = bnn.GroupNorm, options | {"bias": False}  # torch's own cannot have a scale without a shift
    norm: nn.Module = construct(cls, options)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            norm._parameters[name] = as_parameter(tensor)
    return norm


@builder("global-average-pool")
def global_average_pool(build: Build) -> nn.Module:
    """Build the canonical global pooling: an adaptive average to one pixel."""
    return nn.AdaptiveAvgPool2d(1)


@builder("flatten-features")
def flatten_features(build: Build) -> nn.Module:
    """Build the canonical flattening: everything from the channels on."""
    return nn.Flatten(1)


def as_parameter(tensor: Tensor) -> nn.Parameter:
    """Return a Parameter as it is; a plain tensor as a Parameter that is not trained."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)


def new_parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """Return a Parameter of its own that is trained if ``like`` is."""
    return nn.Parameter(values.detach().clone().contiguous(), requires_grad=like.requires_grad)


# ---------------------------------------------------------------- structure


@builder("pointwise-conv")
def pointwise_conv(build: Build) -> nn.Module:
    """Build the 1x1 convolution that equals a linear layer applied to each pixel."""
    linear = build.layer
    if not isinstance(linear, nn.Linear):
        raise Refused("it is not a linear layer")
    options = {"in_channels": linear.in_features, "out_channels": linear.out_features, "kernel_size": 1}
    conv = construct(nn.Conv2d, options | {"bias": linear.bias is not None})
    conv.weight = new_parameter(linear.weight[:, :, None, None], linear.weight)
    conv.bias = linear.bias
    return conv.train(linear.training)


@builder("spatial-batch-norm")
def spatial_batch_norm(build: Build) -> nn.Module:
    """Build the batch norm over maps that equals a batch norm over vectors, with the same tensors."""
    norm = build.layer
    spatial = construct(nn.BatchNorm2d, constructor_options(norm))
    adopt_tensors(spatial, norm)
    return spatial.train(norm.training)


# ---------------------------------------------------------------- norms and layers


@builder("bcos-norm")
def bcos_norm(build: Build) -> nn.Module:
    """Build the form of a norm for B-cos networks: an uncentered batch norm, or a norm with 1/sigma split off."""
    plain: nn.Module = build.layer
    norm: Any = vocabulary().form_of(type(plain))
    if norm is None:
        raise Refused(f"no layer of the op vocabulary is the form of {type(plain).__name__} that B-cos networks use")
    return norm.from_plain(plain)  # type: ignore[no-any-return]


@builder("bcos-layer")
def bcos_layer(build: Build) -> nn.Module:
    """Build the B-cos form of a linear or convolution layer at B = 1, around the same Parameters."""
    plain = build.layer
    cls = vocabulary().form_of(type(plain))
    if cls is None and isinstance(plain, NonDynamicallyQuantizableLinear):  # it computes what Linear does
        cls, quantizable = bnn.BcosLinear, plain
        plain = construct(nn.Linear, constructor_options(quantizable))
        adopt_tensors(plain, quantizable)
    if cls is None or not issubclass(cls, bnn.BcosLayer):
        raise Refused(f"no layer of the op vocabulary is the B-cos form of {type(plain).__name__}")
    eps = build.options.eps
    stabilizer: dict[str, Any] = cls.published_eps() if eps == PUBLISHED else {"eps": eps}
    return cls.from_plain(plain, b=1.0, scale=build.options.scale, **stabilizer)


@builder("in-place-rectifier")
def in_place_rectifier(build: Build) -> nn.Module:
    """Build a rectifier that overwrites its input."""
    return {"relu": nn.ReLU, "relu6": nn.ReLU6}[build.call.op.name](inplace=True)


@builder("in-place-sum")
def in_place_sum(build: Build) -> nn.Module:
    """Build a sum that overwrites its first operand."""
    return bnn.InPlaceSum()


# ---------------------------------------------------------------- changing the function


@builder("average-pool")
def average_pool(build: Build) -> nn.Module:
    """Build the average pooling with a max pooling's window, stride, padding and rounding."""
    arguments = build.call.arguments
    classes: dict[str, type[nn.Module]] = {"1": nn.AvgPool1d, "2": nn.AvgPool2d, "3": nn.AvgPool3d}
    stride = arguments["stride"] or arguments["kernel_size"]  # as torch takes a stride that is left out
    cls = classes[build.call.op.name[-2]]
    return cls(arguments["kernel_size"], stride, arguments["padding"], ceil_mode=arguments["ceil_mode"])


@builder("without-bias")
def without_bias(build: Build) -> nn.Module:
    """Build the same layer without its bias or shift."""
    layer = build.layer
    constant = "shift" if hasattr(layer, "shift") else "bias"
    if constant not in inspect.signature(type(layer)).parameters:
        raise Refused(f"the constructor of {type(layer).__name__} has no argument {constant!r} to leave it out by")
    return rebuilt(layer, **{constant: False})


@builder("raised-layer")
def raised_layer(build: Build) -> nn.Module:
    """Build the same B-cos layer with the B that the options give."""
    return rebuilt(build.layer, b=build.options.pressure(str(build.call.node.target), build.layer))


@builder("logit-layer")
def logit_layer(build: Build) -> nn.Module:
    """Build a logit layer, by default with bias log(1 / (C - 1)): every class starts at probability 1 / C."""
    shape = build.reader.shape(build.call.inputs[0]) or (0, 2)
    bias = build.options.logit_bias
    return bnn.LogitLayer(
        bias=math.log(1 / (shape[1] - 1)) if bias is None else bias, temperature=build.options.temperature
    )
