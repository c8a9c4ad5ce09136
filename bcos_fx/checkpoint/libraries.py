"""Networks that libraries build by name, with the weights that a name includes.

``resnet50@IMAGENET1K_V2`` of torchvision, ``resnet18.a1_in1k`` or ``resnet18@a1_in1k`` of timm, ``RN50@openai`` of
open_clip; ``@pretrained`` is the library's own choice, of torchvision and timm. A name without weights builds random
ones.
"""

from __future__ import annotations

import inspect
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from bcos_fx.errors import BcosFxError, CheckpointError, nearest
from bcos_fx.lazy import library

T = TypeVar("T")
_PATIENCE = 5.0


def names_weights(origin: str, name: str) -> bool:
    """Return whether a library's name includes weights; after ``@`` a class of transformers has its attention."""
    return origin != "transformers" and ("@" in name or (origin == "timm" and "." in name))


def build_module(factory: Callable[[], Any], arch: str, weights: Callable[[], str] | None = None) -> nn.Module:
    """Build a network.

    Raises:
        CheckpointError: the factory failed or returned no module, or the weights are not available.
    """
    try:
        module: object = factory()
    except BcosFxError:
        raise
    except Exception as error:  # code that is not ours may raise anything; the cause stays attached
        if weights is None:
            raise _raised("building the network", error, arch) from error
        raise CheckpointError(
            f"the weights of {arch} are not in the cache and could not be downloaded: {type(error).__name__}: {error}",
            where=weights(),
            hint="copy that file there from a machine that has it, or give the file itself, and --arch without weights",
        ) from error
    if isinstance(module, nn.Module):
        return module
    raise CheckpointError(
        f"the factory returned {type(module).__name__}, not an nn.Module",
        where=arch,
        hint="let it take no arguments and return the network",
    )


def run_users_code(call: Callable[[], T], arch: str, doing: str) -> T:
    """Run code that is not ours.

    Raises:
        CheckpointError: it raised something; the cause stays attached.
    """
    try:
        return call()
    except BcosFxError:
        raise
    except Exception as error:
        raise _raised(doing, error, arch) from error


def _raised(doing: str, error: Exception, arch: str) -> CheckpointError:
    hint = "the factory must run by itself, without arguments and without downloads"
    return CheckpointError(f"{doing} raised {type(error).__name__}: {error}", where=arch, hint=hint)


def import_library(name: str, extra: str) -> Any:
    """Import a library; MissingExtraError names the extra that brings it."""
    return library(name, extra, f"--arch {name.partition('.')[0]}:...")


# ---------------------------------------------------------------- torchvision


def torchvision_model(name: str, arch: str) -> nn.Module:
    """Build ``NAME[@WEIGHTS]``; named weights are recorded in ``pretrained_cfg``, in timm's words."""
    models = import_library("torchvision.models", "vision")
    name, _, wanted = name.partition("@")
    known = models.list_models()
    if name not in known:
        raise CheckpointError(f"torchvision has no model {name!r}", where=arch, hint=nearest(name, known))
    wanted = "DEFAULT" if wanted == "pretrained" else wanted
    if not wanted:
        return build_module(lambda: models.get_model(name, weights=None, **without_downloads(models, name)), arch)
    choices = models.get_model_weights(name)
    if wanted not in choices.__members__:
        hint = nearest(wanted, choices.__members__)
        raise CheckpointError(f"{name} has no weights {wanted!r}", where=arch, hint=hint)
    weights = choices[wanted]
    module = build_module(lambda: models.get_model(name, weights=weights), arch, lambda: _from_url(weights.url))
    preset = weights.transforms()
    recorded: dict[str, Any] = {"name": arch, "label_names": weights.meta.get("categories")}
    recorded["origin_url"] = weights.meta.get("recipe")
    if hasattr(preset, "mean") and hasattr(preset, "std"):
        recorded |= {"mean": tuple(preset.mean), "std": tuple(preset.std), **_resizing(preset)}
    module.pretrained_cfg = recorded  # type: ignore[assignment]
    return module


def _resizing(preset: Any) -> dict[str, Any]:
    """Return how the preset of weights resizes and crops, in timm's words; an empty dict for other presets."""
    resize, crop = getattr(preset, "resize_size", None), getattr(preset, "crop_size", None)
    if not (isinstance(resize, list) and isinstance(crop, list) and len(resize) == len(crop) == 1):
        return {}
    return {
        "input_size": (3, crop[0], crop[0]),
        "interpolation": preset.interpolation.value,
        "crop_pct": crop[0] / resize[0],
    }


def without_downloads(models: Any, name: str) -> dict[str, None]:
    """Return the keywords that stop torchvision from downloading a backbone, as detection models do by default."""
    takes = inspect.signature(models.get_model_builder(name)).parameters
    return {"weights_backbone": None} if "weights_backbone" in takes else {}


# ---------------------------------------------------------------- timm


