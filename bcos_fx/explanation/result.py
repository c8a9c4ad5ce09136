"""The result of an explanation: W(x), contributions, constants, and what is left over."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount, shown
from bcos_fx.explanation.completeness import VERDICTS, Sums

_LISTED = 5
_WARNINGS = {
    "incomplete": "INCOMPLETE: contributions do not add up to the output",
    "not tested": "NOT TESTED: the sum is right, and says nothing of W(x)",
}
_TENSORS = ("inputs", "encoded", "weights", "output", "prediction", "scores", "target")


class Constants(Mapping[str, Tensor]):
    """What each constant contributes: its source -> (N,) or (N, K), in graph order.

    Args:
        values: the contributions.
        like: a tensor of their shape, for where there are none.
    """

    def __init__(self, values: Mapping[str, Tensor], like: Tensor) -> None:
        self._values = dict(values)
        self._like = like

    def __getitem__(self, source: str) -> Tensor:
        return self._values[source]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def total(self) -> Tensor:
        """Sum of all contributions, (N,) or (N, K); 0 where there are none."""
        return sum(self._values.values(), torch.zeros_like(self._like))

    def shares(self) -> dict[str, Tensor]:
        """Return each constant's share, in [0, 1], of the absolute contributions of all; 0 where those are 0."""
        sizes = self.map(torch.abs)
        whole = sizes.total()
        return {source: size / torch.where(whole > 0, whole, 1) for source, size in sizes.items()}

    def largest(self, count: int = _LISTED) -> list[tuple[str, float]]:
        """Return the constants that contribute most, with their mean contribution over samples and targets."""
        means = {source: float(values.mean()) for source, values in self._values.items()}
        size = {source: float(values.abs().mean()) for source, values in self._values.items()}
        return [(source, means[source]) for source in sorted(size, key=lambda s: -size[s])[:count]]

    def map(self, change: Callable[[Tensor], Tensor]) -> Constants:
        """Apply a function to every tensor."""
        return Constants({source: change(values) for source, values in self._values.items()}, change(self._like))

    def __repr__(self) -> str:
        named = ", ".join(f"{source}: {value:+.3g}" for source, value in self.largest())
        more = f", and {len(self) - _LISTED} more" if len(self) > _LISTED else ""
        return shown(f"Constants({len(self)}{': ' if named else ''}{named}{more})")


