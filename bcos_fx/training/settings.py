"""How a run of training goes, apart from what is learned: where it writes, when it saves, where it computes."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from torch import Tensor, nn

from bcos_fx.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")
ValidationMetric = Callable[[nn.Module], float]


def _silent(message: object) -> None:
    pass


@dataclass(frozen=True)
class RunSettings:
    """Settings of one run of :func:`bcos_fx.finetune`; another choice of them does not change what is learned.

    Attributes:
        folder: for checkpoint, history, gallery and logs; None writes nothing. With several epochs, name one.
        resume: continue from the checkpoint in ``folder``, if there is one; the result is the same to the last bit as
            that of a run that was never stopped, on the same machine. A checkpoint that was altered, or that is of
            other weights, data, recipe or settings, is refused.
        checkpoint_steps: save every this many steps too, not only after epochs; 0 for never.
        loggers: names of Lightning's loggers, such as ``csv``, ``tensorboard``, ``wandb``.
        gallery: (K, C, H, W) images to explain after every epoch; None takes the first few test images.
        measures: name -> what is measured of the network (a GridPG, say), in eval mode.
        measure_every: measure every this many epochs, or after the epochs listed; always after the last.
        workers: processes that read images.
        accelerator: ``auto``, ``cpu``, ``gpu``, ..., as Lightning's Trainer takes it.
        devices: processes per machine; with several, Lightning's DDP trains, and batches are per process.
        nodes: machines.
        progress: show a bar on stderr.
        on_epoch: called with each :class:`~bcos_fx.training.recording.Epoch`.
        log: called with one line of text at a time: what is trained on and for how long, what the data make doubtful,
            and after the first steps how much time is left.
    """

    folder: str | Path | None = None
    resume: bool = False
    checkpoint_steps: int = 0
    loggers: Sequence[str] = ()
    gallery: Tensor | None = None
    measures: Mapping[str, ValidationMetric] = field(default_factory=dict)
    measure_every: int | Collection[int] = 1
    workers: int = 0
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    progress: bool = False
    on_epoch: Callable[[Any], None] = _silent
    log: Callable[[str], None] = _silent

    @property
    def path(self) -> Path | None:
        """The folder."""
        return None if self.folder is None else Path(self.folder)

    @property
    def processes(self) -> int:
        """How many train, on all machines."""
        return self.devices * self.nodes


def settings_of(run: RunSettings | str | Path | None) -> RunSettings:
    """Return the settings; a path becomes settings with that folder."""
    return run if isinstance(run, RunSettings) else RunSettings(folder=run)


_FORMER = {"told": "on_epoch", "notice": "log"}


def with_former_keywords(function: Callable[P, T]) -> Callable[P, T]:
    """Let ``finetune`` take its keywords of the previous release too, with a DeprecationWarning."""
    fields = {f.name for f in dataclasses.fields(RunSettings)}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        given: dict[str, Any] = dict(kwargs)
        changed: dict[str, str] = {}
        if "reference" in given:
            given["original"] = given.pop("reference")
            changed["reference="] = "original="
        if "new_head" in given:
            if given.pop("new_head") and given.get("head", "keep") == "keep":
                given["head"] = "new"
            changed["new_head="] = 'head="new"'
        former = {name: given.pop(name) for name in list(given) if _FORMER.get(name, name) in fields}
        if former:
            if "run" in given:
                raise UsageError(f"{next(iter(former))}= is part of run=", hint="RunSettings(...) takes it")
            names = {_FORMER.get(name, name): value for name, value in former.items() if value is not None}
            given["run"] = RunSettings(**names)
            changed |= {f"{name}=": f"run=RunSettings({_FORMER.get(name, name)}=...)" for name in former}
        for old, new in changed.items():
            warnings.warn(f"{old} is now {new}", DeprecationWarning, stacklevel=2)
        return function(*args, **given)

    return call
