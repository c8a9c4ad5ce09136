"""What a folder of the Hugging Face hub records beside its weights: the architecture, and how images are prepared.

Names out of these files are looked up in the libraries' own tables, and what is used is the table's entry; numbers and
texts are checked. Code that a repository brings (``auto_map``) is not run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcos_fx.checkpoint.folders import json_beside
from bcos_fx.data.decoding import note
from bcos_fx.errors import CheckpointError, nearest
from bcos_fx.lazy import library

_PURPOSE = "reading a folder of the hub"
_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, which are kept in these files
_MOST_CLASSES, _MOST_CHANNELS, _LARGEST_SIDE = 200_000, 4, 4096


def recorded_architecture(path: Path) -> str | None:
    """Return the ``--arch`` that ``config.json`` names, ``transformers:CLASS`` or ``timm:NAME``, or None.

    Raises:
        CheckpointError: it names one that the library does not have, or one with options of its own.
        MissingExtraError: the library is not installed.
    """
    content = json_beside(path, "config.json")
    kind, classes = content.get("model_type"), content.get("architectures")
    if isinstance(kind, str) and isinstance(classes, list) and classes:
        return f"transformers:{_listed_class(kind, classes[0], path)}"
    if isinstance(name := content.get("architecture"), str):
        known = library("timm", "timm", _PURPOSE).list_models()
        if name not in known or content.get("model_args"):
            reason = "builds it with options of its own" if name in known else "is unknown to timm"
            hint = "give --arch FILE.py:FACTORY, a function that builds the network"
            raise CheckpointError(f"config.json names {name[:80]!r}, which {reason}", where=str(path), hint=hint)
        return f"timm:{known[known.index(name)]}"
    return None


def _listed_class(kind: str, name: object, path: Path) -> str:
    auto = library("transformers.models.auto.modeling_auto", "transformers", _PURPOSE)
    known: list[str] = []
    for table in (value for key, value in vars(auto).items() if key.endswith("_MAPPING_NAMES")):
        entry = table.get(kind)
        known += [item for item in (entry if isinstance(entry, list | tuple) else [entry]) if isinstance(item, str)]
    if name in known:
        return known[known.index(name)]  # the table's own text, not that of the file
    raise CheckpointError(
        f"config.json names the class {str(name)[:80]!r} of the kind {kind[:80]!r}, which transformers does not have",
        where=str(path),
        hint=f"{nearest(str(name), known) if known else 'code of a repository is not run'}; --arch names the network",
    )


def class_count(content: Mapping[str, Any] | None) -> int | None:
    """Return how many classes timm's ``config.json`` records; None where it does not."""
    count = (content or {}).get("num_classes")
    return count if isinstance(count, int) and not isinstance(count, bool) and 0 < count <= _MOST_CLASSES else None


def recorded_images(path: Path) -> dict[str, Any]:
    """Return how a folder prepares its images and names its classes, in the words of timm's ``pretrained_cfg``.

    Of transformers that is ``preprocessor_config.json``, where it scales bytes to [0, 1] and normalizes; of timm
    ``config.json``. What is not recorded in a way that this package does is left out.
    """
    content, processor = json_beside(path, "config.json"), json_beside(path, "preprocessor_config.json")
    if isinstance(recorded := content.get("pretrained_cfg"), dict):
        names = {key: content.get(key, recorded.get(key)) for key in ("label_names", "label_descriptions")}
        copied = {key: recorded[key] for key in ("interpolation", "crop_pct", "tag", "license") if key in recorded}
        facts = {"architecture": content.get("architecture"), "num_classes": class_count(content)}
        return facts | _statistics(recorded, "mean", "std") | _size(recorded.get("input_size")) | copied | names
    if not processor.get("do_normalize", True) or not math.isclose(_scale(processor), 1 / 255, rel_tol=1e-3):
        return {}
    facts = _statistics(processor, "image_mean", "image_std")
    size, crop = processor.get("size"), processor.get("crop_size")
    sides: Mapping[str, Any] = size if isinstance(size, dict) else {}
    edge, share = sides.get("shortest_edge"), processor.get("crop_pct")
    cropped = crop.get("height") if isinstance(crop, dict) else crop
    if isinstance(edge, int) and isinstance(cropped, int) and 0 < cropped <= edge:
        facts |= _size([3, cropped, cropped]) | _resampled(processor, cropped / edge)
    elif isinstance(edge, int) and isinstance(share, int | float) and 0 < share <= 1:
        facts |= _size([3, edge, edge]) | _resampled(processor, float(share))
    else:  # squeezed into a rectangle, which is not done here: the size alone is taken
        squeezed = _size([3, sides.get("height"), sides.get("width")])
        if squeezed and processor.get("do_resize", True):
            side = "x".join(map(str, squeezed["input_size"][1:]))
            note(
                f"the network's own processor squeezes images into {side} pixels; here they are resized and cropped "
                "from the center, so it is shown another part of a photograph that is not square"
            )
        facts |= squeezed
    return facts


def _scale(processor: Mapping[str, Any]) -> float:
    factor = processor.get("rescale_factor", 1 / 255)
    return float(factor) if processor.get("do_rescale", True) and isinstance(factor, int | float) else math.nan


def _resampled(processor: Mapping[str, Any], share: float) -> dict[str, Any]:
    resample = processor.get("resample")
    name = _RESAMPLING.get(resample) if isinstance(resample, int) else None
    return {"interpolation": name, "crop_pct": share} if name is not None else {}


def _statistics(recorded: Mapping[str, Any], mean: str, std: str) -> dict[str, Any]:
    means, deviations = recorded.get(mean), recorded.get(std)
    for values in (means, deviations):
        if not isinstance(values, list) or not 0 < len(values) <= _MOST_CHANNELS:
            return {}
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            return {}
    if len(means) != len(deviations) or min(deviations) <= 0:  # type: ignore[arg-type]
        return {}
    return {"mean": tuple(means), "std": tuple(deviations)}  # type: ignore[arg-type]


def _size(size: object) -> dict[str, Any]:
    sides = size[-2:] if isinstance(size, list) and len(size) == 3 else []
    good = len(sides) == 2 and all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE for side in sides)
    return {"input_size": (3, *sides)} if good else {}
