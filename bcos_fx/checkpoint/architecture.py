"""Networks by name, and putting weights into them.

An architecture is named ``torchvision:resnet50[@WEIGHTS]``, ``timm:NAME[.TAG]``, ``transformers:CLASS[@ATTENTION]``,
``open_clip:NAME[@TAG]`` (its image tower, with the pretrained weights of a tag), ``package.module:factory`` or
``path/to/file.py:factory``; a factory takes no arguments and returns an ``nn.Module``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.checkpoint import hugging_face
from bcos_fx.checkpoint.libraries import (
    build_module,
    import_library,
    names_weights,
    open_clip_tower,
    run_users_code,
    timm_model,
    torchvision_model,
    without_downloads,
)
from bcos_fx.checkpoint.reading import StateDict
from bcos_fx.checkpoint.recorded import class_count
from bcos_fx.errors import CheckpointError, nearest
from bcos_fx.tracing.wrappers import without_wrappers
from bcos_fx.user_code import import_file

FORMS = (
    "torchvision:resnet50[@WEIGHTS], timm:NAME[.TAG], transformers:CLASS[@ATTENTION], open_clip:NAME[@TAG], "
    "package.module:factory or path/to/file.py:factory"
)
# Library -> where its list of networks is, and the extra that brings it.
_LISTED = {
    "torchvision": ("torchvision.models", "vision"),
    "timm": ("timm", "timm"),
    "open_clip": ("open_clip", "clip"),
}
# A name that tells a torchvision family, and how the names of its members begin. Not RegNet: it computes
# its widths with tensors, so it cannot be built without storage.
_FAMILIES = (
    ("layer1.0.conv1.weight", ("resnet", "resnext", "wide_resnet")),
    ("features.denseblock1.denselayer1.norm1.weight", ("densenet",)),
    ("encoder.pos_embedding", ("vit",)),
    ("features.1.0.attn.relative_position_bias_table", ("swin",)),
    ("stage2.0.branch1.0.weight", ("shufflenet",)),
    ("inception3a.branch1.conv.weight", ("googlenet",)),
    ("Conv2d_1a_3x3.conv.weight", ("inception",)),
    ("features.3.squeeze.weight", ("squeezenet",)),
    ("layers.0.weight", ("mnasnet",)),
    ("features.1.0.block.0.weight", ("convnext",)),
    ("features.0.0.weight", ("mobilenet", "efficientnet")),
    ("features.0.weight", ("alexnet", "vgg")),
)


def build_architecture(arch: str, *, configuration: Mapping[str, Any] | None = None, fetch: bool = True) -> nn.Module:
    """Build the network that ``arch`` names; see the top of this file for the forms.

    Where the name includes weights, they are loaded, from a cache or the web. Those of torchvision put their
    normalization and class names on the module as ``pretrained_cfg = {"mean": ..., "std": ..., "input_size": ...,
    "interpolation": ..., "crop_pct": ..., "label_names": ...}``, as timm does with its own.

    Args:
        arch: the name.
        configuration: the content of a ``config.json``: a class of transformers takes its sizes from it, a network of
            timm the number of its classes.
        fetch: False where a file brings the weights, so that those of a tag of timm are not loaded.

    Raises:
        CheckpointError: no such package, model or factory; the factory failed or returned no module; the weights
            are not available, and the message names the missing file and where it is looked for.
        MissingExtraError: the library that has it is not installed.
    """
    library, colon, name = arch.rpartition(":")
    if not colon or not library or not name:
        raise CheckpointError(f"{arch!r} names no architecture", hint=f"write it as {FORMS}")
    if library == "transformers":
        kind, chosen = hugging_face.named_class(import_library("transformers", "transformers"), name, arch)
        return build_module(lambda: kind(hugging_face.make_configuration(kind, configuration, chosen, arch)), arch)
    if library == "timm":
        return timm_model(name, arch, fetch=fetch, classes=class_count(configuration))
    if library in _BUILDERS:
        return _BUILDERS[library](name, arch)
    factory = _member(_user_module(library, arch), name, arch)
    return build_module(factory, arch)


def has_random_weights(arch: str) -> bool:
    """Return whether the network that ``arch`` names comes with random weights, as a library's does by default."""
    library, _, name = arch.rpartition(":")
    return library in (*_BUILDERS, "timm", "transformers") and not names_weights(library, name)


