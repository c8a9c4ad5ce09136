"""What a run leaves behind after every epoch: a line of history, a gallery of explanations, a checkpoint."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bcos_fx.errors import TrainingError, UsageError
from bcos_fx.escaping import amount
from bcos_fx.explanation import Explanation
from bcos_fx.explanation.explain import explain
from bcos_fx.files import replacing
from bcos_fx.network import BcosNetwork, TrainingRun
from bcos_fx.nn import LogitLayer
from bcos_fx.training.checkpoints import KEY, NAME, noted
from bcos_fx.training.data import Replayable
from bcos_fx.training.finite import broken_tensor
from bcos_fx.training.lightning_module import FineTuning
from bcos_fx.training.recipe import Training
from bcos_fx.training.settings import RunSettings


@dataclass(frozen=True)
class Epoch:
    """What is known at the end of an epoch; epoch 0 is the network as it came.

    Attributes:
        epoch: how many are done.
        images: how many images were trained on so far, all processes together.
        seconds: time spent so far, tests and galleries included.
        loss: mean over the epoch; None at epoch 0.
        train_accuracy: in [0, 1], during the epoch, on augmented images; None without labels or with mixed ones.
        accuracy: in [0, 1], on the test images, of the average where there is one; without labels the agreement with
            the original; None without test images, and of embeddings.
        b: mean B over the B-cos layers.
        bias_share: mean share in [0, 1] of constants in the absolute sums of the explained outputs, the logit layer's
            bias left out, which is the same for every class; None where nothing is explained.
        residual: largest relative gap, as :class:`bcos_fx.explanation.completeness.Sums` defines it.
        cosine: of embeddings, the mean cosine on the test images to the original's.
        measures: name -> value of measures that were asked for, where they were taken.
    """

    epoch: int
    images: int
    seconds: float
    loss: float | None
    train_accuracy: float | None
    accuracy: float | None
    b: float
    bias_share: float | None
    residual: float | None
    cosine: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"epoch {self.epoch}"]
        parts += [] if self.loss is None else [f"loss {self.loss:.4f}"]
        parts += [] if self.accuracy is None else [f"accuracy {self.accuracy:.2%}"]
        parts += [] if self.cosine is None else [f"cosine {self.cosine:.4f}"]
        parts.append(f"B {self.b:.3g}")
        parts += [] if self.bias_share is None else [f"bias share {self.bias_share:.1%}"]
        parts += [f"{name} {value:.4g}" for name, value in self.measures.items()]
        return ", ".join([*parts, f"{self.seconds:.0f} s"])


class HistoryRecorder(Callback):
    """Writes history, gallery and checkpoint.

    Args:
        loader: of the training batches: where it stands is kept with history and counts. Lightning would keep that too,
            but does not take it up again after an epoch's end without tests.
        settings: where to write (None keeps the history only), what to explain and to measure, when to save, and what
            to call with each epoch and, after the first steps, with how long the training will take.
        identity: what the checkpoints are of.
        names: class names for the gallery.
    """

    def __init__(
        self, loader: Replayable, settings: RunSettings, *, identity: Mapping[str, Any], names: tuple[str, ...]
    ) -> None:
        self._loader, self._settings, self._identity, self._names = loader, settings, identity, names
        self._folder, self._timed = settings.path, _Timer()
        self.history: list[Epoch] = []
        self._images, self._before, self._since = 0, 0.0, time.monotonic()

    # Lightning keeps these with its checkpoints.
    def state_dict(self) -> dict[str, Any]:
        """Return history and counts as plain data."""
        rows = [dataclasses.asdict(row) for row in self.history]
        return {
            "history": rows,
            "images": self._images,
            "seconds": self._seconds(),
            "loader": self._loader.place(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up history and counts."""
        self.history = [Epoch(**row) for row in state_dict["history"]]
        self._images, self._before = state_dict["images"], state_dict["seconds"]
        self._loader.go_to(state_dict["loader"])

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note what the checkpoint is of, and what belongs to it; Lightning has put all of that in by now."""
        checkpoint[KEY] = noted(checkpoint, self._identity)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._since

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the history of a checkpoint that was taken up: what the file holds by now is not trusted."""
        if self.history and self._folder is not None and trainer.is_global_zero:
            write_history(self.history, self._folder / "history.csv")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the network as it came, unless the run resumes from a checkpoint."""
        if not self.history and trainer.global_step == 0:
            self._record(trainer, pl_module, None, None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; save where that is due."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        self._images += len(images) * trainer.world_size
        # Lightning's estimate counts optimizer steps, as global_step does.
        left = self._timed.step(trainer.estimated_stepping_batches - trainer.global_step)
        if left is not None and trainer.is_global_zero:
            self._settings.log(f"about {duration(left)} to go, tests and galleries apart")
        # Not after an epoch's last batch: the epoch's end saves, with its test.
        within = batch_idx + 1 < trainer.num_training_batches
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        every = self._settings.checkpoint_steps
        if within and stepped and every and trainer.global_step % every == 0:
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch, then save."""
        if isinstance(pl_module, FineTuning):
            pl_module.agree()
            self._record(trainer, pl_module, *pl_module.epoch_means())
        self._save(trainer, pl_module)

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        broken = broken_tensor(pl_module)
        if broken is not None:
            raise TrainingError(
                f"{broken.removeprefix('network.')} is not finite any more, at step {trainer.global_step}",
                hint="a lower learning rate, adaptive clipping (clip = 0.01), or bf16 in place of fp16",
            )
        if self._folder is not None:
            trainer.save_checkpoint(self._folder / NAME)

    def _record(self, trainer: Trainer, pl_module: LightningModule, loss: float | None, hits: float | None) -> None:
        if not isinstance(pl_module, FineTuning):
            return
        number = self.history[-1].epoch + 1 if self.history else 0
        network = pl_module.result
        # Explanations and measures are of the network in eval mode, without dropout and with fixed statistics.
        training = network.training
        network.eval()
        try:
            share, residual = self._explain(network, number, trainer.is_global_zero)
            due = number == trainer.max_epochs or self._is_measured(number)
            measured = (
                {name: float(measure(network)) for name, measure in self._settings.measures.items()} if due else {}
            )
        finally:
            network.train(training)
        b = 1.0 if pl_module.alignment is None else pl_module.alignment.mean()
        accuracy, cosine = pl_module.tested
        tested = {"train_accuracy": hits, "accuracy": accuracy, "cosine": cosine}
        explained = {"bias_share": share, "residual": residual}
        row = Epoch(number, self._images, self._seconds(), loss, **tested, b=b, **explained, measures=measured)
        self.history.append(row)
        self._publish(trainer, row)

    def _is_measured(self, number: int) -> bool:
        every = self._settings.measure_every
        return number in every if isinstance(every, Collection) else bool(every) and number % every == 0

    def _explain(self, network: nn.Module, number: int, writes: bool) -> tuple[float | None, float | None]:
        """Explain the fixed images; return the share of constants and the largest relative gap."""
        images = self._settings.gallery
        if images is None or not isinstance(network, BcosNetwork):
            return None, None
        # Lightning tests without gradients, which W(x) is made of.
        with torch.enable_grad():
            explanation = explain(
                network,
                images.to(next(network.parameters())),
                names=self._names or None,
                allow_incomplete=True,
            )
        if writes and self._folder is not None:
            path = self._folder / "gallery" / f"epoch_{number:04d}.html"
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                explanation.save(path)
            except UsageError as error:
                hint = "make room, and go on with resume"
                raise TrainingError(error.what, where=error.where, hint=hint) from error
        logits = [path for path, m in network.named_modules() if isinstance(m, LogitLayer)]
        return shares(explanation, without=tuple(f"{path}.bias" for path in logits))

    def _publish(self, trainer: Trainer, row: Epoch) -> None:
        if not trainer.is_global_zero:
            return
        values = {name: v for name, v in dataclasses.asdict(row).items() if isinstance(v, int | float)}
        for logger in trainer.loggers:
            logger.log_metrics({**values, **row.measures}, trainer.global_step)
            logger.save()
        if self._folder is not None:
            write_history(self.history, self._folder / "history.csv")
        self._settings.on_epoch(row)


