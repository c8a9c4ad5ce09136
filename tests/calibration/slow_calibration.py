"""Calibration the slow way: for every layer the whole network is run again, in one batch, and hooks look on.

Nothing of bcos_fx.calibration is used. Layers are given by path, in the order in which they run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def seen(network: nn.Module, path: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """First input and output of the submodule at a path; copies, for later layers write in place."""
    found: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend((args[0].detach().clone(), output.detach().clone()))

    handle = network.get_submodule(path).register_forward_hook(note)
    try:
        with torch.no_grad():
            network(x)
    finally:
        handle.remove()
    return found[0], found[1]


def channels(values: Tensor, linear: bool = False) -> list[Tensor]:
    """The values of each channel."""
    moved = values.movedim(-1 if linear else 1, 0)
    return [channel.flatten().double() for channel in moved]


def weight_of(layer: nn.Module, index: int) -> Tensor:
    """The weights of one output channel, as a view."""
    if isinstance(layer, nn.ConvTranspose2d):
        group, column = divmod(index, layer.out_channels // layer.groups)
        rows = layer.in_channels // layer.groups
        return layer.weight[group * rows : (group + 1) * rows, column]
    return layer.weight[index]


def varies(values: Tensor) -> bool:
    return float(values.max() - values.min()) > 1e-12


@torch.no_grad()
def set_statistics(network: nn.Module, path: str, x: Tensor) -> None:
    """Give a batch norm the mean and the unbiased variance of its input."""
    norm = network.get_submodule(path)
    for index, values in enumerate(channels(seen(network, path, x)[0])):
        if norm.running_mean is not None:
            norm.running_mean[index] = values.sum() / len(values)
        mean = values.sum() / len(values)
        norm.running_var[index] = sum((value - mean) ** 2 for value in values) / (len(values) - 1)


@torch.no_grad()
def match_deviation(network: nn.Module, path: str, x: Tensor, wanted: Tensor) -> None:
    """Give a layer's output the deviation, and with a bias the mean, of another."""
    layer = network.get_submodule(path)
    linear = isinstance(layer, nn.Linear)
    _, output = seen(network, path, x)
    for index, (has, want) in enumerate(zip(channels(output, linear), channels(wanted, linear), strict=True)):
        factor = want.std() / has.std() if varies(want) and varies(has) else torch.tensor(1.0)
        weight_of(layer, index).mul_(factor ** (1 / layer.b if getattr(layer, "scale", "") == "raw" else 1))
        if layer.bias is not None:
            layer.bias[index] = want.mean() - factor * (has.mean() - layer.bias[index])


@torch.no_grad()
def match_power(network: nn.Module, path: str, x: Tensor, wanted: Tensor, *, rectified: bool) -> None:
    """Scale a layer's output until it, or before a rectifier its positive part, has the power of another's."""
    layer = network.get_submodule(path)
    linear = isinstance(layer, nn.Linear)
    _, output = seen(network, path, x)
    for index, (has, want) in enumerate(zip(channels(output, linear), channels(wanted, linear), strict=True)):
        read = [values.clamp(min=0) if rectified else values for values in (want, has)]
        if not (read[0].any() and read[1].any() and varies(want) and varies(has)):
            continue  # nothing gets through a rectifier, whatever the factor, or always the same
        factor = (read[0].square().mean() / read[1].square().mean()).sqrt()
        weight_of(layer, index).mul_(factor ** (1 / layer.b if getattr(layer, "scale", "") == "raw" else 1))
        if layer.bias is not None:
            layer.bias[index] *= factor


def slowly(network: nn.Module, x: Tensor, kind: Any, original: nn.Module | None) -> None:
    """Calibrate in place; ``original`` is the converted network at B = 1, or None for statistics alone.

    The kind says its ``norms``, the ``order`` of all layers, and after which of them a rectifier follows.
    """
    for path in kind.order if original is not None else kind.norms:
        if path in kind.norms:
            set_statistics(network, path, x)
        if original is not None:
            match_deviation(network, path, x, seen(original, path, x)[1])
        if original is not None:
            match_power(network, path, x, seen(original, path, x)[1], rectified=path in kind.rectified)
