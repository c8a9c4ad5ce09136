"""What can be exported, a network or its explanation: the graph, what it takes and gives, and the check of a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bcos_fx.errors import VerificationError
from bcos_fx.explanation.completeness import INCOMPLETE, NOT_TESTED, Completeness, judged
from bcos_fx.explanation.explain import explain
from bcos_fx.explanation.explanation import Explanation
from bcos_fx.explanation.view import view_of
from bcos_fx.explanation.weights import DynamicWeights, SourceWeights
from bcos_fx.exporting.formats import RunFile
from bcos_fx.exporting.graphs import ExplanationGraph, NetworkGraph, rows
from bcos_fx.nn.functional import default_tolerance


@dataclass(frozen=True)
class FileCheck:
    """What a file was found to compute.

    Attributes:
        difference: the largest difference from what this package computes, relative to the largest number in each
            output, over all samples that were tried.
        completeness: ``complete`` or ``not tested``, which is what the sums of the file's own contributions and
            constants say; None for a network.
        gap: the largest difference of these sums from the network's output, relative to their terms; 0 for a network.
    """

    difference: float
    completeness: str | None = None
    gap: float = 0.0


class Exportable(ABC):
    """What is exported.

    Attributes:
        kind: ``network`` or ``explanation``.
        graph: takes tensors and gives tensors.
        outputs: names of what it gives.
        constants: what the columns of the output ``constants`` are.
        given: the network's inputs, on which the file is checked.
    """

    kind: str
    outputs: tuple[str, ...]
    constants: tuple[str, ...] = ()
    graph: nn.Module
    given: Sequence[Tensor]

    @property
    def why_one(self) -> str | None:
        """Why the graph takes one sample at a time; None where it takes any number."""
        return None

    @abstractmethod
    def arguments(self, samples: slice) -> list[Tensor]:
        """Return what the graph takes, for some of the samples."""

    @abstractmethod
    def check(self, run: RunFile, at_once: int) -> FileCheck:
        """Run a file on the samples, a batch at a time, and compare its outputs.

        Raises:
            VerificationError: it computes something else.
        """

    def _parts(self, at_once: int) -> Iterator[slice]:
        for start in range(0, len(self.given[0]), at_once):
            yield slice(start, start + at_once)


class ExportableNetwork(Exportable):
    """A network as it is."""

    kind = "network"

    def __init__(self, network: nn.Module, given: Sequence[Tensor]) -> None:
        self.graph, self.given = NetworkGraph(network), given
        with torch.no_grad():
            count = len(self.graph(*self.arguments(slice(1))))
        self.outputs = ("output",) if count == 1 else tuple(f"output_{place}" for place in range(count))

    def arguments(self, samples: slice) -> list[Tensor]:
        """Return the network's inputs."""
        return [value[samples] for value in self.given]

    def check(self, run: RunFile, at_once: int) -> FileCheck:
        """Compare the outputs with the network's own."""
        worst = 0.0
        for part in self._parts(at_once):
            with torch.no_grad():
                wanted = self.graph(*self.arguments(part))
            worst = max(worst, _compared(dict(zip(self.outputs, wanted, strict=True)), run(self.arguments(part))))
        return FileCheck(worst)