def architecture_names(source: str) -> list[str]:
    """Return the names of all networks that a library builds, as they stand behind the colon.

    Raises:
        CheckpointError: no such library is known, or it keeps no list.
        MissingExtraError: it is not installed.
    """
    if source not in _LISTED:
        raise CheckpointError(f"there is no list of the networks of {source!r}", hint=nearest(source, _LISTED))
    return list(import_library(*_LISTED[source]).list_models())


def load_into(module: nn.Module, state_dict: StateDict | Mapping[str, Tensor]) -> None:
    """Put weights into ``module``, which is changed in place; every name and shape must fit.

    A prefix that :func:`~bcos_fx.checkpoint.reading.read_state_dict` removed is put back where the
    module's own names bear it. Missing ``num_batches_tracked`` counters are filled in by torch: files
    from before version 0.4.1 have none and eval mode does not read them.

    Raises:
        CheckpointError: names are missing or unexpected, or shapes differ. Shapes are compared before
            anything is written; after missing or unexpected names the module is partly loaded.
    """
    wrapped = state_dict if isinstance(state_dict, StateDict) else StateDict(dict(state_dict), "the state dict")
    expected = module.state_dict()
    tensors = wrapped.tensors
    if wrapped.prefix and not expected.keys() & tensors.keys():
        tensors = _with_prefix(tensors, wrapped.prefix, set(expected))
    tensors = _with_names_of(tensors, list(expected))
    if expected.keys() != tensors.keys():
        # With the prefix put back: transformers' own table of renamings is written for full names.
        tensors = (
            hugging_face.rename_weights(module, {wrapped.prefix + n: t for n, t in wrapped.tensors.items()}) or tensors
        )
    misshapen = [
        f"{name}: {tuple(tensor.shape)} in the file, {tuple(expected[name].shape)} in the network"
        for name, tensor in tensors.items()
        if isinstance(expected.get(name), Tensor) and expected[name].shape != tensor.shape
    ]
    if misshapen:
        missing = [name for name in expected if name not in tensors]
        raise _does_not_fit(wrapped, expected, missing, [name for name in tensors if name not in expected], misshapen)
    try:
        result = module.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit: {error}", where=wrapped.source, hint="check --arch") from error
    if result.missing_keys or result.unexpected_keys:
        raise _does_not_fit(wrapped, expected, list(result.missing_keys), list(result.unexpected_keys), [])


def guess_architecture(tensors: Mapping[str, Tensor]) -> str | None:
    """Find the torchvision model with these names and shapes, class count apart; None if there is none."""
    starts = next((starts for mark, starts in _FAMILIES if mark in tensors), ())
    signature = _signature(tensors)
    candidates = _torchvision_family(starts)
    return next((arch for arch, module in candidates if _signature(module.state_dict()) == signature), None)


