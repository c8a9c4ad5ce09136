"""Checkpoints in the layouts of the published codes, written from any plain network: keys and shapes are theirs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def layers(part: nn.Module, renumber: bool, path: str = "", own: str = "") -> Iterator[tuple[str, str, nn.Module]]:
    """Path in the file, path in the network, and module of every part that holds tensors."""
    for place, (name, below) in enumerate(part.named_children()):
        called = str(place) if renumber and isinstance(part, nn.Sequential) else name
        if any(True for _ in below.children()):
            yield from layers(below, renumber, f"{path}{called}.", f"{own}{name}.")
        else:
            yield f"{path}{called}", f"{own}{name}", below


def state(
    network: nn.Module, *, plain: tuple[str, ...] = (), head: str = "", renumber: bool = True
) -> dict[str, Tensor]:
    """The state of the B-cosified network, without prefixes.

    Args:
        network: the plain one, whose weights it holds.
        plain: ends of the paths of layers that stay as they are.
        head: path of the classifier that became a 1 x 1 convolution.
        renumber: name the parts of an ``nn.Sequential`` by their places.
    """
    found: dict[str, Tensor] = {}
    for path, own, part in layers(network, renumber):
        if isinstance(part, nn.Conv2d | nn.Linear):
            weight = part.weight.detach().clone()
            if isinstance(part, nn.Conv2d) and weight.shape[1] == 3:
                weight = both_halves(weight, 1)
            if own == "embed" and getattr(network, "stem", None) is None:
                weight = both_halves(weight.view(len(weight), -1, 3), 2).flatten(1)
            if own == head:
                weight = weight[:, :, None, None]
            inner = not own.endswith(plain) if plain else True
            found[f"{path}.linear.weight" if inner else f"{path}.weight"] = weight
            continue
        for name, tensor in part.state_dict().items():
            if name == "running_mean":  # kept and never read
                found[f"{path}.{name}"] = torch.full_like(tensor, 7.0)
            elif name != "bias":
                found[f"{path}.{name}"] = tensor.clone()
    found |= {name: buffer.clone() for name, buffer in network.named_buffers(recurse=False)}
    return found


def both_halves(weight: Tensor, dim: int) -> Tensor:
    """[w/2 + s, -w/2 + s]: as after training, no mirror image of each other; their difference is w."""
    shift = 0.1 * torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(3))
    return torch.cat([weight / 2 + shift, -weight / 2 + shift], dim)


def training_checkpoint(own: dict[str, Tensor], path: Path, *, averaged: bool = False, b: Any = 2) -> Path:
    """As the training of B-cosification saves it."""
    tensors = {f"model.model.{name}": tensor for name, tensor in own.items()}
    if averaged:
        tensors["ema.n_averaged"] = torch.tensor(5)
        tensors |= {f"ema.module.model.{n}": t * 2 if t.is_floating_point() else t for n, t in own.items()}
    settings = {"dataset": "ImageNet", "model": {"name": "net", "bcos_args": {"b": b, "max_out": 1}}}
    content = {"epoch": 89, "global_step": 5, "pytorch-lightning_version": "2.0.0", "state_dict": tensors}
    torch.save({**content, "hyper_parameters": settings}, path)
    return path
