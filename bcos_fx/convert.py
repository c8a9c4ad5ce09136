"""bcosify(): the whole pipeline on one page.

trace -> rewrite what preserves the function -> verify -> rewrite what changes it, with its drift -> report -> calibrate
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from bcos_fx import artifact as artifact  # registers how a converted network is pickled
from bcos_fx import example
from bcos_fx.calibration import calibrate_
from bcos_fx.checkpoint import published
from bcos_fx.errors import TraceError, UsageError, VerificationError
from bcos_fx.heads.layers import with_classes
from bcos_fx.network import BcosNetwork, Guard, InputSpec, Record
from bcos_fx.network.size_cache import SizeCache
from bcos_fx.nn import BcosLayer
from bcos_fx.report import Report
from bcos_fx.report.collect import coverage, mark_origins, read_rows, removed_nodes, unknown_rows
from bcos_fx.report.model import Drift, Figures, RuleUse
from bcos_fx.rewriting.builders.input import input_affine
from bcos_fx.rewriting.core.passes import Engine, PassLog
from bcos_fx.rewriting.core.precision import Precision
from bcos_fx.rewriting.core.reader import GraphReader
from bcos_fx.rewriting.core.recipe import DEFAULT_RECIPE, Recipe, load_recipe
from bcos_fx.rewriting.core.rewrite import Step
from bcos_fx.rewriting.core.rule import CHANGING_PHASES, PRESERVING_PHASES, Rule
from bcos_fx.tracing import Trace, own_modes, trace
from bcos_fx.tracing.exported import as_module
from bcos_fx.tracing.inputs import BatchAxis, axes_by_name, bind
from bcos_fx.validation import check_backward, check_encoding, check_finite, check_images, check_module
from bcos_fx.verification.blame import find_culprit
from bcos_fx.verification.conditioning import well_conditioned
from bcos_fx.verification.drift import DriftMeter
from bcos_fx.verification.equivalence import Verification, verify
from bcos_fx.verification.samples import imagine

Progress = Callable[[str], None]
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


def bcosify(
    module: nn.Module,
    *,
    example_inputs: Inputs | None = None,
    recipe: str | Path = DEFAULT_RECIPE,
    b: float | Mapping[str, float] | None = None,
    mean: Sequence[float] | float | str | None = None,
    std: Sequence[float] | float | None = None,
    rules: Sequence[str | Path] = (),
    images: Tensor | None = None,
    calibration_images: Any = None,
    output: int | str | None = None,
    classes: Sequence[int | str] | None = None,
    class_names: Sequence[str] | None = None,
    train: str = "refuse",
    verified: bool = True,
    batch_axis: BatchAxis = 0,
    keep_source: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> BcosNetwork:
    """Turn a trained network into a B-cos network.

    Args:
        module: any network, or what ``torch.export.export`` made of one; it is not changed.
        example_inputs: what it takes: a tensor (N, ...) with N >= 2, positional or named arguments. None: images
            of 224, 64 or 32 pixels with as many channels as the first convolution reads, whichever runs first.
        recipe: name of a shipped recipe, or path of a TOML file.
        b: alignment pressure B >= 1, one for all layers, or module-name pattern or family (``depthwise``, ``grouped``,
            ``pointwise``) -> B, where the first that fits a layer decides. None: the recipe's.
        mean: what the module expects to be subtracted from its images, per channel. The result takes images in
            [0, 1] and computes what the module computes for (x - mean) / std. None: 0. ``"auto"`` reads mean and std
            from the module's ``pretrained_cfg``, as timm keeps it.
        std: what the module expects its images to be divided by afterwards. None: 1.
        rules: more rule files.
        images: (N, C, H, W) in [0, 1], to verify on besides made-up ones, and to measure drift on.
        calibration_images: a few hundred images, in any form that :func:`bcos_fx.calibrate` takes, to calibrate the
            result on with ``module`` as the original. A dry run leaves them unread.
        output: which part of the module's output to take, where that is not one tensor: a key, attribute or position.
        classes: which classes of a classifier to keep, in order: indices, names, or WordNet ids, as
            :func:`bcos_fx.heads.classes.find_classes` takes them. The original is converted, verified and calibrated
            with all of its classes. None: all.
        class_names: names of the module's classes, in order; None: those of ImageNet-1k where it has 1,000.
        train: ``refuse`` (``.train()`` raises where the module's train graph is another than its eval graph) or
            ``eval-graph`` (train the eval graph).
        verified: prove that the preserving rules preserved the function, and measure the drift of the others.
        batch_axis: where inputs hold their samples, as for :func:`bcos_fx.explain`; with None (one sample as a whole: a
            graph's nodes, say) or another dimension than 0 the proof runs on whole inputs of the example's shape, and
            on no other numbers of samples.
        keep_source: keep a reference to ``module``, and convert it again for inputs of a size for which the graph does
            not hold, over the same parameters; otherwise such inputs are refused. A file holds the first graph only.
        progress: called with a short text at the start of each stage.
        options: any other field of :class:`bcos_fx.rewriting.core.options.Options`, such as ``scale="unit"``.

    Returns:
        The converted network, in eval mode, with its ``report``. A network that is already converted comes back as
        an equal copy, and the report says so.

    Raises:
        UsageError: an argument makes no sense.
        TraceError: the module cannot be turned into a graph.
        RuleError, RewriteError: a rule file is wrong, or rules undo each other.
        VerificationError: a preserving rule did not preserve the function; names the rule and the node.
    """
    check_module(module := as_module(module))
    if train not in ("refuse", "eval-graph"):
        raise UsageError(f"train is {train!r}", hint='choose "refuse" or "eval-graph"')
    # Parameters that are made in the caller's inference mode could never be trained.
    with own_modes():
        if isinstance(module, BcosNetwork):
            return with_classes(example.equal_copy(module), classes, class_names)
        if batch_axis != 0:
            example.check_whole(example_inputs, has_images=images is not None or calibration_images is not None)
        chosen = example.chosen_options(module, b, mean, std, options)
        loaded = load_recipe(recipe, extra_rules=rules)
        if "mean" not in chosen:
            example.check_statistics(module, loaded.options.mean, loaded.options.std, recipe=loaded.name)
        own = loaded.with_options(published.options_of(module, loaded, chosen))
        conversion = _Conversion(module, own, images, progress, batch_axis)
        conversion.asked = frozenset(chosen)
        conversion.trace(example_inputs, output)
        conversion.preserve()
        verification = conversion.verify() if verified else None
        drift = conversion.change(measured=verified)
        network = published.settled(module, conversion.network(verification, drift, train))
        if calibration_images is not None:
            conversion.say("calibrating")
            calibrate_(network, calibration_images, module, output=output, measured=verified, progress=progress)
        if classes is not None:
            if keep_source:
                raise UsageError("keep_source converts the module again, with all of its classes", hint="leave it out")
            network = with_classes(network, classes, class_names)
        if keep_source:
            given: dict[str, Any] = {"recipe": recipe, "b": b, "mean": mean, "std": std, "rules": rules, **options}
            given |= {"output": output, "batch_axis": batch_axis}

            def again(inputs: Sequence[Tensor]) -> BcosNetwork:
                return bcosify(module, example_inputs=conversion.example(inputs), verified=verified, **given)

            network.keep_source(SizeCache(module, again))
        return network


def plan(module: nn.Module, **arguments: Any) -> Report:
    """Say what :func:`bcosify` would do, as the report of a dry run.

    Takes the arguments of :func:`bcosify`. The report equals that of the real run, figures apart.
    """
    return bcosify(module, **{**arguments, "verified": False, "calibration_images": None}).report


@dataclass
class _Measured:
    steps: tuple[Drift, ...] = ()
    total: Drift | None = None


class _Conversion:
    """The state of one run of the pipeline."""

    def __init__(
        self, module: nn.Module, recipe: Recipe, images: Tensor | None, progress: Progress | None, axis: BatchAxis
    ) -> None:
        self.module, self.recipe, self.images, self.axis = module, recipe, images, axis
        self.whole = axis != 0
        self.asked: frozenset[str] = frozenset()  # options that are the caller's own
        self.say = progress or (lambda stage: None)
        self.log = PassLog()
        self.engine = Engine(recipe, progress=lambda phase: self.say(f"rewriting: {phase}"))

    def trace(self, example_inputs: Inputs | None, output: int | str | None) -> None:
        """Turn the module into a graph of its own, and note what every node is."""
        self.say("tracing")
        self.output = output
        self.recipe.options.check_leaves([path for path, _ in self.module.named_modules()])
        self.given, self.traced = self._traced(example_inputs)
        self._sizes: tuple[()] | None = (
            () if self.traced.guards or self.whole else None
        )  # None: others than the example's too
        self.example_run = bind(self.module, self.given)
        named = self.example_run.named
        self.axes = axes_by_name(list(named), list(named.values()), self.axis) if self.whole else (0,) * len(named)
        self.graph_module: fx.GraphModule = self.traced.graph_module
        check_finite(self.graph_module)
        self.reader = GraphReader(self.graph_module, self.engine.ops, self.recipe.options)
        mark_origins(self.reader)
        self.before = read_rows(self.reader)
        self.precision = Precision(self.graph_module)

    def _traced(self, example_inputs: Inputs | None) -> tuple[Inputs, Trace]:
        if example_inputs is not None:
            return example_inputs, self._trace(example_inputs)
        return example.first_that_runs(self.module, self._trace)

    def _trace(self, inputs: Inputs) -> Trace:
        leaves = (*self.engine.ops.leaves, *self.recipe.options.leaf_modules)
        return trace(self.module, inputs, output=self.output, leaf_modules=leaves)

    def preserve(self) -> None:
        """Run the phases that preserve the function, in float64: what they compute is rounded only once."""
        self.precision.raise_()
        self._extend(self.engine.run(self.graph_module, PRESERVING_PHASES))
        self.specs = self._specs()
        # A network of peers' layers came with its own encoding: a recipe's statistics are not for it.
        asked = self.asked if self.reader.has_peer_layers else None
        check_encoding(self.recipe.options, self.specs, self.log.near_misses, asked)
        self.recipe.options.check_patterns(self._bcos_layers())
        if self.images is not None:
            check_images(self.images, self.specs)

    def _bcos_layers(self) -> dict[str, nn.Module]:
        called = [str(node.target) for node in self.graph_module.graph.nodes if node.op == "call_module"]
        layers = {path: self.graph_module.get_submodule(path) for path in called}
        return {path: layer for path, layer in layers.items() if isinstance(layer, BcosLayer)}

    def _extend(self, log: PassLog) -> None:
        self.log.steps += log.steps
        self.log.near_misses += log.near_misses

    def _specs(self) -> tuple[InputSpec, ...]:
        specs: list[InputSpec] = []
        for node in self.graph_module.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = InputSpec(str(node.target), tuple(node.meta.get("shape") or ()), samples=self.axes[len(specs)])
            if not specs:
                spec = dataclasses.replace(spec, **example.recorded_preprocessing(self.module))
            if any(self.reader.op(user) == "input_encoding" for user in node.users):
                matrix, offset = input_affine(self.recipe.options, spec.shape[1])
                rows = tuple(tuple(row) for row in matrix.tolist())
                spec = dataclasses.replace(spec, encoded=True, matrix=rows, offset=tuple(offset.tolist()))
            specs.append(spec)
        return tuple(specs)

    def _test_inputs(self, count: int) -> tuple[Tensor, ...]:
        """Inputs of the converted network: the user's images, or made-up ones; other inputs as in the example."""
        if self.images is not None:
            return (self._like_network(self.images[:count]),)
        if not self.whole and len(self.specs) == 1 and self._examples()[0].is_floating_point():
            made_up = imagine(self.specs[0].shape[1:], count, seed=0)
            if not self.specs[0].encoded:  # no image: values of both signs
                made_up = made_up.map(lambda x: 2 * x - 1)
            return tuple(self._like_network(x) for x in made_up.arguments if isinstance(x, Tensor))
        return self._examples()

    def example(self, inputs: Sequence[Tensor]) -> Inputs:
        """Inputs of the converted network as an example for the original: in its form, two samples at least."""
        like = self._examples()
        pairs = [torch.cat([x, x]) if len(x) == 1 and not self.whole else x for x in inputs]
        given = [spec.original(x.detach()).to(old) for spec, x, old in zip(self.specs, pairs, like, strict=True)]
        made: Inputs = example.like(self.given, given)
        return made

    def _examples(self) -> tuple[Tensor, ...]:
        return tuple(self.example_run.named.values())

    def _original(self, specs: Sequence[InputSpec]) -> nn.Module:
        return example.Original(self.module, self.example_run, specs, self.output)

    def _compared(self, original: nn.Module, converted: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, Any, Any]:
        """What is compared, on what: where samples are not the first dimension, on whole inputs one by one."""
        if not self.whole:
            return original, converted, inputs
        return example.EachAlone(original), example.EachAlone(converted), tuple(x.unsqueeze(0) for x in inputs)

    def _drift_batches(self) -> list[tuple[Tensor, ...]]:
        """Test inputs in batches as large as the example: an exported program may take no other."""
        inputs = self._test_inputs(8 if self.images is not None else 4)
        size = self.specs[0].shape[0] if self.specs[0].shape else 0
        if len(inputs) > 1 or self.whole or not 0 < size <= len(inputs[0]):
            return [inputs]
        return [(part,) for part in torch.split(inputs[0], size) if len(part) == size]

    def _like_network(self, x: Tensor) -> Tensor:
        like = next(self.graph_module.parameters(), self._examples()[0])
        return x.to(dtype=like.dtype, device=like.device)

    def verify(self) -> Verification:
        """Prove that the network so far is the original, or say which rule broke it."""
        self.say("verifying")
        # As many samples as the batches hold: every further pass costs as much as a batch.
        *pair, inputs = self._compared(self._original(self.specs), self.graph_module, self._test_inputs(3))
        prove = partial(verify, *pair, batch_sizes=(1, 2), sizes=self._sizes, preserves="eval")
        result = well_conditioned(prove, inputs)
        if any(row.verdict == "different" for row in result.comparisons):
            self._raise(result)
        return result

    def _raise(self, result: Verification) -> None:
        def originals(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(spec.original(x) for spec, x in zip(self.specs, inputs, strict=True))

        def retrace() -> fx.GraphModule:
            graph_module = self._trace(self.given).graph_module
            mark_origins(GraphReader(graph_module, self.engine.ops, self.recipe.options))
            return graph_module

        check_backward(self.traced.own_backward, result)
        self._check_trace(retrace(), originals(self._test_inputs(2)))
        blame = find_culprit(retrace, self.engine, self._test_inputs(2), originals)
        where = None
        if blame is not None:
            where = f"rule {blame.rule!r} ({blame.origin}) at node {blame.node}"
            where += f", {blame.source}" if blame.source else ""
        raise VerificationError(
            f"the rewritten network is not the original: {result.detail}",
            where=where,
            hint="leave that rule out, and report it as a bug if it is a shipped one",
        )

    def _check_trace(self, traced: fx.GraphModule, inputs: tuple[Tensor, ...]) -> None:
        """Do not blame a rule for what tracing took from the example: a batch size, say."""
        plain = [dataclasses.replace(spec, encoded=False) for spec in self.specs]
        original = self._original(plain)
        result = verify(
            *self._compared(original, traced, inputs), batch_sizes=(1, 2), sizes=self._sizes, gradients=False
        )
        if any(row.verdict == "different" for row in result.comparisons):
            raise TraceError(
                f"the module's graph holds for inputs like the example only: {result.detail}",
                where="; ".join(str(guard.source) for guard in self.traced.guards) or None,
                hint="keep the number of samples, strides and the input's values out of Python's branches and numbers",
            )

    def change(self, *, measured: bool) -> _Measured:
        """Run the phases that change the function, and measure how far each rule moved the output."""
        self.precision.restore_()
        steps: list[Drift] = []
        meter = DriftMeter(self.graph_module, self._drift_batches()) if measured else None

        def after_rule(rule: Rule, done: list[Step], network: fx.GraphModule) -> None:
            if meter is not None:
                steps.append(meter.step(network, rule.name, len(done)))

        self._extend(dataclasses.replace(self.engine, after_rule=after_rule).run(self.graph_module, CHANGING_PHASES))
        total = meter.total(sum(d.nodes for d in steps)) if meter is not None and steps else None
        return _Measured(tuple(steps), total)

    def network(self, verification: Verification | None, drift: _Measured, train: str) -> BcosNetwork:
        """Wrap the graph with everything that is known about it."""
        self.reader.refresh()
        guards = tuple(Guard(g.kind, repr(g.value), g.source) for g in self.traced.guards)
        report = self._report(guards, verification, drift)
        record = Record(report, self.specs, guards, self.traced.train_difference, train)
        return BcosNetwork(self.graph_module, record)

    def _report(self, guards: tuple[Guard, ...], verification: Verification | None, drift: _Measured) -> Report:
        rows = read_rows(self.reader)
        figures = Figures(verification.to_dict() if verification is not None else None, drift.steps, drift.total)
        return Report(
            recipe=self.recipe.name,
            options=self.recipe.options.to_dict(),
            rule_hashes=self.recipe.hashes,
            rules=self._rules_used(),
            before=self.before,
            nodes=rows,
            removed=removed_nodes(self.log.steps, self.before, rows),
            near_misses=tuple(dict.fromkeys(self.log.near_misses)),
            unknown=unknown_rows(self.reader, rows),
            unused=self.traced.unused,
            guards=tuple(map(str, guards)),
            train_difference=self.traced.train_difference,
            inputs={spec.name: spec.described() for spec in self.specs},
            coverage=coverage(self.reader),
            notes=self._notes(),
            figures=figures,
        )

    def _rules_used(self) -> dict[str, RuleUse]:
        known = {rule.name: RuleUse(rule.phase, rule.preserves) for rule in self.recipe.rules}
        return {name: known[name] for name in dict.fromkeys(step.rule for step in self.log.steps)}

    def _notes(self) -> tuple[str, ...]:
        notes, options = list(self.traced.notes), self.recipe.options
        if len(self.specs) > 1 and (main := self.reader.flow.main):
            notes.append(
                f"layers on value paths were found for the input {main[0]!r}; factors by other inputs weight it"
            )
        if self.module.training:
            notes.append("the module was in train mode; it was traced, and is returned, in eval mode")
        if any(step.rule == "image-input-encoded" for step in self.log.steps) and not options.mean:
            notes.append(
                "mean and std were not given, so the network takes images as the original does, in [0, 1]; the 1 - x "
                "half of the first kernel has no effect of its own until it is trained, and colours mean nothing yet"
            )
        return tuple(notes)
