"""``bcos-fx evaluate``: how well a converted network's explanations explain, beside post-hoc methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from bcos_fx.cli.console import console, echo, echo_json
from bcos_fx.cli.evaluation_request import EvaluationRequest
from bcos_fx.cli.failure import CHECK_FAILED
from bcos_fx.cli.options import takes
from bcos_fx.errors import UsageError, check_choice
from bcos_fx.escaping import amount

if TYPE_CHECKING:
    from bcos_fx.evaluation.process_group import ProcessGroup
    from bcos_fx.evaluation.selection import Protocol
    from bcos_fx.evaluation.session import Evaluation, Plan
    from bcos_fx.network import BcosNetwork
    from bcos_fx.verification.original import NormalizedModel

NAME = "evaluate"
EPILOG = """Examples:

bcos-fx evaluate model.safetensors --data photographs/

bcos-fx evaluate model.safetensors --data val.npz --metric gridpg --grid 2x2 --grid 3x3 --protocol published

bcos-fx evaluate model.safetensors --data shards/ --original torchvision:resnet50@IMAGENET1K_V2 --baselines all

torchrun --nproc-per-node 4 -m bcos_fx evaluate model.safetensors --data photographs/

bcos-fx evaluate clip.safetensors --data photographs/ --metric zeroshot,gridpg --text-embeddings classes.safetensors

bcos-fx evaluate clip.safetensors --data test/ --train-data train/ --metric linear-probe

A run that was cut off goes on where it was when the same command is given again.

