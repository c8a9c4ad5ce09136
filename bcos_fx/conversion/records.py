"""What the stages of a conversion hand on: each a record that stays as it is, but for the graph.

The graph itself is one object, which the stages rewrite in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, fx, nn

from bcos_fx.network import InputSpec
from bcos_fx.report.model import Drift, NodeRow
from bcos_fx.rewriting.core.passes import Engine, PassLog
from bcos_fx.rewriting.core.precision import Precision
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import Recipe
from bcos_fx.tracing import Trace, trace
from bcos_fx.tracing.inputs import BatchAxis, BoundInputs, ExampleInputs

ProofMethod = Literal["full", "blocks", "float32"]

LARGE = 100_000_000
"""Networks with this many parameters are verified block by block: in float64 the two would take 1.6 GB and more."""


@dataclass(frozen=True, eq=False)
class Conversion:
    """What to convert, and how.

    Attributes:
        module: the original; never changed.
        recipe: rules and options, those of the caller among them.
        asked: the options that the caller chose.
        images: (N, C, H, W) in [0, 1] to compare on, or None.
        output_key: which part of the module's output to take, or None.
        batch_axis: where the inputs hold their samples; None: they are one sample as a whole.
        progress: called with a short text at the start of each stage.
        verify: how equivalence is proved: ``full``, ``blocks`` or ``float32``; None: by the module's size.
    """

    module: nn.Module
    recipe: Recipe
    asked: Mapping[str, Any]
    images: Tensor | None
    output_key: int | str | None
    batch_axis: BatchAxis
    progress: Callable[[str], None] | None
    verify: ProofMethod | None = None

    @property
    def method(self) -> ProofMethod:
        """How equivalence is proved."""
        return self.verify or ("blocks" if self.size >= LARGE else "full")

    @property
    def size(self) -> int:
        """How many parameters the module has."""
        return sum(p.numel() for p in self.module.parameters() if not nn.parameter.is_lazy(p))

    @property
    def whole(self) -> bool:
        """Whether inputs are compared as a whole, for their samples are not the first dimension."""
        return self.batch_axis != 0

    @property
    def engine(self) -> Engine:
        """The engine that runs the recipe."""
        return Engine(self.recipe, progress=self.progress)

    def begin(self, stage: str) -> None:
        """Report that a stage begins."""
        if self.progress is not None:
            self.progress(stage)

    @property
    def trace(self) -> Callable[[ExampleInputs], Trace]:
        """What turns the module into a graph of its own, from inputs that it takes."""
        leaves = (*self.engine.ops.leaves, *self.recipe.options.leaf_modules)
        return partial(trace, self.module, output=self.output_key, leaf_modules=leaves)


@dataclass(frozen=True, eq=False)
class Traced:
    """The module as a graph.

    Attributes:
        conversion: what was asked for.
        inputs: what the module was traced with, in the caller's form.
        trace: the graph, and what tracing found.
        example: the inputs, as arguments of the module's forward.
        reader: reads the graph.
        before: a row for each node as traced.
        precision: of the graph's tensors.
    """

    conversion: Conversion
    inputs: ExampleInputs
    trace: Trace
    example: BoundInputs
    reader: GraphReader
    before: tuple[NodeRow, ...]
    precision: Precision

    @property
    def graph_module(self) -> fx.GraphModule:
        """The graph, which the later stages rewrite in place."""
        return self.trace.graph_module


@dataclass(frozen=True, eq=False)
class Preserved:
    """The graph after the phases that preserve the function.

    Attributes:
        traced: the stage before.
        specs: what the network's inputs take.
        log: what was done.
        original: the graph as traced, over the module's own parameters; None unless it is compared block by block.
    """

    traced: Traced
    specs: tuple[InputSpec, ...]
    log: PassLog
    original: fx.GraphModule | None = None


@dataclass(frozen=True, eq=False)
class Changed:
    """The graph after the phases that change the function.

    Attributes:
        preserved: the stage before.
        log: what both stages did.
        drift: how far each rule moved the output; empty if that was not measured.
        total: all of them together.
    """

    preserved: Preserved
    log: PassLog
    drift: tuple[Drift, ...]
    total: Drift | None
