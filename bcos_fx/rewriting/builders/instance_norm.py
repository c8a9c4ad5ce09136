"""Instance norms: as calls, and with the running statistics of a batch norm (Ulyanov et al. 2016, section 2)."""

from __future__ import annotations

from torch import nn

from bcos_fx.nn.construction import construct
from bcos_fx.rewriting.builders.layers import as_parameter
from bcos_fx.rewriting.core.build import Build, Refused
from bcos_fx.rewriting.core.match import Verdict
from bcos_fx.rewriting.core.ops import Call
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.registry import builder, predicate

_INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
_BATCH_NORMS = {3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


@predicate("uses-running-statistics")
def uses_running_statistics(reader: GraphReader, call: Call) -> Verdict:
    """Check that the instance norm uses stored statistics in eval: a module that keeps them, or a call given them."""
    if call.arguments.get("running_mean") is None or call.arguments.get("running_var") is None:
        return False
    return call.module is not None or call.arguments["use_input_stats"] is False


@predicate("uses-its-own-statistics")
def uses_its_own_statistics(reader: GraphReader, call: Call) -> Verdict:
    """Check that the call computes the statistics of each sample, and keeps none."""
    return call.arguments["use_input_stats"] is True and call.arguments.get("running_mean") is None


@builder("batch-norm-from-instance-norm")
def batch_norm_from_instance_norm(build: Build) -> nn.Module:
    """Build a batch norm with an instance norm's statistics, scale and shift: in eval the same affine function."""
    norm = build.layer
    cls = _BATCH_NORMS[_rank(build)]
    options = {name: getattr(norm, name) for name in ("num_features", "eps", "momentum", "affine")}
    batch_norm: nn.Module = construct(cls, options)
    batch_norm._parameters |= dict(norm._parameters)
    batch_norm._buffers |= dict(norm._buffers)
    return batch_norm


@builder("instance-norm-from-parameters")
def instance_norm_from_parameters(build: Build) -> nn.Module:
    """Build an instance norm module around the very Parameters of a functional call."""
    weight, bias = build.tensor("weight"), build.tensor("bias")
    if (weight is None) != (bias is None):
        raise Refused("it has a scale without a shift, or a shift without a scale")
    rank = _rank(build)
    shape = build.reader.shape(build.call.inputs[0]) or ()
    options = {"num_features": shape[1], "eps": build.call.arguments["eps"], "affine": weight is not None}
    norm: nn.Module = construct(_INSTANCE_NORMS[rank], options)
    if weight is not None and bias is not None:
        norm._parameters |= {"weight": as_parameter(weight), "bias": as_parameter(bias)}
    return norm


def _rank(build: Build) -> int:
    """Return the number of dimensions of what the norm reads, with the samples as the first."""
    rank = len(build.reader.shape(build.call.inputs[0]) or ())
    whole = build.call.module is None or isinstance(build.call.module, _INSTANCE_NORMS.get(rank, ()))
    if rank not in _INSTANCE_NORMS or not whole:
        raise Refused("its input has no dimension of samples, or a rank that is not known")
    return rank