Exit code 0: all measured. 1: an image could not be read. 2: bad input.
"""
_PUBLISHED_ONLY = {"seed": "--seed", "confidence": "--confidence", "threshold": "--threshold", "smooth": "--smooth"}
_LISTED = 20


@takes(EvaluationRequest)
def evaluate_networks(request: EvaluationRequest) -> None:
    """Measure how well a converted network's explanations explain: localization, and accuracy beside it.

    The Grid Pointing Game puts images of different classes into a grid, explains each class on it, and scores which
    share of the positive contributions lies in the one cell that shows the class. Every method plays on the same grids,
    those of images that the network is sure of; all targets of a grid cost one forward pass.

    Results are written to a folder: results.json, results.csv, scores.csv (every cell), plots, and evaluation.html with
    tables, plots and the best, median and worst grids. Each result is written as it comes, so an interrupted run goes
    on; results of other settings in the folder are refused.
    """
    from bcos_fx.evaluation.process_group import joined

    plan = _plan(request)
    # A probe trains: it shares neither the pass over the images nor the log of results with the other measures.
    if "linear-probe" in plan.metrics:
        from bcos_fx.cli.image_text import run_probe

        run_probe(request, plan, lambda: _networks(request)[0])
        return
    # Every process of torchrun runs this function; the first one alone prints and writes the report.
    with joined() as group:
        evaluation, files = _measured(request, plan, group)
    if not group.is_main:
        return
    if "zeroshot" in plan.metrics:
        from bcos_fx.cli.image_text import zero_shot_record

        files.append(zero_shot_record(evaluation, request))
    if request.json:
        from bcos_fx.evaluation.report import as_data

        echo_json(as_data(evaluation))
    else:
        _print_results(evaluation, files)
    if evaluation.outcome.unreadable:
        raise typer.Exit(CHECK_FAILED)


# ---------------------------------------------------------------- what is asked


def _plan(request: EvaluationRequest) -> Plan:
    from bcos_fx.evaluation.registry import named_baselines, named_metrics
    from bcos_fx.evaluation.session import Plan

    return Plan(
        metrics=named_metrics(request.metric),
        protocols=tuple(_protocol(request, side) for side in dict.fromkeys(map(_side, request.grid or ["3x3"]))),
        baselines=named_baselines(request.baselines),
        confidence=request.confidence or ("sigmoid" if request.protocol == "published" else "softmax"),
        batch_size=request.batch_size,
    )


def _side(text: str) -> int:
    rows, cross, columns = text.partition("x")
    if not rows.isdecimal() or (cross and columns != rows) or int(rows) < 1:
        raise UsageError(f"--grid is {text!r}", hint="give a square, such as --grid 3x3")
    return int(rows)


def _protocol(request: EvaluationRequest, side: int) -> Protocol:
    from bcos_fx.evaluation.localisation import PROTOCOLS
    from bcos_fx.evaluation.selection import fair, published

    check_choice("protocol", request.protocol, PROTOCOLS)
    given = {name: getattr(request, name) for name in _PUBLISHED_ONLY if getattr(request, name) is not None}
    if request.protocol == "fair":
        return fair(side=side, grids=request.grids, rescaled=request.rescale, windows=request.windows, **given)
    if given or request.rescale:
        options = [_PUBLISHED_ONLY[name] for name in given] + ["--rescale"] * request.rescale
        raise UsageError(
            f"{' and '.join(options)} given, and the published protocol leaves no such choice",
            hint="leave it out, or choose --protocol fair",
        )
    return published(side=side, grids=request.grids, windows=request.windows)


# ---------------------------------------------------------------- the work


def _measured(request: EvaluationRequest, plan: Plan, group: ProcessGroup) -> tuple[Evaluation, list[Path]]:
    import functools

    from bcos_fx.cli.image_text import classifier
    from bcos_fx.cli.progress import counted
    from bcos_fx.data.classes import read_classes
    from bcos_fx.data.stores import open_source
    from bcos_fx.evaluation.report import check_extras, write_report
    from bcos_fx.evaluation.runner import Runner
    from bcos_fx.evaluation.session import run_evaluation
    from bcos_fx.evaluation.tasks import task_of

    check_extras(plan.metrics)
    names = None if request.classes is None else read_classes(request.classes)
    network, original = _networks(request)
    data = request.data if names is None else open_source(request.data, classes=names)
    task = task_of(classifier(network, request, plan, names), data, original=original)
    if request.out.exists() and not request.out.is_dir():
        raise UsageError(f"{request.out} is a file", hint="name a folder with --out")
    quiet = request.json or not group.is_main
    runner = Runner(
        group,
        request.out,
        track=functools.partial(counted, quiet=quiet),
        log=lambda text: echo(f"note: {text}", err=True),
    )
    with runner.alone():
        _make_folder(request, group)
        evaluation = run_evaluation(task, plan, runner)
        return evaluation, write_report(evaluation, request.out) if group.is_main else []


def _networks(request: EvaluationRequest) -> tuple[BcosNetwork, NormalizedModel | None]:
    from bcos_fx.cli.check import read_artifact
    from bcos_fx.cli.network import device_of, read_original
    from bcos_fx.network import BcosNetwork
    from bcos_fx.verification.original import NormalizedModel

    device = device_of(request.device)
    network = read_artifact(request.model).eval()
    if request.original is None:
        return network.to(device), None
    arch, plus, file = request.original.partition("+")
    # ARCH, ARCH+FILE or a converted FILE; a file of that very name is meant before an architecture is.
    alone = not plus and Path(arch).is_file()
    model, named = (Path(arch), None) if alone else (Path(file) if plus else None, arch)
    original = read_original(model, arch=named)
    # A converted original normalizes inside; any other one is put behind the normalization that MODEL records.
    specs = None if isinstance(original, BcosNetwork) else network.record.inputs
    return network.to(device), NormalizedModel(original, specs).to(device)


def _make_folder(request: EvaluationRequest, group: ProcessGroup) -> None:
    """Make the folder; with --force remove what an evaluation wrote there, and nothing else."""
    from bcos_fx.evaluation.result_log import is_result_log

    request.out.mkdir(parents=True, exist_ok=True)
    if request.force and group.is_main:
        for path in filter(is_result_log, request.out.glob("*.jsonl")):
            path.unlink()
    group.gathered({})  # the others wait until that is done


# ---------------------------------------------------------------- output


def _print_results(evaluation: Evaluation, files: list[Path]) -> None:
    from bcos_fx.evaluation.report import summary

    head, *rows = summary(evaluation)
    table = Table(box=None, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < 2 else "right")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    _print_notes(evaluation)
    echo(f"Wrote {', '.join(map(str, files))}.")


def _print_notes(evaluation: Evaluation) -> None:
    notes = {note: None for results in evaluation.localisations for result in results for note in result.notes}
    for note in notes:
        echo(f"note: {note}", err=True)
    for name, why in evaluation.refused.items():
        echo(f"note: {name} is left out: {why}", err=True)
    if unreadable := evaluation.outcome.unreadable:
        echo(f"{amount(len(unreadable), 'image')} could not be read:", err=True)
        for name, why in list(unreadable.items())[:_LISTED]:
            echo(f"  {name}: {why}", err=True)
        if len(unreadable) > _LISTED:
            echo(f"  and {len(unreadable) - _LISTED} more, all in results.json", err=True)
