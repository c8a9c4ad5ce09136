"""Tensors out of other people's files: nested, prefixed, saved on a GPU, half precision, safetensors.

:func:`torch.load` is called in one place, here, and with ``weights_only=True`` unless the caller says
that the file is to be trusted.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import error as StructError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bcos_fx.budgets import held
from bcos_fx.checkpoint.folders import shards_of, weights_at
from bcos_fx.checkpoint.identify import FileKind, identify, readable
from bcos_fx.errors import CheckpointError, nearest
from bcos_fx.escaping import amount, listed
from bcos_fx.tracing.wrappers import without_wrappers

# Where training scripts put the weights, best first.
NESTING_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "ema",
    "model_ema",
)
# What wrappers put before every name: DataParallel, Lightning and the like, torch.compile.
PREFIXES = ("module.", "model.", "_orig_mod.")
_MAX_DEPTH, _SHOWN = 4, 10
# What torch.load raises on files that are damaged, or whose classes are not to be had here.
_LOAD_ERRORS = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    ImportError,
    TypeError,
    OverflowError,
    MemoryError,
    AssertionError,
    StructError,
)
_REFUSED = {
    "exported-program": (
        "a torch.export program is not opened unasked: it can carry expressions that run shell commands",
        "give --trust-pickle (trust_pickle=True) if you made the file, or save the module's state_dict and give --arch",
    ),
    "torchscript": (
        "TorchScript cannot be converted: the Python module behind it is gone",
        "save the original module's state_dict and give --arch",
    ),
    "onnx": (
        "ONNX cannot be converted: the Python module behind it is gone",
        "use the PyTorch checkpoint it came from",
    ),
    "torch-tar": (
        "the tar format of torch before 2017 is not read",
        "load it with an old torch that you trust it to, and torch.save the state_dict again",
    ),
    "torch-package": (
        "a torch.package archive holds code, which is not run",
        "load it where you trust it, and torch.save the state_dict",
    ),
    "bcos-fx": (
        "this network is already converted",
        "explain, finetune or check it as it is (bcos_fx.load)",
    ),
}


@dataclass(frozen=True)
class StateDict:
    """Named tensors on the CPU and how they were found.

    ``tensors`` maps names, without ``prefix``, to tensors in the file's own dtype. ``nesting`` is the
    path of keys that led to them, ``prefix`` what was taken off every name, ``ignored`` the other keys
    that were beside them and ``alternatives`` those of the ignored that also hold weights.
    """

    tensors: dict[str, Tensor]
    source: str
    nesting: tuple[str, ...] = ()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    @property
    def unwrapped(self) -> tuple[str, ...]:
        """What was taken off, one sentence each; empty for a plain state dict."""
        remarks = []
        if self.nesting:
            remarks.append(f"weights taken from the key {'.'.join(self.nesting)!r}")
        if self.alternatives:
            remarks.append(f"other weights in the file: {listed(self.alternatives, _SHOWN)} (choose with key=)")
        if self.prefix:
            remarks.append(f"prefix {self.prefix!r} removed from every name")
        if self.ignored:
            remarks.append(f"not used: {listed(self.ignored, _SHOWN)}")
        return tuple(remarks)


def read_state_dict(path: str | os.PathLike[str], *, key: str | None = None, trust_pickle: bool = False) -> StateDict:
    """Read the weights in ``path``.

    Args:
        path: a file that ``torch.save`` or safetensors wrote, the index of several, or a folder with such a file in it.
        key: the dotted path of keys to the weights, where the file holds several sets; or on to a part of the network,
            by its name (``visual`` in a checkpoint of CLIP).
        trust_pickle: let the file run the code that it carries. Only for files that you made.

    Raises:
        CheckpointError: the file cannot be read, is of another kind, holds no weights, or holds
            weights that are NaN or infinite.
    """
    state = load_tensors(path, key=key, trust_pickle=trust_pickle)
    bad = {name: count for name, count in count_nonfinite(state).items() if count}
    if bad:
        raise CheckpointError(
            f"{amount(len(bad), 'tensor')} hold NaN or infinite values: "
            + listed([f"{name} ({count})" for name, count in bad.items()], _SHOWN),
            where=state.source,
            hint="the training diverged or the file is damaged; take an earlier checkpoint",
        )
    return state


def load_tensors(path: str | os.PathLike[str], *, key: str | None = None, trust_pickle: bool = False) -> StateDict:
    """Read weights as :func:`read_state_dict` does, but without looking at the values."""
    path = weights_at(Path(path))
    kind = identify(path)
    if kind.kind == "sharded":
        return _unwrap(_load_shards(path, trust_pickle=trust_pickle), str(path), key)
    state = _unwrap(load_object(path, kind, trust_pickle=trust_pickle), str(path), key)
    _check_sizes(state.tensors, path)
    return state


def _load_shards(index: Path, *, trust_pickle: bool) -> dict[str, Tensor]:
    """Read all files of an index.

    Raises:
        CheckpointError: a file cannot be read, or holds other tensors than the index says.
    """
    tensors: dict[str, Tensor] = {}
    for path, names in shards_of(index).items():
        shard = _tensors_in(load_object(path, identify(path), trust_pickle=trust_pickle))
        _check_sizes(shard, path)
        if set(shard) != set(names):
            odd = sorted(set(shard) ^ set(names))
            raise CheckpointError(
                f"the file holds other tensors than {index.name} says: {listed(odd, _SHOWN)}",
                where=str(path),
                hint="the files are of different downloads: fetch them all again",
            )
        tensors |= shard
    return tensors


def _check_sizes(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are views of few numbers as many, before anything visits each element.

    Raises:
        CheckpointError: they hold more than the file's size explains.
    """
    # Tied weights stand under several names, and count once.
    different = {
        (t.data_ptr() if t.layout is torch.strided else name, t.dtype, tuple(t.shape)): t.numel() * t.element_size()
        for name, t in tensors.items()
    }
    held(path.stat().st_size).check(sum(different.values()), "the file", CheckpointError, str(path))


