"""explain(): why a network gave an output, as the computation itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.certification import in_order, view_of
from bcos_fx.errors import UsageError, VerificationError
from bcos_fx.explanation.axes import Axes, axes_of
from bcos_fx.explanation.result import Constants, Explanation
from bcos_fx.explanation.targets import Chosen, Target, chosen, label_of, named
from bcos_fx.proofs.completeness import judged
from bcos_fx.proofs.view import DynamicWeights, ExplanationView
from bcos_fx.rewriting.network import BcosNetwork
from bcos_fx.subject import check_module
from bcos_fx.tracing.exported import as_module
from bcos_fx.tracing.inputs import bind

_SHARE_OF_MEMORY = 0.4
_NAMED = 3


def explain(
    model: nn.Module,
    images: Tensor | Mapping[str, Tensor],
    target: Target = None,
    *,
    output: str | None = None,
    source: str | None = None,
    others: Sequence[Tensor] = (),
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    channel_axis: int | None = None,
    allow_incomplete: bool = False,
) -> Explanation:
    """Explain outputs of a dynamic linear network by what it computed: f(x) = W(x)·x + Σ_c W_c(x)·c.

    Nothing is estimated: W(x) is the linear map that the network applied to x, and the contributions of x and of all
    constants add up to the output (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 3.2).

    Args:
        model: a converted network in eval mode, or any other dynamic linear module, which is traced anew in each call.
        images: (N, C, H, W), in [0, 1] for a converted image network; or whatever its first input is, such as
            embeddings (N, L, E) or features (N, F). On the model's device; not changed. Or all inputs by name, in any
            order: outputs are explained by the first of them that holds no whole numbers, so not by a mask.
        target: None (the predicted class), ``top3`` and the like, ``all``, an index, a class name, (N,) or a flat list
            (one per sample), (N, K) or a list of lists (several per sample), or a linear function from the outputs to
            (N,) or (N, K); if that has ``names``, as that of :func:`bcos_fx.explanation.cosine` has, they are scores of
            those names. For an inner layer an index is a channel, summed over its positions, and a tuple of indices is
            one unit.
        output: what is explained: None for the output, ``logits`` for the value before a final softmax or sigmoid, or
            the name of a layer.
        source: what it is explained by: None for the input, or the name of a layer, whose activations then take the
            place of the images; what reaches the output past that layer is listed among the constants.
        others: the network's further inputs, in order, where ``images`` is the first.
        names: class names, for targets and pictures.
        batch_size: samples that are computed at once; None: as many as fit into memory.
        channel_axis: the dimension of what outputs are explained by that holds its channels, over which
            ``contributions`` are summed, as counted in (N, ...); None: the one that the first layer sums over.
        allow_incomplete: explain a network that is not dynamic linear too; the result then says what is missing.

    Returns:
        The explanation, on the images' device. The model, its parameters and their gradients stay as they are.

    Raises:
        UsageError: images or target do not fit.
        VerificationError: the network is not dynamic linear; says where it breaks.
    """
    check_module(model := as_module(model))
    given = _in_order(model, images, others)
    example: Any = given
    if isinstance(images, Mapping):
        example, images = images, _explained_by(given)
    _check_images(model, images, given)
    view = view_of(model, example, output=output, source=source)
    _check_count(view, len(given))
    view.check_values(given)
    if not view.certificate.ok and not allow_incomplete:
        raise _not_linear(view)
    wanted = named(target, names)
    parts, choices = [], []
    for place in _chunks(view, images, batch_size):
        inputs = [value[place] if _has_samples(value, images) else value for value in given]
        with model.naming_shapes(given) if isinstance(model, BcosNetwork) else nullcontext():
            part, choice = _explained(view, inputs, _of_samples(wanted, place, len(images)))
        parts.append(part)
        choices.append(choice)
    axes = axes_of(view.unfrozen, view.start.name, tuple(parts[0].start.shape), channel_axis)
    found = _result(view, images, parts, choices, _notes(model, images), names, axes)
    found = replace(found, labels=label_of(wanted, found.name, names, parts[0].value.shape))
    return found if getattr(wanted, "names", None) is None else _scored(found, wanted.names)


def _explained(view: ExplanationView, inputs: list[Tensor], target: Any) -> tuple[DynamicWeights, Chosen]:
    # What sums are compared with is what the network itself returns, and never what the view computed.
    own = view.own_value(inputs)
    with torch.inference_mode(False), torch.enable_grad():
        value = own.clone().requires_grad_()  # a target function is checked for whether it depends on its argument
        choice = chosen(target, value)
        numbers = choice.select(value).detach()
    found = view.dynamic_weights(inputs, choice.select)
    return replace(found, value=own, output=numbers), choice


def _result(
    view: ExplanationView,
    images: Tensor,
    parts: list[DynamicWeights],
    choices: list[Chosen],
    notes: list[str],
    names: Sequence[str] | None,
    axes: Axes,
) -> Explanation:
    single = choices[0].single
    found = DynamicWeights.joined(parts)
    judgement = judged(found)
    complete = view.certificate.ok and judgement.verdict != "incomplete"
    if not view.certificate.ok:
        notes.append(f"the network is not dynamic linear: {view.certificate.breaks[0]}")
    elif not complete:
        notes.append(f"contributions do not add up: {judgement}")
    notes += [axes.note] if axes.note else []
    indices = None if choices[0].indices is None else torch.cat([c.indices for c in choices if c.indices is not None])
    scores = found.value if found.value.dim() == 2 else None

    def one(values: Tensor) -> Tensor:
        return values.squeeze(1) if single else values

    return Explanation(
        inputs=images.detach(),
        encoded=found.start,
        weights=one(found.weights),
        output=one(found.output),
        prediction=None if scores is None else scores.argmax(1),
        scores=scores,
        target=None if indices is None else one(indices.to(images.device)),
        constants=Constants({name: one(values) for name, values in found.constants.items()}, one(found.output)),
        where=view.certificate.explained,
        names=None if names is None else tuple(names),
        colours=_has_colours(found.start, found.weights),
        notes=tuple(notes),
        complete=complete,
        channel_axis=axes.channel,
        axes=axes.places,
    )


def _scored(found: Explanation, names: Sequence[str]) -> Explanation:
    """The explanation of numbers that are themselves the scores of named things, and not parts of the outputs."""
    scores = found.output.reshape(len(found), len(names))
    places = torch.arange(len(names), device=scores.device).expand_as(scores)
    return replace(
        found,
        scores=scores,
        prediction=scores.argmax(1),
        target=places.reshape(found.output.shape),
        names=tuple(names),
    )


def _has_colours(start: Tensor, weights: Tensor) -> bool:
    """Whether both halves of an encoded image are weighted, so that weights have a colour.

    Other things have two or six channels too, inner layers say; of an encoding [x, 1 - x] the halves add up to 1.
    """
    if start.dim() != 4 or start.shape[1] not in (2, 6):
        return False
    channels = start.shape[1]
    straight, inverse = start.chunk(2, dim=1)
    rounding = 4 * torch.finfo(start.dtype).eps * max(1.0, float(start.abs().max()))
    if not bool(((straight + inverse - 1).abs() <= rounding).all()):
        return False
    return bool((weights[:, :, channels // 2 :] != 0).any())


def _not_linear(view: ExplanationView) -> VerificationError:
    breaks = [str(found) for found in view.certificate.breaks]
    more = f" and {len(breaks) - _NAMED} more" if len(breaks) > _NAMED else ""
    ends_in_gate = any(found.node == view.end.name for found in view.certificate.breaks)
    return VerificationError(
        f"the network's {view.certificate.explained} is not dynamic linear, so no W(x) explains it",
        where="; ".join(breaks[:_NAMED]) + more,
        hint='explain the value before the last gate with output="logits"'
        if ends_in_gate
        else "allow_incomplete=True explains the rest, and labels what is missing",
    )


# ---------------------------------------------------------------- samples


def _has_samples(value: Any, images: Tensor) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == len(images)


def _of_samples(target: Any, place: slice, samples: int) -> Any:
    """The part of a target that belongs to some samples."""
    if isinstance(target, Tensor) and target.dim() and len(target) == samples:
        return target[place]
    return target[place] if isinstance(target, list) and len(target) == samples else target


def _chunks(view: ExplanationView, images: Tensor, batch_size: int | None) -> list[slice]:
    samples = len(images)
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise UsageError(f"batch_size is {batch_size!r}", hint="give a whole number of at least 1, or leave it out")
    size = samples if batch_size is None else batch_size
    if samples > 1 and not view.separable:
        size = 1
    elif batch_size is None and samples > 1:
        size = max(1, min(samples, int(_SHARE_OF_MEMORY * _free_memory(images) / _bytes_per_sample(view, images))))
    return [slice(first, min(first + size, samples)) for first in range(0, samples, size)]


def _bytes_per_sample(view: ExplanationView, images: Tensor) -> float:
    """What a backward pass keeps at the most: the values of all nodes, as they were in the example run."""
    shapes = [node.meta.get("shape") for node in view.graph_module.graph.nodes]
    example = view.inputs[0].meta.get("shape") or images.shape
    numbers = sum(torch.Size(shape).numel() for shape in shapes if shape)
    return max(1.0, numbers * images.element_size() / torch.Size(example).numel() * images[0].numel())


def _free_memory(images: Tensor) -> float:
    if images.is_cuda:
        return float(torch.cuda.mem_get_info(images.device)[0])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) if hasattr(os, "sysconf") else 4e9


# ---------------------------------------------------------------- inputs


def _in_order(model: nn.Module, images: Tensor | Mapping[str, Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """All inputs, in the network's order."""
    if not isinstance(images, Mapping):
        return [images, *others]
    if others:
        raise UsageError("inputs are given by name and as others=", hint="give all of them by name")
    if isinstance(model, BcosNetwork):
        return in_order([spec.name for spec in model.record.inputs], images)
    return list(bind(model, images).named.values())


