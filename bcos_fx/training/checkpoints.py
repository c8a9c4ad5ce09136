"""Checkpoints of a run: whole or not there, of this run or refused, and opened without running anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from bcos_fx.errors import TrainingError, UsageError
from bcos_fx.files import replacing
from bcos_fx.rewriting.network import BcosNetwork
from bcos_fx.training.recipe import Training

NAME = "last.ckpt"
KEY = "bcos_fx"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the last one and renames it; reads tensors and plain data only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            TrainingError: it cannot be written; the one before is still there.
        """
        hint = ("the last one is whole: " if Path(path).is_file() else "") + "make room, and go on with resume"
        try:
            with replacing(Path(path), "the checkpoint", error=TrainingError, hint=hint) as stream:
                torch.save(checkpoint, stream)
        except RuntimeError as error:  # torch's own, where a write of its archive fails
            reason = str(error).partition("\n")[0]
            raise TrainingError(f"the checkpoint cannot be written: {reason}", where=str(path), hint=hint) from error

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        """Read a checkpoint."""
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is run.

    Raises:
        UsageError: it is damaged, or something else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises for a file that is none of its own is anything
        raise UsageError(
            f"the checkpoint cannot be read: {str(error).partition(chr(10))[0]}",
            where=str(path),
            hint="delete it to begin anew; a checkpoint that this writes is whole or not there",
        ) from error
    if not isinstance(found, dict) or KEY not in found:
        raise UsageError(
            "this is no checkpoint of a fine-tuning", where=str(path), hint="delete it, or use another folder"
        )
    return found


def identity(network: nn.Module, training: Training, images: int) -> dict[str, Any]:
    """Return what a checkpoint must have in common with the run that goes on from it, as plain data."""
    shapes = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    nodes = [f"{n.op} {_named(n.target)}" for n in network.graph.nodes] if isinstance(network, BcosNetwork) else []
    digest = hashlib.sha256(json.dumps([shapes, nodes], sort_keys=True).encode()).hexdigest()
    return {"network": digest, "recipe": json.loads(json.dumps(training.to_dict())), "images": images}


def _named(target: Any) -> str:
    """A graph's target by its names: what a function is printed as holds its address, another in every process."""
    if isinstance(target, str):
        return target
    return f"{getattr(target, '__module__', None)}.{getattr(target, '__qualname__', target)}"


def check_identity(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Check that a checkpoint is of this network, recipe and data.

    Raises:
        UsageError: it is of another; says in what.
    """
    theirs = found.get(KEY, {})
    hint = "use another folder, or delete it to begin anew"
    if theirs.get("network") != wanted["network"]:
        raise UsageError("the checkpoint is of another network", where=str(path), hint=hint)
    if theirs.get("images") != wanted["images"]:
        counts = f"{theirs.get('images')} images, and now there are {wanted['images']}"
        raise UsageError(f"the checkpoint is of a run on {counts}", where=str(path), hint=hint)
    differences = _differences(theirs.get("recipe", {}), wanted["recipe"])
    if differences:
        raise UsageError(
            f"the checkpoint is of another recipe: {'; '.join(differences[:3])}", where=str(path), hint=hint
        )


def _differences(theirs: Any, ours: Any, name: str = "") -> list[str]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        names = dict.fromkeys([*theirs, *ours])
        return [d for key in names for d in _differences(theirs.get(key), ours.get(key), f"{name}.{key}".strip("."))]
    return [] if theirs == ours else [f"{name} was {theirs!r} and is {ours!r}"]
