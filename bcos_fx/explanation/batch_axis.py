"""Networks whose samples do not lie along the first dimension, or that take one sample without any such dimension.

Sequences (L, N, E), the nodes of a graph (nodes, F) with a fixed adjacency or a list of edges: an adapter takes and
returns the samples first, so that everything else may count on it. One sample is explained at a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError, nearest
from bcos_fx.explanation.certify import Certification
from bcos_fx.explanation.explanation import Explanation
from bcos_fx.explanation.result import Constants
from bcos_fx.network import BcosNetwork
from bcos_fx.tracing.inputs import bind

BatchAxis = int | None | Mapping[str, int | None]
_PREFIX = "network."


class SamplesFirst(nn.Module):
    """A network behind an adapter that takes and returns (N, ...).

    Args:
        network: left as it is.
        names: of its inputs, in order.
        axes: where each of them holds its samples; None: nowhere, so that (1, ...) stands for the whole of it.
        returned: where the output holds them, likewise.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], axes: Sequence[int | None], returned: int | None
    ) -> None:
        super().__init__()
        self.network, self.axes, self.returned = network, tuple(axes), returned
        self.train(network.training)
        self.__class__ = _taking(names)

    def run(self, values: Sequence[Tensor]) -> Any:
        """Run the network on inputs (N, ...)."""
        given = [
            value[0] if axis is None else value.movedim(0, axis) for value, axis in zip(values, self.axes, strict=True)
        ]
        result = self.network(*given)
        return result.unsqueeze(0) if self.returned is None else result.movedim(self.returned, 0)


def _taking(names: Sequence[str]) -> type[SamplesFirst]:
    """The class with a forward whose arguments have these names."""

    def forward(self: SamplesFirst, *args: Any, **kwargs: Any) -> Any:
        return self.run(signature.bind(self, *args, **kwargs).args[1:])

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in ("self", *names)])
    forward.__signature__ = signature  # type: ignore[attr-defined]
    return type("SamplesFirst", (SamplesFirst,), {"forward": forward, "__module__": __name__})


def samples_first(
    network: nn.Module, given: Sequence[Tensor], batch_axis: BatchAxis
) -> tuple[SamplesFirst, list[Tensor]]:
    """Return a network and its inputs with the samples first.

    Args:
        network: of any module; not changed.
        given: its inputs in order, as it takes them itself.
        batch_axis: the dimension of the first input that holds its samples, or None where the first input is one
            sample as a whole; the other inputs then belong to every sample. Or by name for several inputs; those that
            are not named belong to every sample.

    Raises:
        UsageError: there is no such dimension or input, or the network cannot run on these inputs.
    """
    names = _names(network, given)
    axes = _axes(names, given, batch_axis)
    if network.training:
        raise UsageError(
            "the network is in train mode, and an explanation is one of eval mode", hint="call network.eval() first"
        )
    first = [value if axis is None else value.narrow(axis, 0, 1) for value, axis in zip(given, axes, strict=True)]
    one = _shape(network, first)
    # A graph's own output (1, classes) is one sample already.
    returned: int | None = 0 if len(one) == 2 and one[0] == 1 and given[0].shape[:1] != (1,) else None
    if any(axis is not None for axis in axes):
        two = [v if axis is None else torch.cat([v, v], dim=axis) for v, axis in zip(first, axes, strict=True)]
        pairs = enumerate(zip(one, _shape(network, two), strict=False))
        grown = [place for place, (single, double) in pairs if double == 2 * single and single]
        if len(grown) != 1:
            raise UsageError(
                f"the output {one} does not have one number of samples more where the inputs have",
                hint="batch_axis= names the dimension of samples: a number, None, or a number for each input by name",
            )
        returned = grown[0]
    moved = [
        value.unsqueeze(0) if axis is None else value.movedim(axis, 0) for value, axis in zip(given, axes, strict=True)
    ]
    return SamplesFirst(network, names, axes, returned), moved


def _names(network: nn.Module, given: Sequence[Tensor]) -> list[str]:
    if isinstance(network, BcosNetwork):
        return [spec.name for spec in network.record.inputs]
    return list(bind(network, list(given)).named)


def _axes(names: Sequence[str], given: Sequence[Tensor], batch_axis: BatchAxis) -> list[int | None]:
    if len(names) != len(given):
        raise UsageError(f"{len(given)} inputs were given, the network takes {len(names)} ({', '.join(names)})")
    asked = batch_axis if isinstance(batch_axis, Mapping) else {names[0]: batch_axis}
    for name, axis in asked.items():
        if name not in names:
            raise UsageError(f"batch_axis names {name!r}, which is no input", hint=nearest(name, names))
        rank = given[names.index(name)].dim()
        number = isinstance(axis, int) and not isinstance(axis, bool)
        if axis is not None and not (number and -rank <= axis < rank):
            raise UsageError(
                f"batch_axis is {axis!r} for the input {name!r}, which has {rank} dimensions",
                hint=f"give a number from 0 to {rank - 1}, or None where the input is one sample as a whole",
            )
    return [
        None if (axis := asked.get(name)) is None else axis % value.dim()
        for name, value in zip(names, given, strict=True)
    ]


def _shape(network: nn.Module, inputs: Sequence[Tensor]) -> tuple[int, ...]:
    """The shape of what the network returns."""
    try:
        with torch.no_grad():
            found = network(*inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise UsageError(
            f"the network does not take one sample of these inputs, {shapes}: {str(error).partition(chr(10))[0]}",
            hint="batch_axis= names the dimension of samples: a number, None, or a number for each input by name",
        ) from error
    if not isinstance(found, Tensor):
        raise UsageError(f"the network returns a {type(found).__name__}", hint="wrap it so that it returns one tensor")
    return tuple(found.shape)


def under_own_names(found: Explanation) -> Explanation:
    """Return an explanation with constants called as in the network inside the adapter."""
    values = {name.removeprefix(_PREFIX): contribution for name, contribution in found.constants.items()}
    return replace(found, constants=Constants(values, found.output))


def under_own_layers(found: Certification) -> Certification:
    """Return a certification with constants and breaks called as in the network inside the adapter."""
    return replace(
        found,
        constants=tuple(replace(one, source=one.source.removeprefix(_PREFIX)) for one in found.constants),
        breaks=tuple(replace(one, module=one.module.removeprefix(_PREFIX)) for one in found.breaks),
    )
