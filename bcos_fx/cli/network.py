"""From what was asked on the command line to the arguments of the library. Imports torch: load it inside commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.artifact import load
from bcos_fx.checkpoint import (
    build_architecture,
    classifies_images,
    digest_of_weights,
    has_random_weights,
    identify,
    published,
    read_model,
)
from bcos_fx.cli import values
from bcos_fx.cli.console import echo
from bcos_fx.cli.request import Request
from bcos_fx.data.batches import Batches, note_enlarged
from bcos_fx.data.classes import read_classes
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.data.sources import ImageSource
from bcos_fx.data.stores import open_source
from bcos_fx.errors import UsageError, check_choice, nearest
from bcos_fx.example import recorded_preprocessing, recorded_size, recorded_statistics
from bcos_fx.explanation.layout import own_form
from bcos_fx.network import BcosNetwork, Origin
from bcos_fx.report.sentences import RANDOM_WEIGHTS
from bcos_fx.rewriting.core.recipe import DEFAULT_RECIPE, load_recipe

_DEFAULT_SIZE = (224, 224)
_RECORDED = {"license": "license", "url": "origin_url"}
_BATCH, _VERIFIED_ON = 16, 32


def read_network(
    model: Path | None, *, arch: str | None, key: str | None = None, trust_pickle: bool = False
) -> nn.Module:
    """Read or build the network, in eval mode."""
    if model is not None:
        return read_model(model, arch=arch, key=key, trust_pickle=trust_pickle)
    if arch is None:
        raise UsageError("there is nothing to convert", hint="name a checkpoint, or a network with --arch")
    return build_architecture(arch).eval()


def device_of(name: str) -> torch.device:
    """Return the device of a name."""
    # Only the backend knows whether a device is there, and its error depends on the backend.
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        devices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        raise UsageError(
            f"device is {name!r}, and this machine has {', '.join(devices)}", hint=nearest(name, devices)
        ) from error


def read_original(
    model: Path | None, *, arch: str | None, key: str | None = None, trust_pickle: bool = False
) -> nn.Module:
    """Read what a converted network is compared with: a network in any form that convert takes, or a converted one.

    Random weights are warned of on stderr.
    """
    if model is not None and model.is_file() and identify(model).kind == "bcos-fx":
        return load(model).eval()
    if (random := random_weights(model, arch)) is not None:
        echo(f"warning: {random}", err=True)
    return read_network(model, arch=arch, key=key, trust_pickle=trust_pickle).eval()


def random_weights(model: Path | None, arch: str | None) -> str | None:
    """Return the warning for a network whose weights are random: a library's, with neither weights nor a file named."""
    if model is not None or arch is None or not has_random_weights(arch):
        return None
    name = {"torchvision": "pretrained", "timm": "pretrained", "open_clip": "TAG"}.get(arch.partition(":")[0])
    named = "a checkpoint" if name is None else f"trained ones, --arch {arch}@{name}, or a checkpoint"
    return f"{RANDOM_WEIGHTS}: {arch} names no weights, so the network has learned nothing; give {named}"


def arguments_for(module: nn.Module, request: Request) -> dict[str, Any]:
    """Return the arguments that depend on the network: what its library records of its images, and images to prove on.

    The recorded mean and std are taken unless an option or the recipe has some, or the input is taken as it is.
    """
    arguments: dict[str, Any] = {"output_key": output_key_of(module, request)}
    if request.images is not None:
        shape = values.shape(request.input_shape) or (3, *(recorded_size(module) or _DEFAULT_SIZE))
        source = open_source(request.images)
        preprocessing = Preprocessing.of(shape, **recorded_preprocessing(module))
        note_enlarged(source, preprocessing)
        arguments["images"] = some_images(source, preprocessing, _VERIFIED_ON)
    recorded, options = recorded_statistics(module), load_recipe(request.recipe or DEFAULT_RECIPE).options
    given = options.mean or (request.mean, request.std, request.batch_axis) != (None, None, None)
    # Published B-cos networks normalize inside, as do those that take images as they are.
    raw = (request.input or options.input) == "none" or published.origin_of(module) is not None
    # Statistics of three channels do not fit a network whose first convolution was exchanged for another number.
    first = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    if recorded is not None and not (given or raw) and first is not None and first.in_channels == len(recorded[0]):
        arguments["mean"] = "auto"
    return arguments


def output_key_of(module: nn.Module, request: Request) -> int | str | None:
    """Return which part of the module's output is taken: as asked for, and of image classifiers their logits."""
    return "logits" if request.output_key is None and classifies_images(module) else values.key(request.output_key)