def _explained_by(given: Sequence[Tensor]) -> Tensor:
    """The input that outputs are explained by: the first that holds no whole numbers, as masks and indices do."""
    return next((value for value in given if isinstance(value, Tensor) and value.is_floating_point()), given[0])


def _check_images(model: nn.Module, images: object, given: Sequence[Tensor]) -> None:
    if not isinstance(images, Tensor):
        raise UsageError(f"images is a {type(images).__name__}", hint="give one tensor: torch.stack(images)")
    if not images.dim() or not len(images):
        raise UsageError("there are no images to explain")
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        broken = (~torch.isfinite(images)).reshape(len(images), -1).any(1).nonzero().flatten().tolist()
        raise UsageError(
            f"{len(broken)} of {len(images)} images hold NaN or infinity, the first is number {broken[0]}",
            hint="leave them out: images[images.isfinite().flatten(1).all(1)]",
        )
    if isinstance(model, BcosNetwork):
        model.check_inputs(tuple(given[: len(model.record.inputs)]), partly=True)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is not None and like.device != images.device:
        raise UsageError(
            f"the images are on {images.device}, the network is on {like.device}", hint=f'images.to("{like.device}")'
        )
    if like is not None and images.is_floating_point() and like.dtype != images.dtype:
        theirs, own = (str(dtype).removeprefix("torch.") for dtype in (images.dtype, like.dtype))
        raise UsageError(f"the images are {theirs}, the network is {own}", hint=f"images.to(torch.{own})")


def _check_count(view: ExplanationView, given: int) -> None:
    if given != len(view.inputs):
        names = ", ".join(str(node.target) for node in view.inputs)
        raise UsageError(
            f"{given} inputs were given, the network takes {len(view.inputs)} ({names})",
            hint="give the first as images, and the rest in order as others=",
        )


def _notes(model: nn.Module, images: Tensor) -> list[str]:
    """What is odd about the images, said aloud and kept."""
    if not isinstance(model, BcosNetwork) or not model.record.inputs[0].encoded:
        return []
    low, high = float(images.detach().min()), float(images.detach().max())
    if low >= 0 and high <= 1:
        return []
    note = f"the images hold values from {low:.3g} to {high:.3g}, and the network was made for [0, 1]"
    warnings.warn(note, UserWarning, stacklevel=3)
    return [note]
