"""What can be converted: checks of a module, of its tensors and of the images to measure it on."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount, listed
from bcos_fx.network import InputSpec, reserved_names
from bcos_fx.rewriting.core.match import NearMiss
from bcos_fx.rewriting.core.options import Options

_MOST_NAMED = 5
_DETECTORS_TRANSFORM = "torchvision.models.detection.transform.GeneralizedRCNNTransform"


def check_module(module: object) -> None:
    """Check that this is a module whose parts a graph can hold under their own names.

    Raises:
        UsageError: it is something else, or a part is named like an attribute of every graph or converted network.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"{_described(module)} is not a network", hint="give an instance of torch.nn.Module")
    _check_no_detector(module)
    taken = reserved_names() - set(dir(nn.Module))
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    for name, _ in (*module.named_children(), *tensors):
        if name in taken:
            raise UsageError(
                f"the module has a part named {name!r}, which is an attribute of every converted network",
                where=type(module).__name__,
                hint="rename it, or convert nn.Sequential(module), where it is called 0." + name,
            )


def _check_no_detector(module: nn.Module) -> None:
    """Refuse torchvision's detection models, as a trace would hold one image's boxes; their parts are fine."""
    transform = type(dict(module.named_children()).get("transform"))
    if f"{transform.__module__}.{transform.__qualname__}" == _DETECTORS_TRANSFORM:
        raise UsageError(
            "a detection model of torchvision resizes a list of images and keeps as many boxes as suppression leaves, "
            "so no graph holds for more than one image",
            where=type(module).__name__,
            hint="convert a module that returns what a box's score is read from, such as "
            "self.head(list(self.backbone(x).values()))['cls_logits'], and explain target=(box, class)",
        )


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    return "None" if value is None else f"an {kind}" if kind[0].lower() in "aeiou" else f"a {kind}"


def check_finite(graph_module: nn.Module) -> None:
    """Check that every number that the graph uses is one: with others nothing can be proved.

    Raises:
        UsageError: names the tensors that hold NaN or infinity. In buffers -inf is let through: masks are made of it.
    """
    broken = list(_not_finite(graph_module))
    if broken:
        raise UsageError(
            "the network holds numbers that are NaN or infinite, so nothing about it can be proved",
            where=listed(broken, _MOST_NAMED),
            hint="load a checkpoint from before the training diverged",
        )


def _not_finite(network: nn.Module) -> Iterator[str]:
    for name, parameter in network.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            yield name
    for name, buffer in network.named_buffers():
        if not bool((torch.isfinite(buffer) | (buffer == -math.inf)).all()):
            yield name


def check_encoding(
    options: Options, specs: Sequence[InputSpec], near_misses: Sequence[NearMiss], asked: Collection[str] | None
) -> None:
    """Check that statistics of images were not given for a network without an input that could be encoded.

    Args:
        options: of the conversion.
        specs: the network's inputs.
        near_misses: why rules did not match.
        asked: options that count as given; None: all that are not as usual.

    Raises:
        UsageError: they were; says why no input is one.
    """
    usual = Options()
    given = [n for n in ("mean", "std", "channels", "pixel_max") if getattr(options, n) != getattr(usual, n)]
    given = [name for name in given if asked is None or name in asked]
    if given and not any(spec.encoded for spec in specs):
        names = " and ".join(given) + (" were" if given[1:] else " was")
        reasons = [m.reason for m in near_misses if m.rule == "image-input-encoded"]
        reasons += ["input='none' was given, which takes every input as it is"] if options.input == "none" else []
        shapes = ", ".join(f"{s.name} {s.shape}" for s in specs)
        raise UsageError(
            f"{names} given, but no input is an image that could be encoded ({shapes})",
            where="; ".join(reasons) or None,
            hint=f"leave {' and '.join(given)} out, or normalize the input yourself",
        )


def check_images(images: object, specs: Sequence[InputSpec]) -> None:
    """Check that these are images that the converted network takes.

    Raises:
        UsageError: the network has several inputs, or the images have another form or range.
    """
    if not isinstance(images, Tensor):
        raise UsageError(f"images is {_described(images)}", hint="give one tensor: torch.stack(images)")
    if len(specs) > 1:
        names = ", ".join(spec.name for spec in specs)
        raise UsageError(
            f"images were given, and the network has {amount(len(specs), 'input')} ({names})",
            hint="leave images= out; example_inputs are used then",
        )
    shape, wanted = tuple(images.shape), specs[0].shape
    if len(shape) != len(wanted) or shape[1] != wanted[1] or shape[0] == 0:
        raise UsageError(
            f"the images have shape {shape}, the network takes (N, {', '.join(map(str, wanted[1:]))})",
            hint="give one tensor with the number of images first",
        )
    if specs[0].encoded:
        check_range(images)


def check_same_classes(network: int, original: int) -> None:
    """Check that a network and the original that it is compared with have as many classes.

    Raises:
        UsageError: they have not, so that an index does not name one class of both.
    """
    if network != original:
        raise UsageError(
            f"the original has {amount(original, 'class')}, and the network has {network}",
            hint="give the original with the same classes in the same order: what was converted, or a conversion of it "
            "by the recipe equivalent with the classes that were kept (--head subset, classes=)",
        )


def check_range(images: Tensor) -> None:
    """Check that these are floating-point images in [0, 1], NaN left out.

    Raises:
        UsageError: they are not; says what they hold.
    """
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise UsageError(f"the images hold {kind} values, not numbers in [0, 1]", hint="images.float() / 255")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise UsageError(
            f"the images hold values from {low:.3g} to {high:.3g}, not in [0, 1]",
            hint="divide bytes by 255, and leave the normalization to mean= and std=",
        )
