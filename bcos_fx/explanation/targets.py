"""Parse the argument ``target``: which numbers of an output are explained."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bcos_fx.data.classes import class_named, classes_named
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.explanation.weights import Select

_TOP = re.compile(r"top[1-9][0-9]*|all")

Target = None | int | str | Tensor | Sequence[Any] | Callable[[Tensor], Tensor]

_FORMS = (
    "give None, topK, all, an index, a name, one index or a list of indices per sample, or a function of the outputs"
)


@dataclass(frozen=True)
class Chosen:
    """What a target means for one value.

    Attributes:
        select: from the value (N, ...) to the explained numbers (N, K).
        indices: (N, K) indices of outputs, or None where the numbers are not single outputs.
        single: whether there is one number per sample, so that results have no dimension K.
    """

    select: Select
    indices: Tensor | None
    single: bool


@dataclass(frozen=True)
class Difference:
    """The difference between an output and another, or the mean of the others, as a function of the outputs.

    Attributes:
        target: index of the output; None: each sample's largest.
        other: index of the output that is subtracted; None: the mean of all others.
    """

    target: int | None
    other: int | None

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the difference (N,) of outputs (N, C).

        Raises:
            UsageError: the outputs are not rows of at least two scores, or have no such index.
        """
        if outputs.dim() != 2 or outputs.shape[1] < 2:
            raise UsageError(
                f"outputs of shape {tuple(outputs.shape[1:])} have no classes to compare",
                hint="give a function of the outputs that returns one number per sample",
            )
        indices = torch.tensor([index for index in (self.target, self.other) if index is not None], dtype=torch.long)
        if len(indices):
            _check_range(indices, outputs.shape[1])
        # Which output is the largest is held fixed, so that the difference is linear in the outputs.
        target = outputs.detach().argmax(1) if self.target is None else torch.full((len(outputs),), self.target)
        first = outputs.gather(1, target.to(outputs.device)[:, None])[:, 0]
        if self.other is not None:
            return first - outputs[:, self.other]
        return first - (outputs.sum(1) - first) / (outputs.shape[1] - 1)

    def label(self, name: Callable[[int], str]) -> str:
        """Return what the difference is called, where ``name`` gives the name of a class."""
        first = "predicted class" if self.target is None else name(self.target)
        return f"{first} - {'mean of the others' if self.other is None else name(self.other)}"


def difference(target: int | None = None, other: int | None = None) -> Difference:
    """Return the target that explains why an output is larger than another, or than all others.

    What counts for every class alike is in each class's output, and cancels in the difference.

    Args:
        target: index of the output; None: each sample's largest, the predicted class.
        other: index of the output that is subtracted; None: the mean of all outputs but the target's.
    """
    return Difference(target, other)


def label_of(
    target: object, name: Callable[[int], str], names: Sequence[str] | None, shape: Sequence[int]
) -> tuple[str, ...] | None:
    """Return what a target is called that is not an output by its index, or None of every other one.

    Args:
        target: as for :func:`chosen`.
        name: gives the name of a class.
        names: of the classes, or None.
        shape: of the value that the target is chosen from, (N, C, ...).
    """
    if isinstance(target, Difference):
        return (target.label(name),)
    if not isinstance(target, tuple) or not target:
        return None
    if names is None or len(names) != shape[1]:  # the first index need not be a class
        return (f"output {target if len(target) > 1 else target[0]}",)
    return (f"{name(target[0])} at {', '.join(map(str, target[1:]))}" if len(target) > 1 else name(target[0]),)


def named(target: object, names: Sequence[str] | None, others: Sequence[str] = ("all", "top3")) -> Any:
    """Put indices in the place of class names, alone or in lists.

    Args:
        target: as for :func:`chosen`, with names in the place of indices.
        names: of the classes, in order; None where they are not known.
        others: words that mean something else there, of which the nearest may be proposed for a mistyped one.

    Raises:
        UsageError: a name is given, and no class bears it or no names are known.
    """
    if isinstance(target, list | tuple):
        return type(target)(named(item, names, others) for item in target)
    if not isinstance(target, str):
        return target
    # A class may be called "all" or "top3" itself.
    if _TOP.fullmatch(target) and not classes_named(target, names):
        return target
    return class_named(target, names, others)


