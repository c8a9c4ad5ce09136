"""Zero-shot classification and linear probes for ``bcos-fx evaluate``. Imports torch: load it inside commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bcos_fx.cli.console import echo, echo_json
from bcos_fx.cli.evaluation_request import EvaluationRequest
from bcos_fx.cli.failure import list_skipped
from bcos_fx.cli.text_options import TextOptions
from bcos_fx.cli.texts import embedded
from bcos_fx.data.classes import check_class_count, read_classes
from bcos_fx.data.stores import open_source
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.evaluation.clip_benchmark import LINEAR_PROBE, ZERO_SHOT, record, zero_shot_metrics
from bcos_fx.evaluation.probing import check_solver, embed_images, linear_probe
from bcos_fx.evaluation.session import Evaluation
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.files import replacing
from bcos_fx.methods.zero_shot import ZeroShot
from bcos_fx.network import BcosNetwork

if TYPE_CHECKING:
    from bcos_fx.evaluation.session import Plan

FILE = "clip_benchmark.json"


def classifier(
    network: BcosNetwork, request: EvaluationRequest, plan: Plan, names: tuple[str, ...] | None
) -> BcosNetwork | ZeroShot:
    """Return what is evaluated: the network itself, or of an image tower the classifier that texts make of it."""
    texts = TextOptions(names or (), request.text_tower, request.text_embeddings, request.templates)
    if texts == TextOptions(names or ()) and request.location is None and "zeroshot" not in plan.metrics:
        if names is not None:
            check_class_count(names, network.class_count())
        return network
    if request.original is not None:
        raise UsageError("texts were given beside --original, whose outputs are classes", hint="leave one of them out")
    if not texts.names and texts.stored is None:
        raise UsageError(
            "zero-shot classification needs class names",
            hint="--classes names.txt with --text-tower, or --text-embeddings from bcos-fx embed",
        )
    return ZeroShot(network, embedded(texts), location=request.location)


def zero_shot_record(evaluation: Evaluation, request: EvaluationRequest) -> Path:
    """Write what a zero-shot classifier was measured to be, in the form of CLIP Benchmark; return the file."""
    classifier = evaluation.task.model
    assert isinstance(classifier, ZeroShot)
    metrics = zero_shot_metrics(evaluation.outcome.predictions, len(classifier.texts.names))
    return _write_record(ZERO_SHOT, metrics, classifier.tower, request)


def run_probe(request: EvaluationRequest, plan: Plan, network: Callable[[], BcosNetwork]) -> None:
    """Fit a linear probe to the embeddings of an image tower, measure it, and write and print the result.

    Raises:
        MissingExtraError: the solver is not installed.
        UsageError: data or network do not fit.
        Exit: with code 1, where an image could not be read.
    """
    if plan.metrics != ("linear-probe",):
        raise UsageError("linear-probe was asked for beside other measures", hint="ask for it alone: it trains")
    if request.train_data is None:
        raise UsageError("a linear probe is fitted to images", hint="name them with --train-data")
    check_solver()
    names = None if request.classes is None else read_classes(request.classes)
    tower, parts = network(), []
    for path in (request.train_data, request.data):
        task = task_of(tower, open_source(path, classes=names))
        echo(f"Embedding {amount(len(task.source), 'image')} of {path}.", err=True)
        parts.append(embed_images(tower, task.source, task.preprocessing, batch_size=request.batch_size))
    probe = linear_probe(*parts)
    request.out.mkdir(parents=True, exist_ok=True)
    metrics = {**{f"lp_{name}": value for name, value in probe.metrics.items()}, "weight_decay": probe.weight_decay}
    path = _write_record(LINEAR_PROBE, metrics, tower, request)
    if request.json:
        echo_json(probe.to_dict())
    else:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in probe.metrics.items() if value is not None)
        echo(f"linear probe on {amount(probe.images, 'image')}: {figures} (weight decay {probe.weight_decay:.1e})")
        echo(f"Wrote {path}.")
    if not probe.converged:
        echo("note: the fit did not come to an end; a larger weight decay converges sooner", err=True)
    list_skipped({**parts[0].unreadable, **parts[1].unreadable})


def _write_record(
    task: str, metrics: dict[str, float | None], network: BcosNetwork, request: EvaluationRequest
) -> Path:
    of = {"dataset": request.data.stem, "model": request.model.stem, "pretrained": f"bcos-fx {network.report.recipe}"}
    result = record(task, metrics, **of)
    path = request.out / FILE
    with replacing(path, "the results") as stream:
        stream.write(json.dumps(result, indent=2, sort_keys=True).encode() + b"\n")
    return path
