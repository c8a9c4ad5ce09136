"""What a module takes and gives: guesses of its input, its normalization, the part of its output to explain."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bcos_fx.data.preprocessing import INTERPOLATIONS
from bcos_fx.errors import UsageError
from bcos_fx.network import BcosNetwork
from bcos_fx.nn import InputEncoding
from bcos_fx.tracing.exported import Exported
from bcos_fx.tracing.inputs import ExampleError, ExampleInputs, part_of

T = TypeVar("T")

IMAGE_SIZES = (224, 64, 32)
_USUAL = "for ImageNet models usually mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)"


def guesses(module: nn.Module) -> Iterator[Tensor]:
    """Yield inputs that the module may take: two samples of noise in [0, 1], as its first layer reads them.

    Behind an encoding [x, 1 - x] a layer reads twice the channels of the input. An exported program notes the
    shape of its input, which is taken as it is. The size that the module itself records is the first guess.

    Raises:
        UsageError: the first layer does not say what the module takes.
    """
    if isinstance(module, Exported) and (noted := module.noted_input()) is not None:
        yield noted
        return
    parts = 1
    for name, layer in module.named_modules():
        if isinstance(layer, InputEncoding):
            parts = 2
        if isinstance(layer, nn.Conv2d):
            sizes = [(size, size) for size in IMAGE_SIZES]
            for height, width in dict.fromkeys([recorded_size(module) or sizes[0], *sizes]):
                yield _noise(layer, layer.in_channels // parts, height, width)
            return
        if isinstance(layer, nn.Linear):
            yield _noise(layer, layer.in_features)
            return
        if isinstance(layer, nn.Conv1d | nn.Conv3d | nn.Embedding):
            raise UsageError(
                f"the first layer, {name or 'the module'} ({type(layer).__name__}), does not say how long its input is",
                hint="give example_inputs=, a batch of at least two samples",
            )
    raise UsageError("the module has no layer that says what it takes", hint="give example_inputs=")


def recorded_size(module: nn.Module) -> tuple[int, int] | None:
    """Return height and width of a module's images as it records them (timm and open_clip do), or None."""
    for record, name in (("pretrained_cfg", "input_size"), ("preprocess_cfg", "size")):
        recorded = getattr(module, record, None)
        size = recorded.get(name) if isinstance(recorded, Mapping) else None
        sides = [size] * 2 if isinstance(size, int) else list(size)[-2:] if isinstance(size, list | tuple) else []
        if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides):
            return sides[0], sides[1]
    return None