def chosen(target: object, value: Tensor) -> Chosen:
    """Read a target.

    Args:
        target: None (the largest output), ``top3`` or another K (the K largest), ``all``, an index (of all samples),
            (N,) or a flat list (one per sample), (N, K) or a list of lists (several per sample), or a function from the
            value to (N,) or (N, K). For the value of an inner layer (N, C, ...): an index is a channel, summed over its
            positions. A tuple of indices is one unit of any value.
        value: (N, C), (N,) or (N, C, ...), what the target is chosen from.

    Raises:
        UsageError: an index is out of range, or the target has another form.
    """
    if callable(target):
        with torch.no_grad():
            numbers: object = _call_target(target, value)
        single = not isinstance(numbers, Tensor) or numbers.dim() < 2
        return Chosen(lambda outputs: _one_number_per_sample(_call_target(target, outputs), outputs), None, single)
    if value.dim() > 2 or isinstance(target, tuple):
        return _unit(target, value)
    flat = value.reshape(len(value), -1)
    indices, single = _indices(target, flat)
    _check_range(indices, flat.shape[1])
    return Chosen(
        lambda outputs: outputs.reshape(len(outputs), -1).gather(1, indices.to(outputs.device)), indices, single
    )


def _call_target(target: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """Call a caller's function, whose errors do not come from the network's input."""
    try:
        return target(outputs)
    except RuntimeError as error:
        raise UsageError(
            f"the target function fails on outputs of shape {tuple(outputs.shape)}: {str(error).partition(chr(10))[0]}",
            hint="it takes the outputs, and gives one number per sample: (N,)",
        ) from error


def _one_number_per_sample(numbers: object, outputs: Tensor) -> Tensor:
    if not isinstance(numbers, Tensor) or numbers.dim() not in (1, 2) or len(numbers) != len(outputs):
        shape = tuple(numbers.shape) if isinstance(numbers, Tensor) else type(numbers).__name__
        raise UsageError(
            f"the target function returned {shape} for {amount(len(outputs), 'sample')}",
            hint="return one number per sample: (N,)",
        )
    # It would be explained by zeros.
    if not numbers.requires_grad:
        raise UsageError("what the target function returned does not depend on the outputs")
    return numbers.unsqueeze(1) if numbers.dim() == 1 else numbers


def _unit(target: object, value: Tensor) -> Chosen:
    """Parse a target in an inner layer: a channel, summed over its positions, or one unit."""
    if target is None:
        raise UsageError(
            f"a layer of shape {tuple(value.shape[1:])} has no predicted class",
            hint="give target=channel, or target=(channel, row, column)",
        )
    index = target if isinstance(target, tuple) else (target,)
    sizes = value.shape[1 : 1 + len(index)]
    # bool is a subclass of int.
    good = all(isinstance(i, int) and not isinstance(i, bool) for i in index) and 0 < len(index) < value.dim()
    if not good or not all(0 <= i < size for i, size in zip(index, sizes, strict=True)):
        raise UsageError(
            f"no unit {target!r} in a layer of shape {tuple(value.shape[1:])}",
            hint="give target=channel, or target=(channel, row, column), counted from 0"
            if value.dim() > 2
            else "a tuple is one unit; for one index per sample give a list",
        )

    def select(outputs: Tensor) -> Tensor:
        return outputs[(slice(None), *index)].reshape(len(outputs), -1).sum(1, keepdim=True)

    return Chosen(select, None, True)


def _indices(target: object, outputs: Tensor) -> tuple[Tensor, bool]:
    samples = len(outputs)
    if target is None:
        return outputs.detach().argmax(1, keepdim=True), True
    if isinstance(target, str):
        if target == "all":
            return torch.arange(outputs.shape[1], device=outputs.device).expand_as(outputs), False
        # "top3" of two classes is both of them.
        return outputs.detach().topk(min(int(target.removeprefix("top")), outputs.shape[1]), dim=1).indices, False
    if isinstance(target, int) and not isinstance(target, bool):
        return torch.full((samples, 1), target), True
    try:
        tensor = torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"the target {target!r} cannot be read", hint=_FORMS) from error
    # A float would be cut to an integer, and a bool taken for 0 or 1.
    wrong = tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool
    if wrong or tensor.dim() > 2:
        raise UsageError(f"the target {target!r} holds no indices", hint=_FORMS)
    if tensor.dim() == 0:
        return tensor.long().expand(samples, 1), True
    if len(tensor) != samples:
        raise UsageError(
            f"the target has {len(tensor)} entries for {amount(samples, 'sample')}",
            hint="one index per sample, or for several outputs of each sample a list of lists",
        )
    return (tensor.long().unsqueeze(1), True) if tensor.dim() == 1 else (tensor.long(), False)


def _check_range(indices: Tensor, outputs: int) -> None:
    if indices.numel() == 0:
        raise UsageError("the target names no output", hint=_FORMS)
    wrong = indices[(indices < 0) | (indices >= outputs)]
    if wrong.numel():
        raise UsageError(
            f"the target {int(wrong[0])} is not an output of the network, which has {outputs}",
            hint=f"outputs are counted from 0 to {outputs - 1}",
        )
