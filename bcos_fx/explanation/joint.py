"""An explanation by several inputs or layers at once: their contributions and the constants add up to the output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from bcos_fx.display import Displayed
from bcos_fx.explanation.completeness import VERDICTS
from bcos_fx.explanation.explanation import Explanation
from bcos_fx.explanation.result import Constants
from bcos_fx.explanation.weights import as_constant


class JointExplanation(Displayed, Mapping[str, Explanation]):
    """Why a network gave an output, by several sources: f = Σ over sources (Σ contributions) + Σ constants.

    ``joint["after"]`` is the explanation by one source, with its contributions, its weights and its pictures; what the
    other sources contribute stands among its constants, as ``the source before``.

    Args:
        parts: name of a source -> the explanation by it.
    """

    def __init__(self, parts: Mapping[str, Explanation]) -> None:
        self._parts = dict(parts)

    def __getitem__(self, source: str) -> Explanation:
        return self._parts[source]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def _first(self) -> Explanation:
        return next(iter(self._parts.values()))

    @property
    def output(self) -> Tensor:
        """(N[, K]) the explained numbers."""
        return self._first.output

    @property
    def prediction(self) -> Tensor | None:
        """(N,) index of the largest output, or None where the explained value is not a row of scores."""
        return self._first.prediction

    @property
    def target(self) -> Tensor | None:
        """(N[, K]) indices of what is explained, or None for a function."""
        return self._first.target

    @property
    def contributions(self) -> dict[str, Tensor]:
        """Return name of a source -> what each of its places contributes."""
        return {name: part.contributions for name, part in self._parts.items()}

    @property
    def totals(self) -> dict[str, Tensor]:
        """Return name of a source -> (N[, K]), the sum of its contributions."""
        return {name: part.sums.contributions for name, part in self.items()}

    @property
    def constants(self) -> Constants:
        """The constants, without those that are sources."""
        sources = {as_constant(name) for name in self._parts}
        constants = {name: value for name, value in self._first.constants.items() if name not in sources}
        return Constants(constants, self.output)

    @property
    def residual(self) -> Tensor:
        """(N[, K]) output - Σ contributions of all sources - Σ constants: rounding, unless it is incomplete."""
        # Each part lists the others among its constants, so all parts share one residual.
        return self._first.residual

    @property
    def verdict(self) -> str:
        """``complete``, ``not tested`` or ``incomplete``, of the one sum that all sources share."""
        verdicts = [part.verdict for part in self._parts.values()]
        return next(verdict for verdict in VERDICTS if verdict in verdicts)

    @property
    def complete(self) -> bool:
        """Whether the contributions of all sources and the constants add up to the output."""
        return self.verdict != "incomplete" and any(part.complete for part in self._parts.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about this explanation; what concerns one source begins with its name."""
        shared = [note for note in self._first.notes if all(note in part.notes for part in self._parts.values())]
        own = [f"{name}: {note}" for name, part in self.items() for note in part.notes if note not in shared]
        return (*shared, *own)

    def brief(self) -> list[str]:
        """Return the verdict, and the sum that makes up the first sample's output."""
        totals = {name: float(total.flatten()[0]) for name, total in self.totals.items()}
        terms = " ".join(f"{total:+.4g} from {name}" for name, total in totals.items())
        first = self._first[0]
        rest = float(self.constants.total().flatten()[0])
        lines = [
            f"Explanation by {', '.join(self)}: {self.verdict}",
            f"  {first.target_name()}: {float(first.output.flatten()[0]):.4g} = {terms} {rest:+.4g} constants",
        ]
        return [*lines, *(f"  note: {note}" for note in self.notes)]
