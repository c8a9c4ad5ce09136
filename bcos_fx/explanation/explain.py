"""explain(): why a network gave an output, as the computation itself."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn

from bcos_fx.data.classes import check_class_count
from bcos_fx.errors import UsageError, VerificationError
from bcos_fx.escaping import amount, listed
from bcos_fx.explanation.arranged import arranged_view_of
from bcos_fx.explanation.axes import Axes
from bcos_fx.explanation.completeness import INCOMPLETE, NOT_TESTED, Completeness, coarsest_precision, judged
from bcos_fx.explanation.explanation import Explanation
from bcos_fx.explanation.joint import JointExplanation
from bcos_fx.explanation.result import Constants
from bcos_fx.explanation.samples import check_apart, check_rows, chunks, has_samples, naming_samples, of_samples
from bcos_fx.explanation.targets import Chosen, Target, chosen, label_of, named
from bcos_fx.explanation.view import ExplanationView, in_order, view_of
from bcos_fx.explanation.weights import DynamicWeights
from bcos_fx.network import BcosNetwork
from bcos_fx.tracing.exported import as_module
from bcos_fx.tracing.inputs import BatchAxis, bind
from bcos_fx.validation import check_module

_NAMED = 3

Images = Tensor | Mapping[str, Tensor]
"""One tensor, or all inputs by name."""


@overload
def explain(
    model: nn.Module,
    images: Images,
    target: Target = ...,
    *,
    output: str | None = ...,
    source: str | None = ...,
    others: Sequence[Tensor] = ...,
    names: Sequence[str] | None = ...,
    batch_size: int | None = ...,
    channel_axis: int | None = ...,
    batch_axis: BatchAxis = ...,
    allow_incomplete: bool = ...,
) -> Explanation: ...


@overload
def explain(
    model: nn.Module,
    images: Images,
    target: Target = ...,
    *,
    output: str | None = ...,
    source: list[str] | tuple[str, ...],
    others: Sequence[Tensor] = ...,
    names: Sequence[str] | None = ...,
    batch_size: int | None = ...,
    channel_axis: int | None = ...,
    batch_axis: BatchAxis = ...,
    allow_incomplete: bool = ...,
) -> JointExplanation: ...


def explain(
    model: nn.Module,
    images: Images,
    target: Target = None,
    *,
    output: str | None = None,
    source: str | list[str] | tuple[str, ...] | None = None,
    others: Sequence[Tensor] = (),
    names: Sequence[str] | None = None,
    batch_size: int | None = None,
    channel_axis: int | None = None,
    batch_axis: BatchAxis = 0,
    allow_incomplete: bool = False,
) -> Explanation | JointExplanation:
    """Explain outputs of a dynamic linear network by what it computed: f(x) = W(x)·x + Σ_c W_c(x)·c.

    Nothing is estimated: W(x) is the linear map that the network applied to x, and the contributions of x and of all
    constants add up to the output (Böhle, Fritz and Schiele, "B-cos Networks", CVPR 2022, section 3.2).

    Args:
        model: a converted network in eval mode, or any other dynamic linear module, which is traced again in each call.
        images: (N, C, H, W), in [0, 1] for a converted image network; or whatever its first input is, such as
            embeddings (N, L, E) or features (N, F). On the model's device; not changed. Or all inputs by name, in any
            order.
        target: None (the predicted class), ``top3`` and the like, ``all``, an index, a class name, (N,) or a flat list
            (one per sample), (N, K) or a list of lists (several per sample), or a linear function from the outputs to
            (N,) or (N, K); if that has ``names``, as that of :func:`bcos_fx.explanation.cosine` has, they are scores of
            those names. For an inner layer an index is a channel, summed over its positions, and a tuple of indices is
            one unit.
        output: what is explained: None for the output, ``logits`` for the value before a final softmax or sigmoid, or
            the name of a layer.
        source: what it is explained by: None for the main input, which is the first one that a layer with weights
            reads by itself, so not a mask; or the name of an input; or the name of a layer, whose activations then take
            the place of the images. What does not depend on the source is listed among the constants where it is added,
            and is a weight where it multiplies. A list of names explains by all of them at once.
        others: the network's further inputs, in order, where ``images`` is the first.
        names: class names, for targets and pictures; None: those that a converted network keeps.
        batch_size: samples that are computed at once; None: as many as fit into memory.
        channel_axis: the dimension of what outputs are explained by that holds its channels, over which
            ``contributions`` are summed, as counted in (N, ...); None: the one that the first layer sums over.
        batch_axis: the dimension of the first input that holds its samples; None: the input is one sample as a whole,
            such as a graph's nodes (nodes, F), and the other inputs belong to it. Or by name for several inputs, such
            as ``{"x": 1, "mask": 0}``; those that are not named belong to every sample. Results hold samples first,
            and a node's or position's class is ``target=(node, class)``. ``output`` and ``source`` hold their samples
            wherever one more sample makes them larger.
        allow_incomplete: explain a network that is not dynamic linear too; the result then lists what is missing.

    Returns:
        The explanation, on the images' device. For a list of sources a mapping from each name to the explanation by it,
        in which the other sources are among the constants, so that all of them share one sum. The model, its parameters
        and their gradients stay as they are.

    Raises:
        UsageError: images or target do not fit.
        VerificationError: the network is not dynamic linear; names where it breaks.

    Example:
        >>> import torch, bcos_fx
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
        >>> found = bcos_fx.explain(model, torch.rand(2, 4), target=0)
        >>> found.contributions.shape, bool(found.complete)
        (torch.Size([2, 4]), True)
    """
    if not isinstance(model, BcosNetwork):
        check_module(model := as_module(model))
    given = _in_order(model, images, others)
    # A mapping stays one: tracing binds it to the signature of a module by name.
    example: Any = given
    if isinstance(images, Mapping):
        example = images
        # Masks and indices hold integers, and come before what they belong to in some signatures.
        images = next((value for value in given if isinstance(value, Tensor) and value.is_floating_point()), given[0])
    _check_images(model, images, given)
    view = (
        view_of(model, example, output=output, source=source)
        if batch_axis == 0
        else arranged_view_of(model, example, batch_axis, output=output, source=source)
    )
    _check_count(view, len(given))
    arranged = view.arrange(given)
    view.check_values(arranged)
    shown = view.shown(arranged)
    # A source may be another input than the first, and has to be as sound.
    for value in shown.values():
        _check_images(model, value, given)
    # An explanation by an inner layer shows the main input beside it.
    images = next(iter(shown.values()), images if batch_axis == 0 else arranged[0])
    # Random numbers leave nothing to explain, not even in part: no two runs are the same function.
    if not view.certificate.ok and not (allow_incomplete and view.certificate.repeatable):
        raise _not_linear(view)
    own_names = names if output in (None, "logits") else None  # an inner layer's channels need not be classes
    if names is None and isinstance(model, BcosNetwork) and output in (None, "logits"):
        names = model.record.classes or None
    indices = named(target, names)
    batches, choices = [], []
    places = chunks(view, images, batch_size)
    if len(places) > 1:  # each is run without the others
        check_apart(view, arranged)
    for place in places:
        inputs = [value[place] if has_samples(value, images) else value for value in arranged]
        with model.naming_shapes(given) if isinstance(model, BcosNetwork) else nullcontext(), naming_samples():
            weights, choice = _explained(view, inputs, of_samples(indices, place, len(images)), own_names)
        batches.append(weights)
        choices.append(choice)
    notes = _notes(model, given)
    explanations = {}
    for name, weights in DynamicWeights.joined(batches).by_source().items():
        axes = view.axes(name, tuple(weights.start.shape), channel_axis)
        # The last batch stands for all of them: precisions do not depend on the samples.
        judgment, more = _judgment(view, inputs, weights)
        if judgment.verdict == INCOMPLETE and view.certificate.ok:
            # Sums that are off may come from samples that depend on each other, and then that is the error.
            check_apart(view, arranged)
        one = _result(view, shown.get(name, images), weights, choices, [*notes, *more], names, axes, judgment)
        one = replace(one, labels=label_of(indices, one.name, names, weights.value.shape))
        explanations[name] = one if getattr(indices, "names", None) is None else _scored(one, indices.names)
    single = source is None or isinstance(source, str)
    return next(iter(explanations.values())) if single else JointExplanation(explanations)


def _explained(
    view: ExplanationView, inputs: list[Tensor], target: object, names: Sequence[str] | None
) -> tuple[DynamicWeights, Chosen]:
    """Compute W(x) of a target, and check that names are those of the outputs."""
    # What sums are compared with is what the network itself returns; see ExplanationView.compare.
    own = None if view.is_own(inputs) else view.own_value(inputs)
    choices: list[Chosen] = []
    outputs: list[Tensor] = []

    def select(value: Tensor) -> Tensor:
        check_rows(view, value, view.samples(inputs))
        # A target function is checked for whether it depends on its argument.
        network_value = (value.detach() if own is None else own).clone().requires_grad_()
        # The largest output and the like are chosen by the network's own numbers, not by the view's.
        choices.append(chosen(target, network_value))
        outputs.append(choices[0].select(network_value).detach())
        return choices[0].select(value)

    weights = view.dynamic_weights(inputs, select)
    if own is not None:
        view.compare(inputs, weights.value, own)
        weights = replace(weights, value=own)
    if names is not None and weights.value.dim() == 2:
        check_class_count(names, weights.value.shape[1])
    return replace(weights, output=outputs[0]), choices[0]


def _judgment(view: ExplanationView, inputs: list[Tensor], weights: DynamicWeights) -> tuple[Completeness, list[str]]:
    """Judge the sums; where they are off, by the coarsest precision on the way, which takes another run to find."""
    judgment, dtype = judged(weights), weights.output.dtype
    if judgment.verdict != INCOMPLETE or not view.certificate.ok:
        return judgment, []
    coarsest = coarsest_precision(view, inputs, dtype)
    if coarsest == dtype:
        return judgment, []
    note = f"the network computes in {coarsest} on the way, so sums hold to its precision"
    return judged(weights, dtype=coarsest), [note]


def _result(
    view: ExplanationView,
    images: Tensor,
    weights: DynamicWeights,
    choices: list[Chosen],
    notes: list[str],
    names: Sequence[str] | None,
    axes: Axes,
    judgment: Completeness,
) -> Explanation:
    single = choices[0].single
    verdict = judgment.verdict if view.certificate.ok else INCOMPLETE
    if not view.certificate.ok:
        notes.append(f"the network is not dynamic linear: {view.certificate.breaks[0]}")
    elif verdict == INCOMPLETE:
        notes.append(f"contributions do not add up: {judgment}")
    elif verdict == NOT_TESTED:
        notes.append(f"not tested: {judgment.why_not_tested}")
    if axes.note:
        notes.append(axes.note)
    indices = None if choices[0].indices is None else torch.cat([c.indices for c in choices if c.indices is not None])
    scores = weights.value if weights.value.dim() == 2 else None

    def without_k(values: Tensor) -> Tensor:
        return values.squeeze(1) if single else values

    return Explanation(
        inputs=images.detach(),
        encoded=weights.start,
        weights=without_k(weights.weights),
        output=without_k(weights.output),
        prediction=None if scores is None else scores.argmax(1),
        scores=scores,
        target=None if indices is None else without_k(indices.to(images.device)),
        constants=Constants(weights.constants, weights.output).map(without_k),
        where=view.certificate.explained,
        names=None if names is None else tuple(names),
        colors=_has_colors(weights.start, weights.weights, axes.channel),
        notes=tuple(notes),
        verdict=verdict,
        channel_axis=axes.channel,
        axes=axes.places,
    )


def _scored(explanation: Explanation, names: Sequence[str]) -> Explanation:
    """Return the explanation as one of named scores: its values are scores, not entries of the outputs."""
    scores = explanation.output.reshape(len(explanation), len(names))
    places = torch.arange(len(names), device=scores.device).expand_as(scores)
    target = places.reshape(explanation.output.shape)
    return replace(explanation, scores=scores, prediction=scores.argmax(1), target=target, names=tuple(names))


def _has_colors(start: Tensor, weights: Tensor, axis: int | None) -> bool:
    """Return whether both halves of an encoded image are weighted, so that weights have a color.

    Other values have two or six channels too, such as inner layers; of an encoding [x, 1 - x] the halves add up to 1.
    """
    if start.dim() != 4 or axis is None or start.shape[axis] not in (2, 6):
        return False
    straight, inverse = start.chunk(2, dim=axis)
    # 1 - x and the sum of both halves are rounded once each; 4 units leave room for both.
    rounding = 4 * torch.finfo(start.dtype).eps * max(1.0, float(start.abs().max()))
    if not bool(((straight + inverse - 1).abs() <= rounding).all()):
        return False
    return bool((weights.chunk(2, dim=axis + 1)[1] != 0).any())


def _not_linear(view: ExplanationView) -> VerificationError:
    breaks = list(map(str, view.certificate.breaks))
    return VerificationError(
        f"the network's {view.certificate.explained} is not dynamic linear, so no W(x) explains it by "
        f"{view.certificate.source}",
        where=listed(breaks, _NAMED, "; "),
        hint=_way_out(view),
    )


def _way_out(view: ExplanationView) -> str:
    if not view.certificate.repeatable:
        return "leave the random numbers out in eval mode, or draw them outside and give them as an input"
    if view.scores:
        first, *more = (f'output="{name}"' for name in view.scores[:_NAMED])
        return f"explain what stands before the last gates with {first}" + "".join(f" or {other}" for other in more)
    return "allow_incomplete=True explains the rest, and labels what is missing"


# ---------------------------------------------------------------- inputs


def _in_order(model: nn.Module, images: Tensor | Mapping[str, Tensor], others: Sequence[Tensor]) -> list[Tensor]:
    """Return all inputs, in the network's order."""
    if not isinstance(images, Mapping):
        return [images, *others]
    if others:
        raise UsageError("inputs are given by name and as others=", hint="give all of them by name")
    if isinstance(model, BcosNetwork):
        return in_order([spec.name for spec in model.record.inputs], images)
    return list(bind(model, images).named.values())