def timm_model(name: str, arch: str, *, fetch: bool = True, classes: int | None = None) -> nn.Module:
    """Build ``NAME``, ``NAME.TAG``, ``NAME@TAG`` or ``NAME@pretrained``.

    Args:
        name: of the model.
        arch: as the user named it.
        fetch: load the weights that the name includes; else only what timm records of them is on the module.
        classes: how many it has; None: as many as its published weights.
    """
    timm = import_library("timm", "timm")
    stem, at, asked = name.partition("@")
    if not timm.is_model(stem):
        raise CheckpointError(
            f"timm has no model {stem!r}", where=arch, hint=nearest(stem.partition(".")[0], timm.list_models())
        )
    sized = {} if classes is None else {"num_classes": classes}
    if not names_weights("timm", name):
        return build_module(lambda: timm.create_model(name, pretrained=False, **sized), arch)
    tagged = f"{stem}.{asked}" if at and asked != "pretrained" else stem
    stem, _, tag = tagged.partition(".")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{stem}*") if known.partition(".")[0] == stem]
    if not tags or (tagged != stem and tag not in tags):
        reason = f"timm has no weights {tag!r} of {stem}" if tags else f"timm has no weights of {stem}"
        hint = nearest(tag, tags) if tags else "give a checkpoint file beside --arch"
        raise CheckpointError(reason, where=arch, hint=hint)
    # Still under the tagged name: timm then records what it knows of the weights that a file will bring.
    if not fetch:
        return build_module(lambda: timm.create_model(tagged, pretrained=False, **sized), arch)
    with cache_alone_if_unreachable():
        return build_module(
            lambda: timm.create_model(tagged, pretrained=True), arch, lambda: _timms_place(timm, tagged)
        )


def _timms_place(timm: Any, tagged: str) -> str:
    recorded = timm.get_pretrained_cfg(tagged)
    if recorded.hf_hub_id:
        return _from_hub(recorded.hf_hub_id, recorded.hf_hub_filename or "model.safetensors")
    return _from_url(str(recorded.url or recorded.file))


# ---------------------------------------------------------------- open_clip


def open_clip_choice(text: str, arch: str) -> tuple[Any, str, str | None]:
    """Return open_clip, the name of one of its models, and the tag of its pretrained weights, of ``NAME[@TAG]``.

    Raises:
        CheckpointError: it has no such model, or no such weights of it; names the nearest.
        MissingExtraError: it is not installed.
    """
    open_clip = import_library("open_clip", "clip")
    name, at, tag = text.partition("@")
    known = open_clip.list_models()
    if name not in known:
        raise CheckpointError(f"open_clip has no model {name!r}", where=arch, hint=nearest(name, known))
    if at and tag not in (tags := open_clip.list_pretrained_tags_by_model(name)):
        raise CheckpointError(f"open_clip has no weights {tag!r} of {name}", where=arch, hint=nearest(tag, tags))
    return open_clip, name, tag or None


def open_clip_model(open_clip: Any, name: str, tag: str | None) -> Any:
    """Build one of open_clip's models, with the weights of a tag, or without and then without its word on that.

    It logs that weights are random. Where none were asked for they come from the caller's file, or were meant to be.
    """

    def wanted(record: logging.LogRecord) -> bool:
        return tag is not None or "No pretrained weights" not in record.getMessage()

    # open_clip logs through the root logger, so the filter has to be there.
    root = logging.getLogger()
    root.addFilter(wanted)
    try:
        return open_clip.create_model(name, pretrained=tag)
    finally:
        root.removeFilter(wanted)


def open_clip_tower(name: str, arch: str) -> nn.Module:
    """Build the image tower of ``NAME[@TAG]``; one with weights records their mean and std."""
    open_clip, name, tag = open_clip_choice(name, arch)
    place = None if tag is None else lambda: _open_clips_place(open_clip.get_pretrained_cfg(name, tag))
    with cache_alone_if_unreachable() if tag else nullcontext():
        visual = build_module(lambda: open_clip_model(open_clip, name, tag).visual, arch, place)
    if not tag and hasattr(visual, "preprocess_cfg"):
        del visual.preprocess_cfg  # without weights it is CLIP's mean and std for every model, and no record
    return visual


def _open_clips_place(recorded: Mapping[str, Any]) -> str:
    repository, _, file = str(recorded.get("hf_hub") or "").rpartition("/")
    if repository:
        return _from_hub(repository, file or "open_clip_model.safetensors")
    return _from_url(str(recorded.get("url")), Path("~/.cache/clip").expanduser())


# ---------------------------------------------------------------- caches


def no_connection(address: str) -> bool:
    """Return whether a machine is out of reach, which the hub's library notices after a minute; False for a proxy.

    Args:
        address: its URL.
    """
    parts = urllib.parse.urlsplit(address)
    if urllib.request.getproxies():
        return False
    try:
        socket.create_connection((parts.hostname, parts.port or parts.scheme), timeout=_PATIENCE).close()
    except OSError:
        return True
    return False


@contextmanager
def cache_alone_if_unreachable() -> Iterator[None]:
    """Have the hub's library read its cache alone where the hub cannot be reached, which it would try for minutes."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or no_connection(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _from_hub(repository: str, file: str) -> str:
    from huggingface_hub import constants  # both libraries that name repositories bring it

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    return f"{file} of huggingface.co/{repository}, in the cache {folder} (HF_HOME moves it)"


def _from_url(url: str, cache: Path | None = None) -> str:
    folder = Path(torch.hub.get_dir()) / "checkpoints" if cache is None else cache
    return f"{url}, in the cache as {folder / url.rpartition('/')[2]}" + ("" if cache else " (TORCH_HOME moves it)")
