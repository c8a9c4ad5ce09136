"""Where the original's parameters are in a converted network: was every one of them copied?

Equality of outputs does not show it: random weights of a layer that hardly matters leave outputs nearly as they are,
and zeros and ones look alike everywhere. Here every parameter is looked for by its numbers, and what was found is
taken off, so that no two parameters share one copy unless they are one tensor in the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bcos_fx.escaping import amount
from bcos_fx.network import BcosNetwork

WHOLE, RESHAPED, TRANSPOSED, CUT, HALVES = "whole", "reshaped", "transposed", "cut", "halves"
UNUSED, REMOVED, MISSING = "unused", "removed", "missing"
_GOOD = (WHOLE, RESHAPED, TRANSPOSED, CUT, HALVES, UNUSED)


@dataclass(frozen=True)
class CoveredParameter:
    """Where one parameter of the original is.

    Attributes:
        name: of the parameter, in the original.
        numbers: how many it holds.
        how: ``whole``; ``reshaped``, with dimensions of size 1 more or less; ``transposed``; ``cut`` along its first
            dimension; ``halves``: [w/2, -w/2] in a layer that reads an encoded image; ``unused``: the original's own
            graph does not read it, as the report says; ``removed``: it is gone, by a rule; ``missing``: it is nowhere,
            and nothing says why.
        where: names of the converted network's tensors that hold it, in order; the rules that removed it.
    """

    name: str
    numbers: int
    how: str
    where: tuple[str, ...] = ()


@dataclass(frozen=True)
class ParameterCoverage:
    """Where all parameters of the original are.

    Attributes:
        rows: one for each parameter, in the original's order; shared ones once.
    """

    rows: tuple[CoveredParameter, ...]

    @property
    def ok(self) -> bool:
        """Every parameter is there, or was not read by the original either."""
        return all(row.how in _GOOD for row in self.rows)

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the parameters that are nowhere, and nothing says why."""
        return tuple(row.name for row in self.rows if row.how == MISSING)

    def count(self, how: str) -> int:
        """Return how many parameters are there in one way."""
        return sum(row.how == how for row in self.rows)

    def __str__(self) -> str:
        ways = dict.fromkeys(row.how for row in self.rows)
        counts = ", ".join(f"{self.count(how)} {how}" for how in ways)
        named = f": {', '.join(self.missing[:5])}" if self.missing else ""
        return f"{amount(len(self.rows), 'parameter')}: {counts}{named}"


def parameter_coverage(original: nn.Module, converted: BcosNetwork) -> ParameterCoverage:
    """Look for every parameter of the original in the converted network, by its numbers.

    Only equal numbers count, so both networks have to be in the precision that they were converted in. A network whose
    parameters are all alike (zeros, ones) proves little: give random or trained weights.

    Args:
        original: what was converted.
        converted: what came of it. Neither is changed.
    """
    search = _Search(original, converted)
    # Parameters that are found whole under their own name go first, so that no other takes their copies.
    names = list(dict(original.named_parameters()))
    order = sorted(names, key=lambda name: not search.is_at_home(name))
    rows = {name: search.find(name) for name in order}
    return ParameterCoverage(tuple(rows[name] for name in names))