def _check_images(model: nn.Module, images: object, given: Sequence[Tensor]) -> None:
    if not isinstance(images, Tensor):
        photographs = isinstance(model, BcosNetwork) and len(model.input_shape) == 3
        way = "model.preprocess(images), for paths, pictures and arrays" if photographs else "torch.stack(images)"
        raise UsageError(f"images is a {type(images).__name__}", hint=f"give one tensor: {way}")
    if not images.dim() or not len(images):
        raise UsageError("there are no images to explain")
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        broken = (~torch.isfinite(images)).reshape(len(images), -1).any(1).nonzero().flatten().tolist()
        raise UsageError(
            f"{len(broken)} of {amount(len(images), 'image')} hold NaN or infinity, the first is number {broken[0]}",
            hint="leave them out: images[images.isfinite().flatten(1).all(1)]",
        )
    if isinstance(model, BcosNetwork):
        model.check_inputs(tuple(given[: len(model.record.inputs)]), partly=True)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is not None and like.device != images.device:
        raise UsageError(
            f"the images are on {images.device}, the network is on {like.device}", hint=f'images.to("{like.device}")'
        )
    # Integers, as token indices are, have no precision to compare.
    if like is not None and images.is_floating_point() and like.dtype != images.dtype:
        theirs, own = (str(dtype).removeprefix("torch.") for dtype in (images.dtype, like.dtype))
        raise UsageError(f"the images are {theirs}, the network is {own}", hint=f"images.to(torch.{own})")


def _check_count(view: ExplanationView, given: int) -> None:
    if given != len(view.inputs):
        names = ", ".join(str(node.target) for node in view.inputs)
        raise UsageError(
            f"{amount(given, 'input')} given, the network takes {len(view.inputs)} ({names})",
            hint="give the first as images, and the rest in order as others=",
        )


def _notes(model: nn.Module, given: Sequence[Tensor]) -> list[str]:
    """Warn about images outside the expected range, and return the warnings as notes."""
    notes = []
    for spec, images in zip(model.record.inputs, given, strict=False) if isinstance(model, BcosNetwork) else ():
        if not spec.encoded:
            continue
        low, high = float(images.detach().min()), float(images.detach().max())
        if low < 0 or high > 1:
            notes.append(f"the images hold values from {low:.3g} to {high:.3g}, and the network was made for [0, 1]")
            # The warning names the line that called explain().
            warnings.warn(notes[-1], UserWarning, stacklevel=3)
    return notes
