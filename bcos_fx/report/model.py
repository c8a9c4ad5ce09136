"""The report: what every node was, which rule made it what it is, what nearly matched, and what was measured.

A report is plain data: it survives copying and saving, and the report of a dry run equals that of the real run,
figures apart.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from bcos_fx.rewriting.core.flow import VALUE
from bcos_fx.rewriting.core.match import NearMiss


@dataclass(frozen=True)
class NodeRow:
    """One node of a graph.

    Attributes:
        name: its name.
        op: its canonical op, or the bare target where no entry of the vocabulary knows it.
        inputs: names of the nodes that it reads.
        was: the op that it was when traced; None for a node that a rule added.
        rules: the rules that made it what it is, in order.
        module: path of the module that it calls, if any.
        source: where in the user's code it was called.
        kind: ``constant``, ``value``, ``gate`` or ``unknown`` (see :mod:`bcos_fx.rewriting.core.flow`).
        b: alignment pressure B of the B-cos layer that it calls; None where it calls none.
    """

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    was: str | None = None
    rules: tuple[str, ...] = ()
    module: str | None = None
    source: str | None = None
    kind: str = VALUE
    b: float | None = None


@dataclass(frozen=True)
class RuleUse:
    """A rule that a conversion used: its phase, and what it preserves."""

    phase: str
    preserves: str


@dataclass(frozen=True)
class Coverage:
    """How much of the network was converted.

    Attributes:
        converted: linear and convolution parameters on value paths that are in B-cos layers.
        total: all linear and convolution parameters on value paths.
    """

    converted: int
    total: int

    @property
    def share(self) -> float:
        """The converted share, 1 where there is nothing to convert."""
        return self.converted / self.total if self.total else 1.0


@dataclass(frozen=True)
class Drift:
    """How far one changing rule moved the output.

    Attributes:
        rule: the rule.
        nodes: how many nodes it changed.
        change: |after - before| / |before| over the outputs of all test inputs.
        agreement: share of test inputs whose highest output stayed the highest, or None where there are no classes.
    """

    rule: str
    nodes: int
    change: float
    agreement: float | None


@dataclass(frozen=True)
class LayerChange:
    """What a calibration changed in one layer.

    Attributes:
        node: that calls the layer.
        kind: ``statistics`` (of a batch norm: mean and deviation of its input were measured again) or ``gain`` (the
            layer's output was given the original's deviation and, where it has a bias, mean).
        channels: how many it has.
        dead: channels whose values do not vary over the images; their scale was left as it was.
        scale: median factor, over the other channels, by which the output of that layer alone grew; 1 if all are dead.
        lowest, highest: the extremes of that factor.
        shift: root mean square over the channels of how far the mean moved, in deviations before.
    """

    node: str
    kind: str
    channels: int
    dead: int
    scale: float
    lowest: float
    highest: float
    shift: float


@dataclass(frozen=True)
class Agreement:
    """How well a network answers, as shares of the images from 0 to 1.

    Attributes:
        accuracy: whose highest output is their label's; None without labels.
        agreement: whose highest output is the original's; None without the original.
    """

    accuracy: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Calibration:
    """The latest calibration of a network.

    Attributes:
        images: how many samples it was calibrated on.
        reference: what gains were matched to: ``original``, ``itself at B = 1``, or None where nothing was.
        layers: what changed, in the order of the graph.
        kept: node of a layer that could have been calibrated and was not -> why.
        before, after: on the same images, which it has seen: an upper bound for others. None if not measured.
    """

    images: int
    reference: str | None
    layers: tuple[LayerChange, ...]
    kept: Mapping[str, str]
    before: Agreement | None = None
    after: Agreement | None = None


@dataclass(frozen=True)
class Explainable:
    """Whether the network's output is W(x)·x + constants, by its certificate.

    Attributes:
        output: what can be explained so: ``output``, or ``logits`` before a final softmax or sigmoid; None: neither.
        reasons: where the output stops being so, and why; empty if ``output`` can be explained.
    """

    output: str | None
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = self.reasons[0] if self.reasons else ""
        more = f" (and {len(self.reasons) - 1} more)" if len(self.reasons) > 1 else ""
        if self.output is None:
            return f"no, because {first}{more}"
        return "yes" if self.output == "output" else f"yes, the {self.output} (output={self.output!r}); {first}{more}"


@dataclass(frozen=True)
class Figures:
    """What was measured; empty in a dry run.

    Attributes:
        verification: the equivalence proof of the preserving phases, as plain data; None if it was not asked for.
        drift: one entry per changing rule, in order.
        total_drift: all changing rules together.
        calibration: the latest one, or None.
        explainable: what a certificate says; None where there is none.
        trained: how often the weights were fine-tuned since the conversion.
    """

    verification: Mapping[str, Any] | None = None
    drift: tuple[Drift, ...] = ()
    total_drift: Drift | None = None
    calibration: Calibration | None = None
    explainable: Explainable | None = None
    trained: int = 0


@dataclass(frozen=True)
class Findings:
    """Everything that a conversion did and found.

    Attributes:
        recipe: name of the recipe.
        options: its options, as plain data.
        rule_hashes: rule file -> SHA-256.
        rules: rule that was used -> its phase and what it preserves, in the order of use.
        before, nodes: the graph as traced and as it is now.
        removed: node -> the rule that removed it.
        near_misses: what almost matched and why not.
        unknown: nodes whose op no entry of the vocabulary knows.
        unused: parameters of the module that its eval graph never uses.
        guards: branches and numbers that tracing took from a shape.
        train_difference: where the train graph differs from the eval graph, or None.
        inputs: placeholder -> what it takes.
        coverage: how much was converted.
        notes: what the user should know, in plain sentences.
        figures: what was measured.
    """

    recipe: str
    options: Mapping[str, Any]
    rule_hashes: Mapping[str, str]
    rules: Mapping[str, RuleUse]
    before: tuple[NodeRow, ...]
    nodes: tuple[NodeRow, ...]
    removed: Mapping[str, str]
    near_misses: tuple[NearMiss, ...]
    unknown: tuple[NodeRow, ...]
    unused: tuple[str, ...]
    guards: tuple[str, ...]
    train_difference: str | None
    inputs: Mapping[str, str]
    coverage: Coverage
    notes: tuple[str, ...] = ()
    figures: Figures = field(default_factory=Figures)

    def rule_counts(self) -> dict[str, int]:
        """Return how many nodes each rule made what they are (or removed), in the order of first use."""
        counts = Counter(rule for row in self.nodes for rule in row.rules)
        counts.update(self.removed.values())
        return dict(counts)

    def pressures(self) -> dict[float, list[str]]:
        """Return B -> the paths of the B-cos layers that have it, in the order of the graph; the largest B first."""
        paths: dict[float, dict[str, None]] = {}
        for row in self.nodes:
            if row.b is not None:
                paths.setdefault(row.b, {})[str(row.module)] = None
        return {b: list(paths[b]) for b in sorted(paths, reverse=True)}

    def without_figures(self) -> Self:
        """Return the report as a dry run gives it."""
        return dataclasses.replace(self, figures=Figures())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        plain = dataclasses.asdict(self)
        plain["coverage"]["share"] = self.coverage.share
        return plain

    def to_json(self, *, indent: int | None = 2) -> str:
        """Return the report as JSON with sorted keys."""
        return json.dumps(self.to_dict(), indent=indent, sort_keys=True)
