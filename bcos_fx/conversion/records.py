"""What the stages of a conversion hand on: each a record that stays as it is, but for the graph.

The graph itself is one object, which the stages rewrite in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, fx, nn

from bcos_fx.network import InputSpec
from bcos_fx.report.model import Drift, NodeRow
from bcos_fx.rewriting.core.passes import Engine, PassLog
from bcos_fx.rewriting.core.precision import Precision
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import Recipe
from bcos_fx.tracing import Trace, trace
from bcos_fx.tracing.inputs import BatchAxis, BoundInputs, ExampleInputs

"""What a module takes: a tensor, all inputs in order, or by name."""


@dataclass(frozen=True, eq=False)
class Conversion:
    """What is to be converted, and how.

    Attributes:
        module: the original; never changed.
        recipe: rules and options, those of the caller among them.
        asked: the options that the caller chose.
        images: (N, C, H, W) in [0, 1] to compare on, or None.
        output_key: which part of the module's output to take, or None.
        batch_axis: where the inputs hold their samples; None: they are one sample as a whole.
        progress: called with a short text at the start of each stage.
    """

    module: nn.Module
    recipe: Recipe
    asked: Mapping[str, Any]
    images: Tensor | None
    output_key: int | str | None
    batch_axis: BatchAxis
    progress: Callable[[str], None] | None

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
    def trace(self) -> Callable[[Any], Trace]:
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
    """

    traced: Traced
    specs: tuple[InputSpec, ...]
    log: PassLog


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