# eq=False: tensors compare number by number, so == of two results would have no truth value.
@dataclass(frozen=True, eq=False)
class Result:
    """Why a network gave an output: f(x) = Σ contributions + Σ constants (+ residual, which is rounding).

    (N[, K], ...) has the dimension K only where several outputs of each sample were asked for.

    Attributes:
        inputs: (N, C, H, W) what the caller gave; (N, L, E) or (N, F) where it is not an image.
        encoded: (N, 2C, H, W) what W(x) acts on: [x, 1 - x]; the inputs themselves where nothing is encoded, an inner
            layer's activations where those were asked for.
        weights: (N[, K], 2C, H, W), W(x).
        output: (N[, K]) the explained numbers.
        constants: source -> (N[, K]).
        prediction: (N,) index of the largest output, or None where the explained value is not a row of scores.
        scores: (N, classes) that row, or None.
        target: (N[, K]) indices of what is explained, or None for a function.
        where: what is explained, ``output``, ``logits`` or a layer's name.
        names: class names.
        colors: W(x) weights both x and 1 - x, so that it has a color.
        notes: what is odd about this explanation.
        tokens: of each sample, in the order of its positions, where they are known.
        verdict: ``complete``: contributions add up to the output, and the network is certified. ``not tested``: what is
            explained by contributes too little for that sum to be a test, or nothing at all. ``incomplete``.
        channel_axis: the dimension of ``encoded`` that holds its channels, the samples' own being 0; None where every
            number stands for itself.
        axes: names of the other dimensions, in order: those of ``contributions`` after N (and K).
        labels: what each of the K numbers is called where it is not one output by its index.
        blocks: in pictures, pixels of a block of this side show their mean; see :meth:`in_blocks`.
    """

    inputs: Tensor
    encoded: Tensor
    weights: Tensor
    output: Tensor
    constants: Constants
    prediction: Tensor | None = None
    scores: Tensor | None = None
    target: Tensor | None = None
    where: str = "output"
    names: tuple[str, ...] | None = None
    colors: bool = False
    notes: tuple[str, ...] = field(default=())
    verdict: str = "complete"
    tokens: tuple[tuple[str, ...], ...] | None = None
    channel_axis: int | None = 1
    axes: tuple[str, ...] = ("row", "column")
    labels: tuple[str, ...] | None = None
    blocks: int = 1

    @property
    def colours(self) -> bool:
        """The former name of :attr:`colors`."""
        warnings.warn(".colours is now .colors", DeprecationWarning, stacklevel=2)
        return self.colors

    @property
    def complete(self) -> bool:
        """Whether the contributions add up to the output of a certified network, and are not all 0 by W(x) = 0.

        That they add up shows little where hardly anything comes from the input: see ``verdict``.
        """
        return self.verdict == "complete" or (self.verdict == "not tested" and bool((self.weights != 0).any()))

    @property
    def warning(self) -> str:
        """What every picture and text begins with where the explanation is not complete; empty where it is."""
        return _WARNINGS.get(self.verdict, "")

    @property
    def several(self) -> bool:
        """Whether there are several explained numbers per sample, and so a dimension K."""
        return self.output.dim() == 2

    @property
    def channel_contributions(self) -> Tensor:
        """W(x)·x elementwise, in the shape of ``weights``."""
        return self.weights * (self.encoded.unsqueeze(1) if self.several else self.encoded)

    @property
    def contributions(self) -> Tensor:
        """Return what each place contributes, summed over its channels.

        Returns:
            (N[, K], H, W) of images, (N[, K], L) of sequences, (N[, K], T, H, W) of clips, (N[, K], F) of features.
        """
        parts = self.channel_contributions
        # The dimension K stands before the channels.
        return parts if self.channel_axis is None else parts.sum(self.channel_axis + self.several)

    @property
    def sums(self) -> Sums:
        """The explained numbers beside what is added up to them, (N[, K]), with their gap and shares."""
        return Sums(self.output, self.channel_contributions.flatten(self.output.dim()).sum(-1), dict(self.constants))

    @property
    def residual(self) -> Tensor:
        """(N[, K]) output - Σ contributions - Σ constants: rounding, unless the explanation is incomplete."""
        return self.sums.residual

    @property
    def input_weights(self) -> Tensor:
        """W(x) folded back to the input, (N[, K], C, H, W): the two halves of an encoding subtracted.

        Of a network of selections only (ReLU, max pooling) this is the gradient with respect to the image. Where
        nothing is encoded, or the source is an inner layer, there is nothing to fold and ``weights`` is returned.
        """
        if (axis := self._encoded_axis()) is None:
            return self.weights
        straight, inverse = self.weights.chunk(2, dim=axis + self.several)
        return straight - inverse

    def _encoded_axis(self) -> int | None:
        """Return the dimension along which ``encoded`` is [x, 1 - x] of the inputs x, or None."""
        if self.encoded.dim() != self.inputs.dim():
            return None
        sizes = enumerate(zip(self.encoded.shape, self.inputs.shape, strict=True))
        doubled = [axis for axis, (encoded, given) in sizes if axis and encoded == 2 * given]
        # An inner layer may have twice as many channels by chance.
        same = len(doubled) == 1 and torch.equal(self.encoded.chunk(2, dim=doubled[0])[0], self.inputs)
        return doubled[0] if same else None

    def name(self, index: int) -> str:
        """Return a class's name, or its number where names are not known."""
        return self.names[index] if self.names is not None and index < len(self.names) else f"class {index}"

    def target_name(self, place: int = 0) -> str:
        """Return what the first sample's target at a place of K is called: a class, or what a function is given."""
        if self.labels is not None:
            return self.labels[place]
        if self.target is None:
            return self.where if self.where != "output" else "the target"
        return self.name(int(self.target.flatten()[place]))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, samples: int | slice) -> Self:
        """Return the explanation of some samples; an index keeps the dimension N."""
        if not isinstance(samples, slice):
            # range() takes negative indices and refuses those out of bounds, as a sequence does.
            place = range(len(self))[operator.index(samples)]
            samples = slice(place, place + 1)

        tokens = None if self.tokens is None else self.tokens[samples]
        return replace(self._changed(lambda values: values[samples]), tokens=tokens)

    def in_blocks(self, side: int) -> Self:
        """Return the explanation with pictures in which the pixels of a block share its weights and contributions.

        Odd and even pixels reach a 3 x 3 kernel of stride 2 by different weights, which leaves a dotted grid in
        pictures of networks that begin so. The mean over blocks of that stride takes it away, and sums stay what they
        are: nothing is smoothed across blocks, and numbers (``weights``, ``contributions``) do not change.

        Args:
            side: of a block, in pixels; 1 shows every pixel by itself.

        Raises:
            UsageError: ``side`` is not a positive integer, or the source is not an image.
        """
        if isinstance(side, bool) or not isinstance(side, int) or side < 1:
            raise UsageError(f"blocks of {side!r} pixels cannot be drawn", hint="give an integer of at least 1")
        if len(self.axes) not in (2, 3):
            shape = tuple(self.encoded.shape[1:])
            raise UsageError(f"an explanation by {shape} is not a picture", hint="leave the blocks out")
        height, width = self.contributions.shape[-2:]
        if side > min(height, width):
            raise UsageError(
                f"blocks of {side} pixels are larger than the {height} x {width} pixels that are shown",
                hint="2 is usual",
            )
        return replace(self, blocks=side)

    def of_target(self, place: int) -> Self:
        """Return the explanation of one of the K numbers of each sample, without the dimension K.

        Raises:
            IndexError: there is no such number.
        """
        if not self.several:
            if place not in (0, -1):
                raise IndexError(f"there is no explained number {place}: each sample has one")
            return self
        return replace(
            self,
            weights=self.weights[:, place],
            output=self.output[:, place],
            target=None if self.target is None else self.target[:, place],
            constants=self.constants.map(lambda values: values[:, place]),
            labels=None if self.labels is None else (self.labels[place],),
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Join explanations of the same network and kind of target into one."""
        first = parts[0]

        def cat(name: str) -> Any:
            return None if getattr(first, name) is None else torch.cat([getattr(part, name) for part in parts])

        values = {source: torch.cat([part.constants[source] for part in parts]) for source in first.constants}
        changed = {name: cat(name) for name in _TENSORS}
        return replace(
            first,
            **changed,
            constants=Constants(values, changed["output"]),
            notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
            verdict=next(verdict for verdict in VERDICTS if any(part.verdict == verdict for part in parts)),
            colors=any(part.colors for part in parts),
            tokens=None if first.tokens is None else tuple(row for part in parts for row in part.tokens or ()),
        )

    def to(self, device: torch.device | str) -> Self:
        """Return the explanation with all tensors on a device."""
        return self._changed(lambda values: values.to(device))

    def _changed(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Return the explanation with a function applied to every tensor in it."""
        tensors = {name: tensor for name in _TENSORS if (tensor := getattr(self, name)) is not None}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items()}
        return replace(self, **changed, constants=self.constants.map(change))

    def summary(self) -> list[str]:
        """Return a line for each of the first samples: class, output, its parts, what is left over."""
        return [self._line(sample) for sample in range(min(len(self), _LISTED))]

    def _line(self, sample: int) -> str:
        shown = self[sample]
        output, constants = shown.output.flatten()[0], shown.constants.total().flatten()[0]
        residual = shown.residual.flatten()[0]
        from_input = output - constants - residual
        terms = f"{from_input:.4g} from the input {constants:+.4g} constants {residual:+.1e} residual"
        return f"{shown.target_name()}: {output:.4g} = {terms}"

    def __repr__(self) -> str:
        count = amount(len(self), "sample")
        count += f", {self.output.shape[1]} targets each" if self.several else ""
        lines = [f"Explanation of {count}: {self.where} = W(x)·x + {amount(len(self.constants), 'constant')}"]
        lines += [f"  {self.warning}"] if self.warning else []
        lines += [f"  {line}" for line in self.summary()]
        if len(self) > _LISTED:
            lines.append(f"  and {len(self) - _LISTED} more")
        return shown("\n".join([*lines, *(f"  note: {note}" for note in self.notes)]))