def load_object(path: str | os.PathLike[str], kind: FileKind, *, trust_pickle: bool) -> Any:
    """Return what the file holds, tensors on the CPU; refuse what would run code unless it is trusted."""
    path = weights_at(Path(path))
    if kind.kind not in ("safetensors", "state-dict", "nested-checkpoint", "tensor", "pickled-module"):
        raise _unreadable(path, kind)
    if kind.kind == "pickled-module" and not trust_pickle:
        raise pickled_module_refused(path, kind)
    if kind.kind == "safetensors":
        return load_safetensors(path)
    return _torch_load(path, kind, trust_pickle=trust_pickle)


def pickled_module_refused(path: str | os.PathLike[str], kind: FileKind) -> CheckpointError:
    """Return the error that names the content of the pickle, the reason why it is not opened, and what to do."""
    return CheckpointError(
        f"the file holds {kind.summary}; opening a pickled module runs code that the file carries, so it stays shut",
        where=str(path),
        hint="save model.state_dict() and give --arch, or --trust-pickle (trust_pickle=True) if you made the file",
    )


def _unreadable(path: Path, kind: FileKind) -> CheckpointError:
    reason, hint = _REFUSED.get(
        kind.kind, (f"this is not a checkpoint: {kind.summary}", "give a file that torch.save or safetensors wrote")
    )
    if kind.kind in ("damaged", "empty"):
        hint = "copy or download the file again"
    return CheckpointError(reason, where=str(path), hint=hint)


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is damaged or cannot be read.
    """
    try:
        with readable(path):
            return load_file(path, device="cpu")
    except (SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"the safetensors file cannot be read: {error}", where=str(path), hint="copy or download the file again"
        ) from error


def _torch_load(path: Path, kind: FileKind, *, trust_pickle: bool) -> Any:
    """Call :func:`torch.load`; the package calls it only here."""
    try:
        # torch's warnings here are about how the file was pickled: nothing that its reader could change.
        with readable(path), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except _LOAD_ERRORS as error:
        raise _load_failed(path, kind, error, trusted=trust_pickle) from error


def _load_failed(path: Path, kind: FileKind, error: BaseException, *, trusted: bool) -> CheckpointError:
    where, text = str(path), str(error)
    # The name is only in the message: torch raises one class of error whatever it refuses.
    refused = re.search(r"GLOBAL ([\w.]+)", text) or re.search(r"(?:function|class|type) ([\w.]*\.[\w.]+)", text)
    if isinstance(error, pickle.UnpicklingError) and refused:
        return CheckpointError(
            f"the file needs {refused[1]!r} beside its tensors, and opening that could run code",
            where=where,
            hint="save only the state_dict, or give --trust-pickle (trust_pickle=True) if you made the file",
        )
    if trusted and isinstance(error, ImportError | AttributeError):
        return CheckpointError(
            f"the file names code that is not here: {text}",
            where=where,
            hint="install it or put its folder on PYTHONPATH, or save only the state_dict and give --arch",
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return CheckpointError(
        f"the file is cut off or damaged ({kind.summary}): {first}", where=where, hint="copy or download the file again"
    )


def _unwrap(content: Any, source: str, key: str | None) -> StateDict:
    """Find the weights inside ``content`` and take the wrappers' prefixes off their names."""
    nesting: tuple[str, ...] = ()
    if key is not None:
        content, nesting = _follow_keys(content, key, source), tuple(key.split("."))
    alternatives: tuple[str, ...] = ()
    ignored: list[str] = []
    # Training scripts nest weights several levels deep, beside optimizers and averages; the usual names decide.
    while (inner := _candidates(content, _MAX_DEPTH)) and len(nesting) < _MAX_DEPTH:
        known = [name for name in NESTING_KEYS if name in inner]
        if len(inner) > 1 and not known:
            raise CheckpointError(
                f"several sets of weights in one file: {listed(inner, _SHOWN)}",
                where=source,
                hint=f"choose one: key={inner[0]!r}",
            )
        chosen = (known or inner)[0]
        alternatives += tuple(name for name in inner if name != chosen)
        ignored += [str(name) for name in content if name != chosen]
        content, nesting = content[chosen], (*nesting, chosen)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    tensors = _tensors_in(content)
    if not tensors:
        raise _no_weights(content, source)
    ignored += [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    stripped, prefix, dropped = _strip(tensors)
    return StateDict(stripped, source, nesting, prefix, tuple(ignored + dropped), alternatives)


def _follow_keys(content: object, key: str, source: str) -> Any:
    """Return what a dotted path of keys leads to; it may end in a prefix of tensor names (a part of a network)."""
    parts = key.split(".")
    for place, part in enumerate(parts):
        if isinstance(content, Mapping) and part in content:
            content = content[part]
            continue
        start = ".".join(parts[place:]) + "."
        inside = {name.removeprefix(start): t for name, t in _tensors_in(content).items() if name.startswith(start)}
        if inside:
            return inside
        known = dict.fromkeys(str(name).partition(".")[0] for name in content) if isinstance(content, Mapping) else ()
        raise CheckpointError(f"the file has no key {part!r}", where=source, hint=nearest(part, known))
    return content


def _candidates(content: object, depth: int) -> list[str]:
    """Return the keys that hold weights, those of the usual names also ``depth`` levels down; the usual ones first."""
    if not isinstance(content, Mapping) or depth == 0:
        return []
    named = {name: below for name, below in content.items() if isinstance(name, str) and "." not in name}
    inner = [n for n, below in named.items() if isinstance(below, nn.Module) or _looks_like_weights(n, below)]
    usual = [name for name in named if name in NESTING_KEYS and name not in inner]
    deeper = [name for name in usual if _candidates(named[name], depth - 1)]
    order = {name: place for place, name in enumerate(NESTING_KEYS)}
    return sorted(inner + deeper, key=lambda name: order.get(name, len(order)))


def _looks_like_weights(key: str, content: object) -> bool:
    """Check for weights: a dict of tensors under a usual key, or (not random states, scalers) with weights' names."""
    names = _tensors_in(content)
    return bool(names) and (key in NESTING_KEYS or any("weight" in name for name in names))


def _tensors_in(content: object) -> dict[str, Tensor]:
    """Return the tensors of a mapping from names to tensors and perhaps a few other values."""
    if not isinstance(content, Mapping):
        return {}
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _strip(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str, list[str]]:
    """Take off prefixes that every name bears, the counter of an averaged model, and what wraps a part anywhere."""
    prefix, dropped = "", []
    if "n_averaged" in tensors and all(name.startswith("module.") for name in tensors if name != "n_averaged"):
        dropped = ["n_averaged"]
        tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    while common := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        prefix += common
        tensors = {name.removeprefix(common): tensor for name, tensor in tensors.items()}
    plain = {without_wrappers(name): tensor for name, tensor in tensors.items()}
    # Names that differ in wrappers alone would become one, and a tensor would be lost.
    return (plain if len(plain) == len(tensors) else tensors), prefix, dropped


def _no_weights(content: object, source: str) -> CheckpointError:
    if isinstance(content, Mapping):
        held = "its keys are " + listed([str(name) for name in content], _SHOWN) if content else "it is an empty dict"
    else:
        held = f"it holds one {type(content).__name__}"
    return CheckpointError(
        f"no weights were found: {held}", where=source, hint="save model.state_dict(), or name the right key with key="
    )


def count_nonfinite(state: StateDict) -> dict[str, int]:
    """Return how many values of each tensor are NaN or infinite.

    Raises:
        CheckpointError: a tensor holds no plain values (quantized, sparse, or without data).
    """
    counts: dict[object, int] = {}  # the same tensor can stand under many names, and is looked at once
    by_name = {}
    for name, tensor in state.tensors.items():
        if tensor.is_quantized or tensor.is_meta or tensor.layout is not torch.strided:
            raise CheckpointError(
                f"the tensor {name!r} is quantized, sparse or without data",
                where=state.source,
                hint="save the plain float weights",
            )
        same = tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
        if same not in counts:
            counts[same] = _nonfinite(tensor)
        by_name[name] = counts[same]
    return by_name


def _nonfinite(tensor: Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    plain = tensor.float() if tensor.element_size() == 1 else tensor
    return int((~torch.isfinite(plain)).sum())