def conversion_arguments(request: Request) -> dict[str, Any]:
    """Return the keyword arguments of :func:`bcos_fx.convert.bcosify`."""
    shape = values.shape(request.input_shape)
    mean, std = values.mean(request.mean), values.numbers(request.std, "--std")
    if mean == "auto" and std is not None:
        raise UsageError("--std was given beside --mean auto", hint="auto finds both: leave --std out")
    arguments: dict[str, Any] = {
        "recipe": request.recipe or DEFAULT_RECIPE,
        "b": values.pressure(request.b),
        "mean": mean,
        "std": std,
        "rules": request.rules,
        "output_key": values.key(request.output_key),
        "train": "refuse" if request.train is None else request.train,
        "verified": request.verified,
        "verify": request.verify,
    }
    arguments |= _class_arguments(request)
    axis = values.axis(request.batch_axis)
    if axis != 0:
        _check_whole(request)
        arguments["batch_axis"] = axis
    if shape is not None:
        samples = example_of(shape)
        arguments["example_inputs"] = own_form(samples, values.in_range(axis, samples.dim()))
    for place in filter(None, (request.images, request.calibrate)):
        open_source(place)  # a folder that is not there is found out before the work, not after it
    return arguments | _options(request)


def _check_whole(request: Request) -> None:
    """Check what is given beside a batch axis."""
    if request.input_shape is None:
        raise UsageError("--batch-axis was given without a shape", hint="give one sample's shape with --input-shape")
    if request.images is not None or request.calibrate is not None:
        raise UsageError(
            "--images and --calibrate put samples first, and --batch-axis has them elsewhere",
            hint="leave them out; the network is verified on made-up inputs",
        )


def origin_of(request: Request, network: BcosNetwork, original: nn.Module) -> Origin:
    """Return what is known of the network that was converted: its architecture, its file of weights, its license."""
    origin = network.record.origin or Origin(type(original).__name__)
    facts: dict[str, str] = {} if request.arch is None else {"name": request.arch}
    if request.model is not None:
        facts["file"], facts["sha256"] = digest_of_weights(request.model)
    elif request.arch is not None and not has_random_weights(request.arch):
        recorded = getattr(original, "pretrained_cfg", None) or {}
        facts |= {name: str(recorded[key]) for name, key in _RECORDED.items() if recorded.get(key)}
    if request.license is not None:
        facts["license"] = request.license
    return replace(origin, **facts)


def example_of(shape: tuple[int, ...]) -> Tensor:
    """Return two samples of a shape, in [0, 1]."""
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))


def _class_arguments(request: Request) -> dict[str, Any]:
    """Return which of the classifier's classes are kept."""
    check_choice("head", request.head, ("keep", "subset"))
    names = None if request.classes is None else read_classes(request.classes)
    if request.head == "keep":
        if request.data is not None:
            raise UsageError("--data names the classes to keep", hint="--head subset keeps them")
        return {"class_names": names}
    if request.data is None:
        raise UsageError("the classes to keep are not named", hint="name a folder of them with --data")
    source = open_source(request.data)
    source.check_labeled()
    classes = source.classes or tuple(map(str, sorted(set(source.labels or ()))))
    return {"classes": classes, "class_names": names}


def some_images(source: ImageSource, preprocessing: Preprocessing, count: int) -> Tensor:
    """Read a few images of a source, evenly spread; UsageError where there are none, or one cannot be read."""
    # One batch of all of them: its indices are spread evenly over the source.
    (part,) = Batches(source, preprocessing, count, count).parts
    return torch.stack([source.read(index, preprocessing).image for index in part])


def calibration_images(
    network: BcosNetwork, place: Path, names: Sequence[str] | None = None, count: int | None = None
) -> Batches:
    """Return batches of images as the network takes them: all, or so many, evenly spread.

    Labels only count hits: where folders cannot be classes of the network, by the names given or those that it keeps,
    they hold photographs without labels.
    """
    if names is not None:
        source = open_source(place, classes=names)
        source.check_labeled()
    else:
        try:
            source = open_source(place, classes=network.record.classes or None)
        except UsageError as error:
            source = open_source(place)
            _leave_labels_out(source, error)
    if not source.unlabeled:
        try:
            source.check_classes(network.class_count())
        except UsageError as error:
            _leave_labels_out(source, error)
    note_enlarged(source, network.preprocessing)
    return Batches(source, network.preprocessing, _BATCH, count)


def _leave_labels_out(source: ImageSource, error: UsageError) -> None:
    source.unlabeled = True
    echo(f"note: labels are left out, so hits are not counted: {error.what}", err=True)


def _options(request: Request) -> dict[str, Any]:
    """Return the options that were given; those that were not stay the recipe's."""
    names = ("scale", "projections", "bias", "classifier", "positions", "input", "channels", "pixel_max")
    given = {name: getattr(request, name) for name in names}
    given["eps"] = values.eps(request.eps)
    given["leaf_modules"] = tuple(request.leaf_modules) or None
    return {name: value for name, value in given.items() if value is not None}
