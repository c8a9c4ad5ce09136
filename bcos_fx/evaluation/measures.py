"""evaluate(): how well a network's explanations explain, in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from bcos_fx.errors import UsageError
from bcos_fx.evaluation.registry import named_baselines, named_metrics
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import Protocol, fair
from bcos_fx.evaluation.session import Evaluation, Plan, run_evaluation
from bcos_fx.evaluation.tasks import task_of
from bcos_fx.network import BcosNetwork
from bcos_fx.verification.original import NormalizedModel


def evaluate(
    model: nn.Module,
    data: object,
    *,
    metrics: str | Sequence[str] = "all",
    protocols: Sequence[Protocol] | None = None,
    original: nn.Module | None = None,
    baselines: str | Sequence[str] = (),
    shape: tuple[int, int, int] | None = None,
    batch_size: int = 32,
    folder: str | Path | None = None,
    log: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure how well the explanations of a network explain, and how often it is right.

    Args:
        model: a converted network, or another dynamic linear classifier of images in [0, 1], in eval mode; not changed.
        data: labeled images: a path (see :func:`bcos_fx.evaluation.open_source`), Dataset or DataLoader.
        metrics: names out of ``accuracy``, ``gridpg``, ``deletion`` and ``insertion``, or ``all`` of them.
        protocols: how the Grid Pointing Game is played, once for each; None: :func:`bcos_fx.evaluation.fair`, 3x3.
        original: the network that ``model`` was converted from, or a conversion of it by the recipe equivalent, with
            the same classes in the same order; agreement with it is measured too.
        baselines: names of post-hoc methods on ``original`` to compare with, or ``all``; they need ``original``.
        shape: (C, H, W) that files are brought to; None: the converted network's own.
        batch_size: images at once in the pass over all of them, >= 1.
        folder: where results are written as they come, so that an interrupted run resumes; None: nowhere.
        log: called with each note for the user, as text.

    Returns:
        The evaluation: ``accuracy``, ``localisations`` (for each protocol one per method), ``curves``.

    Raises:
        UsageError: a name is unknown, network and data do not fit, or the folder holds results of something else.
    """
    plan = Plan(
        metrics=named_metrics(metrics or "all"),
        protocols=(fair(),) if protocols is None else tuple(protocols),
        baselines=named_baselines(baselines or None),
        batch_size=batch_size,
    )
    if "linear-probe" in plan.metrics:
        raise UsageError(
            "a linear probe is trained, on images of its own", hint="call bcos_fx.evaluation.linear_probe for it"
        )
    given = original
    if original is not None and isinstance(model, BcosNetwork):
        # A converted original normalizes inside; any other one is given what the network records.
        specs = None if isinstance(original, BcosNetwork) else model.record.inputs
        given = NormalizedModel(original.eval(), specs)
    task = task_of(model, data, original=given, shape=shape)
    runner = Runner(folder=None if folder is None else Path(folder), log=log or (lambda text: None))
    if runner.folder is not None:
        runner.folder.mkdir(parents=True, exist_ok=True)
    return run_evaluation(task, plan, runner)
