"""One run of Lightning's Trainer: its options, and what becomes of each way to end."""

from __future__ import annotations

import inspect
import logging
import re
import signal
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn

from bcos_fx.errors import TrainingError, UsageError, check_choice
from bcos_fx.training.calibrating import Calibrations
from bcos_fx.training.checkpoints import NAME, WholeCheckpoints, check_identity, read_checkpoint
from bcos_fx.training.data import Replayable
from bcos_fx.training.lightning_module import FineTuning
from bcos_fx.training.recipe import Training
from bcos_fx.training.recording import Epoch, HistoryRecorder
from bcos_fx.training.settings import RunSettings

_PRECISION = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass
class Fitting:
    """A network, its recipe and the place of its files.

    Attributes:
        network: trained in place.
        training: how.
        original, calibration: see :class:`FineTuning`.
        settings: where it writes, when it saves and where it computes; of the gallery, what is explained.
        identity: what its checkpoints are of, and what one must be of for the run to go on from it.
        classes: names.
    """

    network: nn.Module
    training: Training
    original: nn.Module | None
    calibration: Calibrations | None
    settings: RunSettings
    identity: Mapping[str, Any]
    classes: tuple[str, ...]

    @property
    def folder(self) -> Path | None:
        """Of the files, or None."""
        return self.settings.path

    def fit(self, train: Replayable, test: Iterable[object] | None) -> tuple[list[Epoch], Path | None]:
        """Train; return the history and the checkpoint's path. See :func:`bcos_fx.training.finetune.finetune`."""
        settings = self.settings
        checkpoint = self._checkpoint()
        self.module = FineTuning(self.network, self.training, lambda: len(train), self.original, self.calibration)
        if self.training.channels_last:
            self.network.to(memory_format=torch.channels_last)
        recorder = HistoryRecorder(train, settings, identity=self.identity, names=self.classes)
        bar = [RichProgressBar(console_kwargs={"stderr": True})] if settings.progress else []
        with self._quiet():
            trainer = self._trainer(
                accelerator=settings.accelerator,
                devices=settings.devices,
                num_nodes=settings.nodes,
                strategy=self._processes() if settings.processes > 1 else "auto",
                max_epochs=self.training.epochs,
                precision=_PRECISION[self.training.precision],
                accumulate_grad_batches=self.training.optimizer.accumulate,
                callbacks=[recorder, *bar],
                plugins=[WholeCheckpoints()],
                logger=[self._logger(name) for name in settings.loggers],
                default_root_dir=settings.path,
                enable_progress_bar=settings.progress,
                enable_checkpointing=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                num_sanity_val_steps=-1 if test is not None else 0,
                inference_mode=False,  # explanations and calibration follow tests, and need ordinary tensors
            )
            self._run(trainer, train, test, checkpoint)
        if self.module.alignment is not None:  # not set yet where a finished run was taken up
            self.module.alignment.set(1.0)
        return recorder.history, None if self.folder is None else self.folder / NAME

    def _processes(self) -> DDPStrategy:
        """DDP. Its own broadcast of buffers, at every call, waits for ever where a process has no test images left."""
        last_learns_nothing = set(self.training.losses) == {"distil-layers"}
        return DDPStrategy(broadcast_buffers=False, find_unused_parameters=last_learns_nothing)

    def _trainer(self, **options: Any) -> Trainer:
        try:
            return Trainer(**options)
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise UsageError(
                f"Lightning cannot train like that: {str(error).partition(chr(10))[0]}",
                hint="another accelerator, number of devices or precision (fp16 needs a GPU)",
            ) from error

    def _checkpoint(self) -> Path | None:
        """Return the checkpoint to go on from, which fits; check that no other one would be overwritten."""
        if self.folder is None:
            if self.settings.resume:
                raise UsageError("there is nothing to go on from without a folder", hint="name the run's folder")
            return None
        last = self.folder / NAME
        if self.settings.resume and last.is_file():
            check_identity(read_checkpoint(last), self.identity, last)
            return last
        if last.is_file():
            raise UsageError(
                f"there is a run in {self.folder} already",
                hint="go on with resume=True, or use another folder",
            )
        return None

    def _logger(self, name: str) -> Logger:
        if self.folder is None:
            raise UsageError("loggers need a folder", hint="name the run's folder")
        kind: Any = getattr(lightning_loggers, _loggers()[name])
        try:
            logger: Logger = kind(save_dir=str(self.folder / "logs"))
        except ModuleNotFoundError as error:
            named = re.search(r"'([^']+)'", str(error))  # Lightning names the requirement, with its version
            library = error.name or (named[1] if named else name)
            raise UsageError(
                f"the logger {name!r} needs the library {library}, which is not installed",
                hint=f'pip install "{library}"',
            ) from error
        return logger

    def _run(self, trainer: Trainer, train: object, test: object, checkpoint: Path | None) -> None:
        # Lightning puts its own handler in place, and does not put the caller's back after an error.
        handler = signal.getsignal(signal.SIGINT)
        try:
            trainer.fit(self.module, train, test, ckpt_path=checkpoint)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise self._interrupted() from None
        except TrainingError as error:
            raise TrainingError(error.what, where=error.where, hint=self._hint_with_checkpoint(error.hint)) from error
        except OSError as error:
            raise TrainingError(
                f"a file of the run cannot be written: {error.strerror or error}",
                where=None if error.filename is None else str(error.filename),
                hint=self._hint_with_checkpoint("make room"),
            ) from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)

    def _hint_with_checkpoint(self, hint: str | None) -> str:
        if self.folder is None or not (self.folder / NAME).is_file():
            return f"{hint or 'begin again'}; no checkpoint was made yet"
        return f"{hint or 'go on with resume'}; the last good checkpoint is {self.folder / NAME}"

    def _interrupted(self) -> KeyboardInterrupt:
        interrupt = KeyboardInterrupt()
        if self.folder is not None and (self.folder / NAME).is_file():
            interrupt.add_note(f"the last checkpoint is {self.folder / NAME}; go on with resume=True")
        return interrupt

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Suppress Lightning's advice: what matters is raised as an error here."""
        chatter = logging.getLogger("lightning.pytorch")
        level = chatter.level
        chatter.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PossibleUserWarning)
                warnings.filterwarnings("ignore", r"The ``compute`` method of metric", UserWarning)
                warnings.filterwarnings("ignore", r"`broadcast_buffers` is deprecated", FutureWarning)
                warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
                yield
        finally:
            chatter.setLevel(level)


def check_choices(settings: RunSettings) -> None:
    """Raise UsageError where Lightning has no such logger or accelerator."""
    for name in settings.loggers:
        check_choice("loggers", name, _loggers())
    if isinstance(settings.accelerator, str):
        accelerators = AcceleratorRegistry.available_accelerators()
        check_choice("accelerator", settings.accelerator, ["auto", "gpu", *accelerators])


def _loggers() -> dict[str, str]:
    """Short name -> class of the loggers that write to a folder."""
    return {n.removesuffix("Logger").lower(): n for n in lightning_loggers.__all__ if _writes_to_a_folder(n)}


def _writes_to_a_folder(logger: str) -> bool:
    return "save_dir" in inspect.signature(getattr(lightning_loggers, logger)).parameters
