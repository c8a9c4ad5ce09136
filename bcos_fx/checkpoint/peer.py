"""Weights of networks of the package ``bcos`` 0.1: into a converted network, and back under that package's names.

A converted network keeps the names of the original's modules. Two things differ: the package's B-cos layers hold their
weight in an inner layer (``layer.linear.weight``), and its uncentered batch norms carry a running mean that they never
use. Which layers came from the package is read off the network's report.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bcos_fx.errors import CheckpointError, UsageError, nearest
from bcos_fx.escaping import listed
from bcos_fx.network import BcosNetwork

_TRANSFORMS = ("peer_bcos_conv2d", "peer_bcos_linear", "peer_bcos_raw_conv2d", "peer_bcos_raw_linear")
_BATCH_NORM = "peer_batch_norm2d"
_SHOWN = 5


@dataclass(frozen=True)
class _Entry:
    """One tensor of a peer's state dict; ``tensor`` is ours, or what stands for one that the peer never uses."""

    key: str
    tensor: Tensor
    used: bool = True


def load_peer_state(network: BcosNetwork, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of the package ``bcos`` into the converted network of the same architecture, in place.

    Args:
        network: made by ``bcosify`` from a network of that package; its parameters and buffers are overwritten.
        state: the peer's ``state_dict()``, or what :func:`~bcos_fx.checkpoint.read_state_dict` found in a file.

    Raises:
        UsageError: the network did not come from that package, or was changed since.
        CheckpointError: a key is missing, is too many or has another shape. Nothing is changed then.
    """
    entries = {entry.key: entry for entry in _entries(network)}
    missing = [key for key, entry in entries.items() if entry.used and key not in state]
    unexpected = [key for key in state if key not in entries]
    misshapen = [key for key in state if key in entries and state[key].shape != entries[key].tensor.shape]
    if missing or unexpected or misshapen:
        raise _does_not_fit(entries, state, missing, unexpected, misshapen)
    with torch.no_grad():
        for key, entry in entries.items():
            if entry.used:
                entry.tensor.copy_(state[key])


def peer_state(network: BcosNetwork) -> dict[str, Tensor]:
    """Return the network's weights under the names that the package ``bcos`` gives them.

    Args:
        network: made by ``bcosify`` from a network of that package; it is not changed.

    Returns:
        What the original loads with ``load_state_dict(..., strict=True)``: copies, on the network's device and in its
        dtype.

    Raises:
        UsageError: the network did not come from that package, or holds what the original has no place for.
    """
    if network.report.unused:
        raise UsageError(
            "the original has parameters that its graph never uses, and the network does not hold them",
            where=listed(network.report.unused, _SHOWN),
            hint="load what there is into the original with strict=False",
        )
    return {entry.key: entry.tensor.detach().clone() for entry in _entries(network)}


def _entries(network: BcosNetwork) -> Iterator[_Entry]:
    came_as = {row.module: row.was for row in network.report.nodes if row.module is not None}
    if not set(came_as.values()) & {*_TRANSFORMS, _BATCH_NORM}:
        raise UsageError(
            "the network did not come from the package bcos",
            hint="use load_state_dict and state_dict; a network keeps the names of its original",
        )
    for path, module in network.named_modules(remove_duplicate=False):
        yield from _of_module(path, module, str(came_as.get(path)))


def _of_module(path: str, module: nn.Module, was: str) -> Iterator[_Entry]:
    prefix = f"{path}." if path else ""
    for name, tensor in {**module._parameters, **module._buffers}.items():
        if tensor is None or name in module._non_persistent_buffers_set or _is_recorded(path, name):
            continue
        if was in _TRANSFORMS and name == "gain" and not tensor.requires_grad:
            continue  # a number of the peer's constructor
        if was in _TRANSFORMS and name != "weight":
            raise UsageError(
                "the layer has a parameter for which a layer of the package bcos has no place", where=f"{prefix}{name}"
            )
        if was == _BATCH_NORM and name == "running_mean":
            continue
        yield _Entry(f"{prefix}linear.weight" if was in _TRANSFORMS else f"{prefix}{name}", tensor)
    if was == _BATCH_NORM:
        yield _Entry(f"{prefix}running_mean", torch.zeros_like(module.running_var), used=False)  # type: ignore[arg-type]


def _is_recorded(path: str, name: str) -> bool:
    """Return whether tracing made the tensor from a number or a tensor of the original's code."""
    return not path and name.startswith("constant_") and name.removeprefix("constant_").isdigit()


def _does_not_fit(
    entries: Mapping[str, _Entry],
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
) -> CheckpointError:
    shapes = [f"{key} {tuple(state[key].shape)}, not {tuple(entries[key].tensor.shape)}" for key in misshapen]
    problems = [
        f"{len(names)} {problem}: {listed(names, _SHOWN)}"
        for problem, names in (("missing", missing), ("unknown", unexpected), ("of another shape", shapes))
        if names
    ]
    hint = nearest(unexpected[0], list(entries)) if unexpected else "give the weights of the same architecture"
    return CheckpointError("the weights are not those of this network", where="; ".join(problems), hint=hint)