class _Search:
    """Looks parameters up among the converted network's tensors, and takes off what it found."""

    def __init__(self, original: nn.Module, converted: BcosNetwork) -> None:
        self.parameters = {name: p.detach().cpu() for name, p in original.named_parameters()}
        self.left = {name: t.detach().cpu() for name, t in _tensors_read(converted) if t.is_floating_point()}
        self.report = converted.report

    def is_at_home(self, name: str) -> bool:
        return name in self.left and _equal(self.left[name], self.parameters[name])

    def find(self, name: str) -> CoveredParameter:
        wanted = self.parameters[name]
        for how, names in self._ways(name, wanted):
            if names:
                for place in names:
                    del self.left[place]
                return CoveredParameter(name, wanted.numel(), how, tuple(names))
        if any(name == unused or name.startswith(f"{unused}.") for unused in self.report.unused):
            return CoveredParameter(name, wanted.numel(), UNUSED)
        rules = tuple(dict.fromkeys(self._removed_by(name, wanted)))
        return CoveredParameter(name, wanted.numel(), REMOVED if rules else MISSING, rules)

    def _ways(self, name: str, wanted: Tensor) -> Iterator[tuple[str, list[str]]]:
        """Yield each way in which a parameter may be held, the most specific first, with the tensors that hold it."""
        yield WHOLE, [name] if self.is_at_home(name) else self._first(wanted)
        yield RESHAPED, self._first(wanted, squeezed=True)
        if wanted.dim() == 2:
            yield TRANSPOSED, self._first(wanted.T)
        yield CUT, self._pieces(name, wanted)
        if wanted.dim() >= 2:
            yield HALVES, self._first(torch.cat([wanted / 2, -wanted / 2], dim=1))

    def _first(self, wanted: Tensor, *, squeezed: bool = False) -> list[str]:
        def seen(tensor: Tensor) -> Tensor:
            return tensor.squeeze() if squeezed else tensor

        return next(([name] for name, tensor in self.left.items() if _equal(seen(tensor), seen(wanted))), [])

    def _pieces(self, name: str, wanted: Tensor) -> list[str]:
        """Return the tensors that make up the wanted one, row after row; of equal ones those with the nearest name."""
        names: list[str] = []
        start = 0
        while start < len(wanted):
            fits = [
                place for place in self.left if place not in names and _is_row_block(self.left[place], wanted, start)
            ]
            if not fits:
                return []
            # Several pieces may hold equal numbers (zeros, say): the names tell whose they are.
            names.append(max(fits, key=lambda place: (_alike(place, name), len(self.left[place]))))
            start += len(self.left[names[-1]])
        return names

    def _removed_by(self, name: str, wanted: Tensor) -> Iterator[str]:
        """Yield the changing rules that removed a parameter, with the node that read it or as a layer's vector."""
        changing = {rule for rule, use in self.report.rules.items() if use.preserves == "never"}
        readers = {row.name for row in self.report.before if row.module == name}
        for row in self.report.before:  # in the order of the graph, so readers of readers come later
            if readers & set(row.inputs):
                rule = self.report.removed.get(row.name)
                if rule in changing:
                    yield rule
                else:
                    readers.add(row.name)
        owner = name.rpartition(".")[0]
        for after in self.report.nodes if wanted.dim() == 1 and owner else ():
            if after.module is not None and f"{after.module}.".startswith(f"{owner}."):
                yield from (rule for rule in after.rules if rule in changing and "stripped" in rule)


def _tensors_read(converted: BcosNetwork) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that the graph reads; others do not count as copies."""
    read = tuple(str(node.target) for node in converted.graph.nodes if node.op in ("get_attr", "call_module"))
    for name, tensor in (*converted.named_parameters(), *converted.named_buffers()):
        if any(name == path or name.startswith(f"{path}.") for path in read):
            yield name, tensor


def _equal(tensor: Tensor, wanted: Tensor) -> bool:
    return tensor.shape == wanted.shape and tensor.dtype == wanted.dtype and torch.equal(tensor, wanted)


def _is_row_block(tensor: Tensor, wanted: Tensor, start: int) -> bool:
    """Return whether a tensor is some of the wanted one's rows, from ``start`` on, and not all of them."""
    if not tensor.dim() or tensor.shape[1:] != wanted.shape[1:] or len(tensor) == len(wanted):
        return False
    return len(tensor) > 0 and _equal(tensor, wanted[start : start + len(tensor)])


def _alike(place: str, name: str) -> int:
    """Return how many characters two names begin with alike."""
    return next((n for n, (a, b) in enumerate(zip(place, name, strict=False)) if a != b), min(len(place), len(name)))
