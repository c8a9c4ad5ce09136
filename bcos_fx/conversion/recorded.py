"""What a module records of itself beside its weights: names of its classes, and which architecture it is.

Only attributes that libraries set are read: ``pretrained_cfg`` (timm, and the architectures of
:mod:`bcos_fx.checkpoint`) and ``config.id2label`` (transformers).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from bcos_fx.network import Origin

_IMAGENET = re.compile(r"in[0-9]+k")  # in the tag of weights: a1_in1k, fb_in22k_ft_in1k


def recorded_classes(module: nn.Module, outputs: int | None) -> tuple[str, ...]:
    """Return the names of a module's classes as it records them; none where they are not ``outputs`` in number.

    Of timm's architectures those of ImageNet, where the weights that an architecture is published with were trained on
    it and the number of classes is theirs; whether those weights are in the module cannot be seen.
    """
    recorded = _pretrained_cfg(module)
    entries = _of_config(getattr(module, "config", None)) or _of_pretrained(recorded)
    # Not imported for its names: a network of timm has imported it.
    if not entries and "timm" in sys.modules and recorded.get("num_classes") == outputs:
        entries = _of_imagenet(recorded)
    names = tuple(name.strip() for name in entries if isinstance(name, str) and name.strip())
    return names if len(names) == len(entries) == outputs else ()


def recorded_origin(module: nn.Module) -> Origin:
    """Return the architecture that a module records, else its class; whose weights it has cannot be seen."""
    recorded = _pretrained_cfg(module)
    if isinstance(name := recorded.get("name"), str):
        return Origin(name, url=_text(recorded.get("origin_url")), license=_text(recorded.get("license")))
    if isinstance(name := recorded.get("architecture"), str) and name:
        return Origin(f"timm:{name}")
    return Origin(f"{type(module).__module__}.{type(module).__qualname__}")


def _pretrained_cfg(module: nn.Module) -> Mapping[str, object]:
    recorded = getattr(module, "pretrained_cfg", None)
    return recorded if isinstance(recorded, Mapping) else {}


def _of_config(config: object) -> Sequence[object]:
    """Return the names in a configuration of transformers, unless they are placeholders such as ``LABEL_0``."""
    names = getattr(config, "id2label", None)
    if not isinstance(names, Mapping):
        return ()
    # Indices are strings in a configuration that was read from JSON.
    by_index = {str(index): name for index, name in names.items()}
    ordered = [by_index.get(str(index)) for index in range(len(by_index))]
    return () if ordered == [f"LABEL_{index}" for index in range(len(ordered))] else ordered


def _of_pretrained(recorded: Mapping[str, object]) -> Sequence[object]:
    described, names = recorded.get("label_descriptions"), recorded.get("label_names")
    if isinstance(described, Mapping) and isinstance(names, list | tuple):
        described = [described.get(name) for name in names]
    return next((given for given in (described, names) if isinstance(given, list | tuple) and given), ())


def _of_imagenet(recorded: Mapping[str, object]) -> Sequence[object]:
    data: Any = sys.modules["timm"].data
    subset = data.infer_imagenet_subset(dict(recorded))
    if not subset or not _IMAGENET.search(_text(recorded.get("tag"))):
        return ()
    names: Sequence[str] = data.ImageNetInfo(subset).label_descriptions()
    return names


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
