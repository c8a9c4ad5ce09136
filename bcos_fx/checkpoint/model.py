"""From a file to a network: weights and an architecture, or a whole module where the file is trusted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bcos_fx.checkpoint.architecture import FORMS, build_architecture, guess_architecture, load_into
from bcos_fx.checkpoint.folders import configuration_beside
from bcos_fx.checkpoint.identify import FileKind, identify, readable
from bcos_fx.checkpoint.layouts import nearest_layouts
from bcos_fx.checkpoint.published import load_published
from bcos_fx.checkpoint.reading import (
    NESTING_KEYS,
    StateDict,
    load_object,
    load_tensors,
    pickled_module_refused,
    read_state_dict,
)
from bcos_fx.checkpoint.recorded import recorded_architecture, recorded_images
from bcos_fx.errors import CheckpointError, nearest
from bcos_fx.tracing.exported import Exported

_WEIGHTS = ("state-dict", "nested-checkpoint", "safetensors", "sharded")
_CONFIGURED = ("transformers:", "timm:")


def read_model(
    path: str | os.PathLike[str], *, arch: str | None = None, key: str | None = None, trust_pickle: bool = False
) -> nn.Module:
    """Read the network in ``path``, in eval mode, on the CPU.

    Args:
        path: weights or a folder of them, which need ``arch`` where no ``config.json`` of transformers or timm is
            beside them; or, with ``trust_pickle``, a pickled module or ``.pt2``.
        arch: ``torchvision:NAME[@WEIGHTS]``, ``timm:NAME[.TAG]``, ``package.module:factory`` or ``file.py:factory``.
        key: the dotted path of keys to the weights, where the file holds several sets.
        trust_pickle: let the file run the code that it carries. Only for files that you made.

    Raises:
        CheckpointError: the file cannot be read or does not fit; the message says what to do.
        MissingExtraError: the architecture's library is not installed.
    """
    path = Path(path)
    kind = identify(path)
    if kind.kind == "exported-program" and trust_pickle:
        # Exported programs refuse .eval(): their mode was fixed when they were exported.
        return _exported(path)
    recorded: dict[str, Any] = {}
    if arch is None and kind.kind in _WEIGHTS:
        with readable(path):
            arch = recorded_architecture(path)
            recorded = recorded_images(path) if arch is not None else {}
    if arch is not None:
        state = read_state_dict(path, key=key, trust_pickle=trust_pickle)
        with readable(path):
            configuration = configuration_beside(path) if arch.startswith(_CONFIGURED) else None
        module = build_architecture(arch, configuration=configuration, fetch=False)
        if recorded:
            module.pretrained_cfg = recorded  # type: ignore[assignment]
        # A published B-cos file fits the plain architecture in its names only, so this comes before plain loading.
        published = load_published(module, state, _settings(path, kind, state, trust_pickle))
        if published is None:
            _load_plain(module, state)
            return module.eval()
        return published.eval()
    if kind.kind == "pickled-module":
        if not trust_pickle:
            raise pickled_module_refused(path, kind)
        return _module_in(load_object(path, kind, trust_pickle=True), path, key).eval()
    raise _needs_arch(path, kind, key)


def _load_plain(module: nn.Module, state: StateDict) -> None:
    """Load plain weights; where no key fits, name the layouts that the keys resemble most."""
    try:
        load_into(module, state)
    except CheckpointError as error:
        names = {name.removeprefix(state.prefix) for name in module.state_dict()}
        if names & state.tensors.keys() or not state.tensors:
            raise
        near = f"its keys look most like {' or '.join(nearest_layouts(next(iter(state.tensors))))}"
        hint = near if error.hint is None else f"{error.hint}; {near}"
        raise CheckpointError(error.what, where=error.where, hint=hint) from error


def _settings(path: Path, kind: FileKind, state: StateDict, trust_pickle: bool) -> Mapping[str, Any] | None:
    """Return the settings that a training framework stored beside the weights, if any."""
    if "hyper_parameters" not in state.ignored and "hyper_parameters" not in state.nesting:
        return None
    content = load_object(path, kind, trust_pickle=trust_pickle)
    settings = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    return settings if isinstance(settings, Mapping) else None


def _exported(path: Path) -> nn.Module:
    try:
        with readable(path):
            return Exported(torch.export.load(path))
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError, ImportError) as error:
        raise CheckpointError(
            f"the exported program cannot be opened: {error}", where=str(path), hint="export it again with this torch"
        ) from error


def _module_in(content: object, path: Path, key: str | None) -> nn.Module:
    """Return the module, its part ``key``, or the module in a dict: under ``key``, a usual name, or the only one."""
    if isinstance(content, nn.Module):
        return content if key is None else _part(content, path, key)
    if isinstance(content, dict):
        held = {str(name): value for name, value in content.items() if isinstance(value, nn.Module)}
        wanted = [key] if key else [name for name in NESTING_KEYS if name in held] or list(held)
        if wanted and wanted[0] in held:
            return held[wanted[0]]
    raise CheckpointError(
        f"no module was found in the file, only {type(content).__name__}",
        where=str(path),
        hint=f"give --arch, as {FORMS}",
    )


def _part(module: nn.Module, path: Path, key: str) -> nn.Module:
    parts: dict[str, nn.Module] = {name: part for name, part in module.named_modules() if name}
    if key not in parts:
        raise CheckpointError(
            f"the module in the file has no part {key!r}", where=str(path), hint=nearest(key, list(parts))
        )
    return parts[key]


def _needs_arch(path: Path, kind: FileKind, key: str | None) -> CheckpointError:
    """Return the error for weights without a network; reading them may raise a more specific one first."""
    state = load_tensors(path, key=key)
    guess = guess_architecture(state.tensors)
    return CheckpointError(
        f"the file holds weights ({kind.summary}), not a network",
        where=str(path),
        hint=f"the weights fit --arch {guess}" if guess else f"give --arch, as {FORMS}",
    )
