"""One evaluation: accuracy, localization and further measures, of a network and of methods to compare it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bcos_fx.data.batches import enlarged
from bcos_fx.data.datasets import unmatched
from bcos_fx.display import Displayed
from bcos_fx.errors import BcosFxError, UsageError
from bcos_fx.escaping import amount
from bcos_fx.evaluation.correctness import Accuracy, judged_accuracy
from bcos_fx.evaluation.curve_measures import CurveSet
from bcos_fx.evaluation.localisation import Localisation, play
from bcos_fx.evaluation.predictions import EvaluationTask, Predictions, predict
from bcos_fx.evaluation.registry import BASELINES, MEASURES
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import Protocol, select
from bcos_fx.methods.baselines import CONDITIONAL
from bcos_fx.methods.method import Method, dynamic_linear
from bcos_fx.network import BcosNetwork
from bcos_fx.verification.original import NormalizedModel


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        metrics: names: ``accuracy`` (``zeroshot`` is that of a zero-shot classifier), ``gridpg``, and those of the
            registry.
        protocols: how the Grid Pointing Game is played, once for each.
        baselines: names of post-hoc methods on the original network.
        confidence: what the calibration error reads.
        batch_size: images at once in the pass over all of them.
    """

    metrics: tuple[str, ...]
    protocols: tuple[Protocol, ...] = ()
    baselines: tuple[str, ...] = ()
    confidence: str = "softmax"
    batch_size: int = 32


@dataclass(frozen=True, repr=False)
class Evaluation(Displayed):
    """What was measured.

    Attributes:
        task: of what, on what.
        outcome: what the network predicts for every image.
        accuracy: None: not asked for.
        localizations: for each protocol one result per method; the network's own comes first.
        curves: of further measures.
        refused: baselines that were left out -> why they are not right for this network.
    """

    task: EvaluationTask
    outcome: Predictions
    accuracy: Accuracy | None = None
    localisations: tuple[tuple[Localisation, ...], ...] = ()
    curves: tuple[CurveSet, ...] = field(default=())
    refused: Mapping[str, str] = field(default_factory=dict)

    def rows(self) -> Iterator[list[Any]]:
        """Yield the figures as rows, a head first: measure, method, value, 95 % interval, and on what."""
        yield ["measure", "method", "value", "low", "high", "on"]
        accuracy = self.accuracy
        if accuracy is not None:
            images = amount(accuracy.images, "image")
            yield ["top-1 accuracy", "network", accuracy.top1, *accuracy.interval, images]
            yield ["top-5 accuracy", "network", accuracy.top5, "", "", images]
            if accuracy.agreement is not None and accuracy.original_top1 is not None:
                yield ["top-1 accuracy", "original", accuracy.original_top1, "", "", images]
                yield ["agreement with the original", "network", accuracy.agreement, "", "", images]
            yield [f"calibration error ({accuracy.confidence})", "network", accuracy.calibration_error, "", "", images]
        for results in self.localisations:
            for result in results:
                measure = f"GridPG {result.protocol.side}x{result.protocol.side} ({result.protocol.name})"
                yield [measure, result.method, result.mean, *result.interval, amount(len(result.grids), "grid")]
        for curve in self.curves:
            measure = f"{curve.measure}, mean over the curve"
            for method, values in curve.values.items():
                yield [measure, method, float(values.mean()), "", "", amount(len(values), "image")]

    def brief(self) -> list[str]:
        """Return a line for each figure."""
        _, *rows = self.rows()
        lines = [f"  {measure}, {method}: {value:.4f} on {on}" for measure, method, value, _, _, on in rows]
        return ["Evaluation:", *lines, *(f"  {name} was left out: {why}" for name, why in self.refused.items())]


def run_evaluation(task: EvaluationTask, plan: Plan, runner: Runner) -> Evaluation:
    """Measure all that is planned.

    Every method plays on the same grids: those of images that ``task.model`` classifies confidently.

    Raises:
        UsageError: baselines without an original network, data that do not fit, or a folder that is in use.
    """
    with runner.alone():
        # Methods come first: what is not right for the network is known before hours of work.
        methods, refused = _methods(task, plan.baselines)
        classes = task.model.record.classes if isinstance(task.model, BcosNetwork) else ()
        for note in (unmatched(task.source, classes), enlarged(task.source, task.preprocessing)):
            if note is not None and runner.group.is_main:
                runner.log(note)
        outcome = predict(task, runner, batch_size=plan.batch_size)
        accuracy = None
        if "accuracy" in plan.metrics or "zeroshot" in plan.metrics:
            accuracy = judged_accuracy(outcome.predictions, confidence=plan.confidence, unreadable=outcome.unreadable)
        localisations = []
        for protocol in plan.protocols if "gridpg" in plan.metrics else ():
            # Chosen once, so that every method is scored on the same grids.
            grids = select(outcome.predictions, protocol)
            results = [play(task, method, grids, protocol, runner) for method in methods]
            localisations.append(tuple(dataclasses.replace(r, unreadable=outcome.unreadable) for r in results))
        curves = tuple(
            MEASURES[name](task, methods, outcome.predictions, runner) for name in plan.metrics if name in MEASURES
        )
    return Evaluation(task, outcome, accuracy, tuple(localisations), curves, refused)


def _methods(task: EvaluationTask, baselines: Sequence[str]) -> tuple[list[Method], dict[str, str]]:
    """Return the methods to compare, and why others are left out."""
    methods, refused = [dynamic_linear(task.model)], dict[str, str]()
    if not baselines:
        return methods, refused
    if not isinstance(task.original, NormalizedModel):
        raise UsageError(
            "baselines explain the original network, which is not known",
            hint="name it: --original torchvision:resnet50@IMAGENET1K_V2, or --original ARCH+checkpoint.pth",
        )
    for name in baselines:
        method = BASELINES[name](task.original)
        reason = _refusal(method, task) if name in CONDITIONAL else None
        if reason is None:
            methods.append(method)
        else:
            refused[method.name] = reason
    return methods, refused


def _refusal(method: Method, task: EvaluationTask) -> str | None:
    """Return why a method is not right for the network: by a run now, not after an hour of other work."""
    # A made-up image serves: whether a method fits depends on operations, not on numbers.
    shape = (1, task.preprocessing.channels, *task.preprocessing.size)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(task.like)
    try:
        method.maps(image, torch.zeros(1, 1, dtype=torch.long, device=image.device))
    except BcosFxError as error:
        return str(error)
    return None