class _Timer:
    """Estimates once how long the remaining steps take, from the steps after the first, which compiles and caches."""

    _MEASURED = 5

    def __init__(self) -> None:
        self._steps, self._since = 0, 0.0

    def step(self, left: float) -> float | None:
        """Count a step that so many follow (inf: unknown); once, return the seconds that those will take."""
        self._steps += 1
        if self._steps == 1:
            self._since = time.monotonic()
        if self._steps != 1 + self._MEASURED or math.isinf(left):
            return None
        return (time.monotonic() - self._since) / self._MEASURED * left


def duration(seconds: float) -> str:
    """Return a length of time in the unit that suits it: ``40 seconds``, ``12 minutes``, ``3.5 hours``."""
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{1 if seconds < 10 * size and unit == 'hour' else 0}f} {unit}s"
    return amount(max(1, round(seconds)), "second")


def shares(explanation: Explanation, without: tuple[str, ...] = ()) -> tuple[float, float]:
    """Return the mean share of constants in an explanation's absolute sums, and its largest relative gap."""
    sums = explanation.sums
    counted = replace(sums, constants={name: part for name, part in sums.constants.items() if name not in without})
    return float(counted.share_of_constants.mean()), float(sums.relative_gap.max())


def write_history(history: list[Epoch], path: Path) -> None:
    """Write one line per epoch, as CSV; whole or not at all.

    Raises:
        TrainingError: it cannot be written.
    """
    measures = list(dict.fromkeys(name for row in history for name in row.measures))
    columns = [f.name for f in dataclasses.fields(Epoch) if f.name != "measures"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *measures])
    for row in history:
        values = [getattr(row, name) for name in columns]
        writer.writerow(["" if v is None else v for v in [*values, *(row.measures.get(name) for name in measures)]])
    with replacing(path, "the history", error=TrainingError, hint="make room, and go on with resume") as stream:
        stream.write(text.getvalue().encode("utf-8", "backslashreplace"))


def run_of(
    training: Training,
    recipe: str,
    history: Sequence[Epoch],
    *,
    data: object,
    images: int | None,
    validation: object,
) -> TrainingRun:
    """Return what a network keeps of a run."""
    loss = training.loss if isinstance(training.loss, str) else " + ".join(training.loss)
    optimizer = training.optimizer
    return TrainingRun(
        data=_data_name(data),
        images=images,
        recipe=recipe,
        epochs=training.epochs,
        options={
            "loss": loss,
            "optimizer": optimizer.name,
            "lr": float(optimizer.lr),
            "batch_size": training.batch_size,
            "seed": training.seed,
            "augment": training.augment,
        },
        tested_on="" if validation is None else _data_name(validation),
        before=history[0].accuracy if history else None,
        accuracy=history[-1].accuracy if history else None,
    )


def _data_name(data: object) -> str:
    """Return the name of a folder or file, without where it is; of other data their type."""
    if isinstance(data, str | os.PathLike):
        return Path(os.path.abspath(data)).name
    return f"a {type(data).__name__}"