def published_candidates(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module, without storage, of torchvision's models of a published B-cos file's family."""
    marks = {"denselayer1.": ("densenet",), "layer1.0.conv1.": ("resnet", "resnext", "wide_resnet")}
    return _torchvision_family(next((starts for m, starts in marks.items() if any(m in key for key in tensors)), ()))


def _torchvision_family(starts: tuple[str, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module, without storage, of torchvision's models whose names begin so."""
    if not starts or importlib.util.find_spec("torchvision") is None:
        return
    models = importlib.import_module("torchvision.models")
    for name in models.list_models(module=models):
        if name.startswith(starts):
            with torch.device("meta"):  # only names and shapes are compared
                module = models.get_model(name, weights=None, **without_downloads(models, name))
            yield f"torchvision:{name}", module


def _signature(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by name; of the outermost layers' weights and biases the class count is left out."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    last = next((name.rpartition(".")[0] for name in reversed(shapes)), "")
    return {name: shape[1:] if name.rpartition(".")[0] == last else shape for name, shape in shapes.items()}


_BUILDERS: dict[str, Callable[[str, str], nn.Module]] = {"torchvision": torchvision_model, "open_clip": open_clip_tower}


def _user_module(module: str, arch: str) -> ModuleType:
    """Import the user's own module, from a file or by its dotted name. This runs it, as any import does."""
    path = Path(module)
    if path.suffix == ".py":
        if not path.is_file():
            near = [str(path.with_name(item.name)) for item in path.parent.glob("*.py")]
            hint = nearest(module, near) if near else f"there are no Python files in {path.parent}"
            raise CheckpointError(f"there is no file {module!r}", where=arch, hint=hint)
        return run_users_code(lambda: import_file(path), arch, f"importing {module}")
    return run_users_code(lambda: _import_named(module, arch), arch, f"importing {module}")


def _import_named(module: str, arch: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and it is one of its own imports that is not
        as_file = Path(*module.split(".")).with_suffix(".py")
        factory = arch.rpartition(":")[2]
        hint = f"write {as_file}:{factory}" if as_file.is_file() else f"install it, or write it as {FORMS}"
        raise CheckpointError(f"there is no package {module!r}", where=arch, hint=hint) from error


def _member(module: ModuleType, name: str, arch: str) -> Callable[[], Any]:
    member = getattr(module, name, None)
    if callable(member):
        factory: Callable[[], Any] = member
        return factory
    defined = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    known = defined or [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise CheckpointError(f"{arch.rpartition(':')[0]} has no factory {name!r}", where=arch, hint=nearest(name, known))


def _with_prefix(tensors: dict[str, Tensor], prefix: str, expected: set[str]) -> dict[str, Tensor]:
    """Put back as much of a removed prefix as makes the names meet the network's."""
    while prefix:
        renamed = {prefix + name: tensor for name, tensor in tensors.items()}
        if renamed.keys() & expected:
            return renamed
        prefix = prefix.partition(".")[2]
    return tensors


def _with_names_of(tensors: dict[str, Tensor], expected: list[str]) -> dict[str, Tensor]:
    """Name tensors as the network does, where only wrappers of its parts stand between the names.

    ``module`` inside a name is a parallel part's wrapper, or a name that the network itself gives a part.
    """
    if tensors.keys() & set(expected) == set(expected):
        return tensors

    def bare(name: str) -> str:
        return ".".join(part for part in without_wrappers(name).split(".") if part != "module")

    wanted = {bare(name): name for name in expected}
    renamed = {wanted.get(bare(name), name): tensor for name, tensor in tensors.items()}
    # Two names that differ in wrappers alone would become one, and a tensor would be lost.
    return renamed if len(wanted) == len(expected) and len(renamed) == len(tensors) else tensors


def _does_not_fit(
    state: StateDict, expected: Mapping[str, Any], missing: list[str], unexpected: list[str], misshapen: list[str]
) -> CheckpointError:
    lists = (("missing from the file", missing), ("not in the network", unexpected), ("of another shape", misshapen))
    lines = ["the weights do not fit the network"]
    for label, names in lists:
        if names:
            rest = [f"... and {len(names) - 10} more"] if len(names) > 10 else []
            lines.append(f"  {len(names)} {label}:")
            lines += [f"    {name}" for name in [*names[:10], *rest]]
    if part := _part_that_fits(state, expected):
        hint = f"the network is one part of what the file holds: --key {part} (key={part!r}) takes that alone"
    elif misshapen and not missing and not unexpected and len(misshapen) <= 2:
        hint = "only the last layer differs: name a factory that builds the network with the file's class count"
    else:
        hint = "give the --arch that the weights were trained with; `bcos-fx inspect` lists what the file holds"
    return CheckpointError("\n".join(lines), where=state.source, hint=hint)


def _part_that_fits(state: StateDict, expected: Mapping[str, Any]) -> str:
    """Find the key under which the file holds every tensor of the network in its shape; empty if there is none."""
    tensors = {name: value for name, value in expected.items() if isinstance(value, Tensor)}
    shapes = {name: value.shape for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    first = next(iter(shapes), "")
    # Whatever stands before the network's first name in the file may be the key of the part.
    for start in (name.removesuffix(first) for name in state.tensors if name.endswith(f".{first}")):
        part = {name: state.tensors.get(start + name) for name in shapes}
        if all(tensor is not None and tensor.shape == shapes[name] for name, tensor in part.items()):
            return ".".join((*state.nesting, state.prefix + start)).removesuffix(".")
    return ""
