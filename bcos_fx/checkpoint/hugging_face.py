"""Networks of the library transformers: built by a configuration, and their weights by the names of any version."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.errors import CheckpointError, nearest

_ATTENTIONS = ("eager", "sdpa")
_ENDINGS = ("Model", "Classification", "Projection", "LMHead")


def named_class(library: object, name: str, arch: str) -> tuple[type[nn.Module], dict[str, str]]:
    """Return the class of ``CLASS[@ATTENTION]`` and the option of its configuration that chooses the attention.

    Raises:
        CheckpointError: there is no such class or attention; names the nearest.
    """
    name, _, attention = name.partition("@")
    if attention and attention not in _ATTENTIONS:
        raise CheckpointError(f"no attention is called {attention!r}", where=arch, hint=nearest(attention, _ATTENTIONS))
    kind = getattr(library, name, None)
    if not isinstance(kind, type) or not isinstance(getattr(kind, "config_class", None), type):
        known = [key for key in dir(library) if key.endswith(_ENDINGS)]
        raise CheckpointError(f"transformers has no model {name!r}", where=arch, hint=nearest(name, known))
    return kind, {"attn_implementation": attention} if attention else {}


def make_configuration(kind: Any, content: Mapping[str, Any] | None, chosen: Mapping[str, str], arch: str) -> Any:
    """Return the configuration of a class: what a file says of it, or the default of its kind.

    Raises:
        CheckpointError: the file is of another kind of network.
    """
    wanted = kind.config_class
    if content is None:
        return wanted(**chosen)
    # A file of an image-text model holds the settings of its towers under keys that transformers has in its table.
    inner = content.get(getattr(wanted, "base_config_key", "") or "")
    settings = inner if content.get("model_type") != wanted.model_type and isinstance(inner, dict) else content
    if settings.get("model_type", wanted.model_type) != wanted.model_type:
        raise CheckpointError(
            f"config.json is of a network of the kind {str(settings['model_type'])[:40]!r}, and {kind.__name__} is of "
            f"the kind {wanted.model_type!r}",
            where=arch,
            hint="name the class that the weights were saved from",
        )
    return wanted.from_dict({**settings, **chosen})


def rename_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return weights under the names that this version of transformers has for them.

    Files from before some version call a layer norm's weight ``gamma``, or a projection by another path; transformers
    has the table. Nothing is read or fetched: it gets the configuration and the tensors.

    Returns:
        What fits, what is left over by its own name, and what has another shape without its numbers; None where the
        module is not of transformers.
    """
    library: Any = sys.modules.get("transformers")
    if library is None or not isinstance(module, library.PreTrainedModel):
        return None
    with _silent(library):
        fitted, loading = type(module).from_pretrained(
            None,
            config=module.config,
            state_dict=dict(tensors),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the caller compares shapes
        )
    fitting = {name: t for name, t in fitted.state_dict().items() if name not in loading["missing_keys"]}
    misshapen = {name: torch.empty(shape, device="meta") for name, shape, *_ in loading["mismatched_keys"]}
    unexpected = {name: tensors[name] for name in loading["unexpected_keys"] if name in tensors}
    return {**fitting, **misshapen, **unexpected}


def classifies_images(module: nn.Module) -> bool:
    """Return whether a module is an image classifier of transformers, whose scores are its output's ``logits``."""
    if "transformers" not in sys.modules or not hasattr(module, "config"):
        return False
    auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    listed = auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.values()
    names = {name for entry in listed for name in (entry if isinstance(entry, list | tuple) else [entry])}
    return type(module).__module__.startswith("transformers.") and type(module).__name__ in names


@contextmanager
def _silent(library: Any) -> Iterator[None]:
    """Keep its progress bars and warnings off the terminal: the caller reports what does not fit."""
    log = library.utils.logging
    level, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