def _noise(layer: nn.Conv2d | nn.Linear, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = layer.weight
    device = torch.device("cpu") if weight.is_meta else weight.device
    return torch.rand(2, *shape, generator=generator, dtype=torch.float32).to(dtype=weight.dtype, device=device)


def first_that_runs(module: nn.Module, run: Callable[[Tensor], T]) -> tuple[Tensor, T]:
    """Try guesses of a module's input until one runs; return it and what ``run`` made of it.

    Raises:
        UsageError: there is nothing to guess from, or the module takes none of the guesses.
    """
    failures: list[ExampleError] = []
    for guess in guesses(module):
        try:
            return guess, run(guess)
        except ExampleError as failure:
            failures.append(failure)
    raise _no_guess_fits(failures)


def notes_of_guess(module: nn.Module, guess: Tensor) -> list[str]:
    """Return what a user should read of a guess: that the size of images is one, where the module records none."""
    if guess.dim() != 4 or isinstance(module, Exported) or recorded_size(module) is not None:
        return []
    height, width = guess.shape[2:]
    return [
        f"the size of the images was guessed: {height}x{width} pixels, to which photographs are brought; if the "
        "network was trained on others, give example_inputs= of their size (--input-shape)"
    ]


def _no_guess_fits(failures: Sequence[UsageError]) -> UsageError:
    """Return the error for a module that took none of the guesses."""
    sizes = ", ".join(f"{size}x{size}" for size in IMAGE_SIZES)
    return UsageError(
        f"the module takes none of the inputs that were tried ({sizes} pixels, or its first linear layer's width): "
        f"{failures[-1].what}",
        where=failures[-1].where,
        hint="give example_inputs=, a batch of at least two samples",
    )


def statistics(
    module: nn.Module, mean: Sequence[float] | float | str | None, std: Sequence[float] | float | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std as tuples, empty where neither was given.

    Raises:
        UsageError: only one was given, or ``mean="auto"`` finds no record on the module.
    """
    if isinstance(mean, str) and mean == "auto":
        recorded = recorded_statistics(module)
        if recorded is None:
            raise UsageError("the module keeps no record of the normalization it was trained with", hint=_USUAL)
        mean, std = recorded
    if isinstance(mean, str):
        raise UsageError(f"mean is {mean!r}", hint='give one number per channel, or "auto"')
    if (mean is None) != (std is None):
        given, missing = ("std", "mean") if mean is None else ("mean", "std")
        raise UsageError(f"{given} was given without {missing}", hint=_USUAL)
    return _tuple("mean", mean), _tuple("std", std)


def recorded_statistics(module: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std as the module itself records them (timm and open_clip keep them so), or None."""
    for name in ("pretrained_cfg", "preprocess_cfg"):
        recorded = getattr(module, name, None)
        if isinstance(recorded, Mapping) and recorded.get("mean") and recorded.get("std"):
            return _tuple("mean", recorded["mean"]), _tuple("std", recorded["std"])
    return None


def recorded_preprocessing(module: nn.Module) -> dict[str, Any]:
    """Return ``interpolation`` and ``crop_pct`` as the module itself records them, where it does.

    timm and the architectures of :mod:`bcos_fx.checkpoint` record both in ``pretrained_cfg``; open_clip records the
    interpolation in ``preprocess_cfg``, and its crop keeps the whole short side. What this package does not do (other
    interpolations, images squeezed into a square) is left out.
    """
    for name in ("pretrained_cfg", "preprocess_cfg"):
        recorded = getattr(module, name, None)
        if not isinstance(recorded, Mapping):
            continue
        whole = recorded.get("resize_mode", "shortest") == "shortest" and "size" in recorded
        crop = recorded.get("crop_pct", 1.0 if whole and name == "preprocess_cfg" else None)
        interpolation = recorded.get("interpolation")
        if interpolation in INTERPOLATIONS and isinstance(crop, int | float) and 0 < crop <= 1:
            return {"interpolation": interpolation, "crop_pct": float(crop)}
    return {}


def check_statistics(module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], *, recipe: str) -> None:
    """Check that the mean and std of a recipe are not other ones than the module records.

    Raises:
        UsageError: they are.
    """
    recorded = recorded_statistics(module)
    if mean and recorded is not None and recorded != (mean, std):
        raise UsageError(
            f"the recipe {recipe!r} has mean {mean} and std {std}, the module records {recorded[0]} and {recorded[1]}",
            hint='give mean="auto" for the module\'s own, or mean and std',
        )


def _tuple(name: str, value: Sequence[float] | float | None) -> tuple[float, ...]:
    if value is None:
        return ()
    wrong = UsageError(f"{name} is {value!r}", hint="give one number per channel")
    if isinstance(value, str | Mapping):
        raise wrong
    try:
        return (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise wrong from error


def equal_copy(network: BcosNetwork) -> BcosNetwork:
    """Return a copy of a network that is converted already, whose report says so."""
    note = "the network was already converted: this is an equal copy, nothing was rewritten"
    notes = tuple(dict.fromkeys((*network.report.notes, note)))
    return copy.deepcopy(network).with_report(dataclasses.replace(network.report, notes=notes))


def selected(result: object, output: int | str | None) -> Any:
    """Return the part of a module's output that was asked for: an element, a key, an attribute, or a path of these."""
    return result if output is None else part_of(result, output)


def check_whole(inputs: object, *, has_images: bool) -> None:
    """Check what is given beside a batch axis that is not the first dimension.

    Raises:
        UsageError: there is no example, or images are given, which hold their samples first.
    """
    if inputs is None:
        raise UsageError("batch_axis= was given without example_inputs=", hint="give what the module takes")
    if has_images:
        raise UsageError("images hold their samples first, and batch_axis= has them elsewhere", hint="leave images out")


def like(example: ExampleInputs, values: Sequence[Tensor]) -> Any:
    """Return example inputs of the same form, with other tensors in the places of theirs, in order."""
    if isinstance(example, Tensor):
        return values[0]
    rest = iter(values)
    if isinstance(example, Mapping):
        return {name: next(rest) if isinstance(value, Tensor) else value for name, value in example.items()}
    return tuple(next(rest) if isinstance(value, Tensor) else value for value in example)


def chosen_options(
    module: nn.Module,
    b: float | Mapping[str, float] | None,
    mean: Sequence[float] | float | str | None,
    std: Sequence[float] | float | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the options that a caller chose, with the statistics of images where they are known."""
    chosen = dict(options)
    if b is not None:
        chosen["b"] = b
    mean, std = statistics(module, mean, std)
    if mean or std:
        chosen |= {"mean": mean, "std": std}
    return chosen
