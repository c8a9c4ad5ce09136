"""Making freshly built networks answer differently to different inputs.

A network as its constructor leaves it is a poor subject: batch norm has mean 0 and variance 1 whatever flows
through it, layer scales are 1e-6 or zero, heads are zero, and deep ones answer the same to everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bcos_fx.errors import UsageError
from bcos_fx.nn import BcosLayer
from bcos_fx.nn.batchnorm import _BatchNormUncentred
from bcos_fx.nn.norms import NormLayer
from bcos_fx.tracing.modules import keep_modes

M = TypeVar("M", bound=nn.Module)


def _tracked(module: nn.Module) -> list[_NormBase]:
    return [part for part in module.modules() if isinstance(part, _NormBase) and part.running_mean is not None]


@torch.no_grad()
def randomise_(module: M, seed: int = 0) -> M:
    """Give every parameter and norm statistic a random value of order one, in place.

    Weights are drawn with variance 2 / fan-in (He et al., ICCV 2015, section 2.2), so activations keep their size;
    scales, one number per channel in whatever shape, around 1, with a few negative; biases and means around 0. What
    was zero or a tiny constant (layer scales, zero-initialized heads) gets such values too.

    Args:
        module: its parameters and running statistics are overwritten; shared ones once.
        seed: of a private generator; the global one is not touched.

    Returns:
        The module itself.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        fan_in = parameter[0].numel() if parameter.dim() >= 2 else 1
        if fan_in != 1:
            value = noise * math.sqrt(2 / max(fan_in, 1))
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = (1 + 0.25 * noise) * torch.where(noise > 1.5, -1.0, 1.0)
        parameter.copy_(value)
    for part in _tracked(module):
        mean, variance = part.running_mean, part.running_var
        if mean is not None and variance is not None:
            mean.copy_(0.2 * torch.randn(mean.shape, generator=generator, dtype=torch.float64))
            variance.copy_(0.5 + torch.rand(variance.shape, generator=generator, dtype=torch.float64))
    return module


def norm_statistics_from_data_(module: M, inputs: Tensor | tuple[Tensor, ...]) -> M:
    """Set the running statistics of all norms to those of ``inputs``, in one pass, in place.

    The norms alone run in train mode, so each one sees its predecessors already normalized with the same
    batch. A norm that is called several times gets the average over its calls. Training flags, momenta and
    everything else stay as they were.

    Args:
        module: only its norms' running statistics are overwritten.
        inputs: a tensor (N, ...) or the positional arguments, of at least two samples.

    Returns:
        The module itself.

    Raises:
        UsageError: a norm sees one value per channel, which has no variance.
    """
    norms = _tracked(module)
    with _training_only(module, norms), torch.no_grad():
        for part in norms:
            part.reset_running_stats()
            part.momentum = None
        try:
            module(*inputs) if isinstance(inputs, tuple) else module(inputs)
        except ValueError as error:
            raise UsageError(f"no statistics from these inputs: {error}", hint="give more or larger inputs") from error
    return module


def unit_gain_from_data_(network: M, images: Tensor) -> M:
    """Rescale every B-cos layer and norm so that what it makes of its input has deviation 1, in one pass, in place.

    Raising B shrinks activations, and in a deep network of random weights they vanish. The layers are set in the order
    in which they run, each on what those before it now give. A layer that is called several times is set at its first
    call; one whose output does not vary at all stays as it is.

    Args:
        network: weights (or gains, where the scale is ``unit``) are overwritten; biases and shifts are not.
        images: (N, ...), what the network takes.

    Returns:
        The network itself.
    """
    layers = [part for part in network.modules() if isinstance(part, BcosLayer | NormLayer | _BatchNormUncentred)]
    handles = [layer.register_forward_hook(_set_gain_once()) for layer in layers]
    try:
        with torch.no_grad():
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return network


def _set_gain_once() -> Callable[[Any, tuple[Tensor, ...], Tensor], Tensor | None]:
    done = False

    def hook(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        nonlocal done
        scaled = getattr(layer, "gain", None) if getattr(layer, "gain", None) is not None else layer.weight
        deviation = float(output.std())
        if done or scaled is None or not (math.isfinite(deviation) and deviation > 0):
            return None
        done = True
        # With the scale "raw" a layer's output grows with |w|^B, otherwise with |w|.
        power = layer.b if getattr(layer, "scale", None) == "raw" else 1.0
        scaled.mul_(deviation ** (-1 / power))
        result: Tensor = layer.forward(*inputs)
        return result

    return hook


@contextmanager
def _training_only(module: nn.Module, parts: list[_NormBase]) -> Iterator[None]:
    """Put ``parts`` in train mode and the rest in eval mode; restore modes, and the parts' momenta, afterwards."""
    momenta = [part.momentum for part in parts]
    with keep_modes(module):
        module.eval()
        for part in parts:
            part.training = True
        try:
            yield
        finally:
            for part, momentum in zip(parts, momenta, strict=True):
                part.momentum = momentum
