"""Where a network's values hold their samples, if that is another dimension than the first, or none.

Sequences (L, N, E), the nodes of a graph (nodes, F) with a fixed adjacency or a list of edges: what is given is brought
into the form (N, ...) for everything that counts on it, and each sample is put into the network's own form when it is
run. One sample is run at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from bcos_fx.errors import UsageError

Shapes = Mapping[str, tuple[int, ...]]
_HINT = "batch_axis= names the dimension of samples: a number, None, or a number for each input by name"


@dataclass(frozen=True)
class SampleLayout:
    """Where inputs, sources and the explained value hold their samples.

    Attributes:
        inputs: the dimension for each input, in order; None: the whole of it belongs to one sample.
        starts: the same for each source, by name.
        end: the same for the explained value.
    """

    inputs: tuple[int | None, ...]
    starts: Mapping[str, int | None]
    end: int | None

    def first(self, given: Sequence[Tensor]) -> list[Tensor]:
        """Return inputs as (N, ...); what belongs to every sample is repeated, without copying."""
        # Expanded, not repeated: what belongs to every sample takes no memory for each.
        moved = [samples_first(x, axis) for x, axis in zip(given, self.inputs, strict=True)]
        samples = next((len(x) for x, axis in zip(moved, self.inputs, strict=True) if axis is not None), 1)
        return [x.expand(samples, *x.shape[1:]) for x in moved]

    def each(self, inputs: Sequence[Tensor]) -> list[list[Tensor]]:
        """Return for each sample of inputs (N, ...) what the network takes."""
        samples = range(len(inputs[0]))
        return [[own_form(x[n : n + 1], a) for x, a in zip(inputs, self.inputs, strict=True)] for n in samples]


def samples_first(value: Tensor, axis: int | None) -> Tensor:
    """Return a value as (N, ...), given where it holds its samples."""
    return value.unsqueeze(0) if axis is None else value.movedim(axis, 0)


def own_form(value: Tensor, axis: int | None) -> Tensor:
    """Return a value (N, ...) as the network holds it; of what has no dimension of samples N is 1."""
    return value[0] if axis is None else value.movedim(0, axis)


def find_layout(
    shapes: Callable[[Sequence[Tensor]], Shapes],
    given: Sequence[Tensor],
    axes: tuple[int | None, ...],
    starts: Mapping[str, str],
    end: str,
) -> SampleLayout:
    """Find where sources and the explained value hold their samples, by running a network on one sample and on two.

    Args:
        shapes: runs the network on inputs in its own form; node name -> shape of its value.
        given: its inputs.
        axes: where each of them holds its samples.
        starts: name of each source -> name of its node.
        end: name of the node that is explained.

    Raises:
        UsageError: the network does not run on one sample, or on two, or a value does not hold the samples.
    """
    parts = [x if axis is None else x.narrow(axis, 0, 1) for x, axis in zip(given, axes, strict=True)]
    one = _shapes(shapes, parts)
    if all(axis is None for axis in axes):
        # A graph's own output (1, classes) is one sample already.
        as_it_is = len(one[end]) == 2 and one[end][0] == 1 and given[0].shape[:1] != (1,)
        return SampleLayout(axes, dict.fromkeys(starts), 0 if as_it_is else None)
    # Twice the same sample: only shapes are compared, and what a value-dependent branch reads stays as it is.
    pairs = [x if axis is None else x.repeat_interleave(2, axis) for x, axis in zip(parts, axes, strict=True)]
    two = _shapes(shapes, pairs)
    of_sources = {name: _grown(f"the source {name!r}", one[node], two[node]) for name, node in starts.items()}
    return SampleLayout(axes, of_sources, _grown("the output", one[end], two[end]))


def _grown(name: str, one: tuple[int, ...], two: tuple[int, ...]) -> int | None:
    """Find the dimension that holds the samples, from the shapes for one sample and for two.

    None where samples share a dimension with something else: the whole of it is then the one sample that is run.
    """
    pairs = list(enumerate(zip(one, two, strict=True))) if len(one) == len(two) else []
    grown = [place for place, (single, double) in pairs if double != single]
    if len(grown) != 1 or two[grown[0]] != 2 * one[grown[0]]:
        raise UsageError(
            f"{name} has shape {one} for one sample and {two} for two: no one dimension holds the samples", hint=_HINT
        )
    # A dimension of 3 for one sample and 6 for two holds something else besides.
    return grown[0] if one[grown[0]] == 1 else None


def _shapes(shapes: Callable[[Sequence[Tensor]], Shapes], inputs: Sequence[Tensor]) -> Shapes:
    try:
        return shapes(inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        given = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise UsageError(
            f"the network does not take these samples, {given}: {str(error).partition(chr(10))[0]}", hint=_HINT
        ) from error
