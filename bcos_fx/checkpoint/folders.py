"""Folders and files as the Hugging Face hub has them: weights under a usual name, whole or in shards with an index.

An index names, for each tensor, the file beside it that holds the tensor. Nothing else in it is used, and no name in it
leads out of the folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcos_fx.budgets import JSON_BYTES, parse_json
from bcos_fx.errors import CheckpointError

INDEX = ".index.json"
"""How the name of an index ends."""

_WEIGHTS = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "open_clip_pytorch_model.bin",
)
"""Files of weights in a folder, best first: safetensors run no code, and a whole file needs no index."""

_ENDINGS = frozenset(".safetensors .bin .pt .pth .ckpt .th .tar .pt2".split())
_CONFIGURATION = "config.json"
_NOT_TAKEN = frozenset(
    "architectures auto_map custom_pipelines dtype torch_dtype transformers_version _name_or_path _commit_hash "
    "attn_implementation _attn_implementation _attn_implementation_internal".split()
)
"""Entries of a configuration that say where a network came from or how it runs, and nothing of its shape."""


def weights_at(path: Path) -> Path:
    """Return the file or index of weights in a folder; a path to anything else comes back as it is.

    Raises:
        CheckpointError: the folder has none.
    """
    if not path.is_dir():
        return path
    for name in _WEIGHTS:
        if (path / name).is_file():
            return path / name
    inside = sorted(item.name for item in path.iterdir() if item.suffix in _ENDINGS and item.is_file())
    hint = "name one file in it: " + ", ".join(inside[:5]) if inside else "name a file, or a folder with weights in it"
    raise CheckpointError(f"this is a directory without {_WEIGHTS[0]} or pytorch_model.bin", where=str(path), hint=hint)


def shards_of(index: Path) -> dict[Path, list[str]]:
    """Return file -> names of the tensors that an index lists for it.

    Raises:
        CheckpointError: it is not an index, a file that it names is missing, or a name leads out of the folder.
    """
    listed = _json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError("the index has no weight_map", where=str(index), hint="download it again")
    shards: dict[Path, list[str]] = {}
    for tensor, name in listed.items():
        # An index comes from others: a name with a folder in it could lead anywhere on the disk.
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(
                f"the index names {str(name)[:80]!r}, which is not a file beside it", where=str(index)
            )
        shards.setdefault(index.parent / name, []).append(tensor)
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:5])}",
            where=str(index),
            hint="download them into the same folder",
        )
    return shards


def digest_of_weights(path: Path) -> tuple[str, str]:
    """Return the name of a file of weights and its SHA-256; of an index that of its shards, joined by their names.

    Raises:
        CheckpointError: a folder has no weights, or an index is damaged.
        OSError: a file cannot be read.
    """
    file = weights_at(path)
    digest = hashlib.sha256()
    for part in sorted(shards_of(file)) if file.name.endswith(INDEX) else [file]:
        with part.open("rb") as stream:
            while content := stream.read(2**20):
                digest.update(content)
    return file.name, digest.hexdigest()


def configuration_beside(path: Path) -> dict[str, Any] | None:
    """Return what ``config.json`` says of the shape of a network; None where no such file is beside its weights.

    Raises:
        CheckpointError: it is not a configuration, or one of quantized weights.
    """
    content = json_beside(path, _CONFIGURATION)
    if not content:
        return None
    if "quantization_config" in content:
        raise CheckpointError(
            "the weights are quantized", where=str(path), hint="take the network in floating point, before that"
        )
    return {name: value for name, value in content.items() if name not in _NOT_TAKEN}


def json_beside(path: Path, name: str) -> Mapping[str, Any]:
    """Return what a file of a name beside weights holds; nothing where there is none.

    Raises:
        CheckpointError: it holds no JSON object.
        OSError: it cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / name
    return _json(file) if file.is_file() else {}


def _json(file: Path) -> Mapping[str, Any]:
    JSON_BYTES.check(file.stat().st_size, file.name, CheckpointError, str(file))
    try:
        content = parse_json(file.read_bytes(), file.name, CheckpointError, str(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name} is no JSON: {error}", where=str(file), hint="download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file.name} holds no JSON object", where=str(file), hint="download it again")
    return content