class ExplanationOfOutputs(Exportable):
    """The explanation of any one output of each sample.

    Args:
        network: as for :func:`bcos_fx.explain`.
        given: samples, (N, ...) for each input.
        output: what is explained, as there.
        source: what it is explained by, as there.

    Raises:
        VerificationError: the network is not dynamic linear.
    """

    kind = "explanation"
    outputs = ("logits", "contributions", "constants", "weights")

    def __init__(self, network: nn.Module, given: Sequence[Tensor], output: str | None, source: str | None) -> None:
        self._network, self.given, self._output, self._source = network, given, output, source
        # Refuses what cannot be explained, and says why; the axes are the same for every sample.
        first = self._explained(slice(1), torch.zeros(1, dtype=torch.long))
        self._view = view_of(network, list(given), output=output, source=source)
        self.constants = self._view.sources
        self.graph = ExplanationGraph(self._view, first.channel_axis)
        with torch.no_grad():
            scores = rows(self._view.own_value(given))
        # The predicted class of the first samples, then classes that are spread over all.
        self._targets = torch.arange(len(scores), device=scores.device) * 7 % scores.shape[1]
        self._targets[::2] = scores.argmax(1)[::2]

    @property
    def why_one(self) -> str | None:
        """Constants are counted by sample only where the samples of a batch can be told apart."""
        return None if self._view.separable else "the samples of a batch cannot be told apart inside this network"

    def arguments(self, samples: slice) -> list[Tensor]:
        """Return the network's inputs, and targets."""
        return [value[samples] for value in (*self.given, self._targets)]

    def check(self, run: RunFile, at_once: int) -> FileCheck:
        """Compare all numbers with those of :func:`bcos_fx.explain`, and add up contributions and constants."""
        worst, sums = 0.0, list[Completeness]()
        for part in self._parts(at_once):
            explanation = self._explained(part, self._targets[part])
            actual = run(self.arguments(part))
            zeros = torch.zeros_like(explanation.output)
            constants = [explanation.constants.get(name, zeros) for name in self.constants]
            columns = torch.stack(constants, 1) if constants else zeros.new_zeros(len(explanation), 0)
            expected = (self._scores(part), explanation.contributions, columns, explanation.weights)
            worst = max(worst, _compared(dict(zip(self.outputs, expected, strict=True)), actual))
            sums.append(self._judged(explanation, actual))
        incomplete = next((batch for batch in sums if batch.verdict == INCOMPLETE), None)
        if incomplete is not None:
            raise VerificationError(f"the file's contributions and constants do not add up: {incomplete}")
        verdict = next((batch.verdict for batch in sums if batch.ok), NOT_TESTED)
        return FileCheck(worst, verdict, max(batch.worst for batch in sums))

    def _explained(self, part: slice, target: Tensor) -> Explanation:
        first, *others = (value[part] for value in self.given)
        return explain(self._network, first, target, output=self._output, source=self._source, others=others)

    def _scores(self, part: slice) -> Tensor:
        return rows(self._view.own_value([value[part] for value in self.given]))

    def _judged(self, wanted: Explanation, actual: Sequence[Tensor]) -> Completeness:
        """Judge the sums of the file's own numbers, against the output that the network itself gives."""
        _, contributions, constants, _ = actual
        flat = contributions.flatten(1)
        named = {name: constants[:, place : place + 1] for place, name in enumerate(self.constants)}
        ones = torch.ones_like(flat)
        output = wanted.output.unsqueeze(1)
        return judged(DynamicWeights(output, output, {"": SourceWeights(ones, flat.unsqueeze(1))}, named))


def _compared(wanted: dict[str, Tensor], outputs: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the largest number in each output.

    Raises:
        VerificationError: it is more than rounding, or a shape differs.
    """
    worst = 0.0
    for (name, expected), actual in zip(wanted.items(), outputs, strict=True):
        if actual.shape != expected.shape:
            raise VerificationError(
                f"the file gives {name} of shape {tuple(actual.shape)}, the network {tuple(expected.shape)}"
            )
        if not expected.numel():
            continue
        largest, difference = float(expected.abs().max()), float((actual - expected.cpu()).abs().max())
        relative = difference / largest if largest else difference
        if not relative <= (tolerance := default_tolerance(expected.dtype)):
            raise VerificationError(
                f"the file computes something else: {name} differ by {relative:.1e} of the largest",
                where=f"tolerance {tolerance:.0e}",
                hint="nothing was written; export to the other format (.onnx, .pt2), and report it",
            )
        worst = max(worst, relative)
    return worst
