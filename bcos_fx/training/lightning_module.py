"""One step of training, for Lightning's loop: loss, schedules, clipping, averaging."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MeanMetric

from bcos_fx.errors import TrainingError, UsageError
from bcos_fx.heads.layers import last_layer
from bcos_fx.network import BcosNetwork
from bcos_fx.seeding import derived, seed_all
from bcos_fx.tracing.modules import own_copy
from bcos_fx.training.alignment import Alignment
from bcos_fx.training.calibrating import Calibrations
from bcos_fx.training.fading import Fading
from bcos_fx.training.finite import culprit
from bcos_fx.training.losses import total_loss
from bcos_fx.training.matching import LayerMatching
from bcos_fx.training.mixing import mixer
from bcos_fx.training.optimization import clip_adaptively_, make_optimizer, parameter_groups, rate
from bcos_fx.training.recipe import Training
from bcos_fx.training.statistics import MomentumFloor
from bcos_fx.validation import check_same_classes


class FineTuning(LightningModule):
    """A network, its schedules and its loss.

    Args:
        network: what is trained, in place.
        training: how.
        batches: returns the number of batches in an epoch, once all processes are there.
        reference: the original, for losses that distil and for agreement where there are no labels: an ordinary module
            that takes what the original takes, or a converted network that takes what ``network`` takes.
        calibration: what is done where the recipe calibrates, before the first step and after later ones, and the
            batches to do it on.

    Attributes:
        network: it.
        average: the moving average of it, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        training: Training,
        batches: Callable[[], int],
        reference: nn.Module | None = None,
        calibration: Calibrations | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.average = _averaged(network, training.average) if training.average else None
        self._options, self._batches, self._calibration = training, batches, calibration
        converted = [n for n in self._networks() if isinstance(n, BcosNetwork)]
        self.alignment = Alignment(converted, training.rises, tensors=training.compiled) if converted else None
        self._fading = Fading(converted, training.fades) if converted else None
        self._statistics = MomentumFloor(network)
        # A copy, for the caller's may be trained itself; outside the module tree: neither trained nor saved with it.
        self.__dict__["_reference"] = None if reference is None else own_copy(reference).requires_grad_(False)
        self.__dict__["_run"] = torch.compile(network) if training.compiled else network
        self._matching: LayerMatching | None = None
        self._loss, self._hits, self._test_hits = MeanMetric(), MeanMetric(), MeanMetric()
        for metric in (self._loss, self._hits):
            metric.persistent(True)  # a run that resumes within an epoch has its mean over all of it
        self.tested: tuple[float | None, float | None] = (None, None)  # accuracy; cosine of embeddings

    def _networks(self) -> list[nn.Module]:
        return [self.network] if self.average is None else [self.network, self.average.module]

    @property
    def result(self) -> nn.Module:
        """The network that is tested and returned: the averaged one, if weights are averaged."""
        return self._networks()[-1]

    # ------------------------------------------------------------ schedules

    @property
    def _steps_per_epoch(self) -> int:
        return math.ceil(self._batches() / self._options.optimizer.accumulate)

    @property
    def _steps(self) -> int:
        return self._steps_per_epoch * self._options.epochs

    def on_fit_start(self) -> None:
        """Begin the schedules, or take them up where a checkpoint left them."""
        if "distil-layers" in self._options.losses:
            self._matching = self._layer_matching()
        if self.alignment is None or self._fading is None:
            return
        # A checkpoint holds weights that were faded and calibrated; doing it again would count twice.
        if self.trainer.ckpt_path is None:
            self._fading.begin()
            self.alignment.set(0.0)
            if self._options.calibrate != "never":
                self._calibrate(0.0)

    def on_train_start(self) -> None:
        """Set B and momenta from the step and the data, which are known by now; checkpoints do not hold them."""
        self._statistics.begin(self._batches())
        if self.alignment is not None:
            self.alignment.set(self.trainer.global_step / self._steps)

    def on_train_end(self) -> None:
        """Leave norms as they came."""
        self._statistics.settle()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move B, constants and average by as much."""
        super().optimizer_step(*args, **kwargs)
        step, lr = self.trainer.global_step, float(self.trainer.optimizers[0].param_groups[0]["lr"])
        # global_step is still that of the step that is being taken.
        before, after = step / self._steps, (step + 1) / self._steps
        if self._fading is not None:
            self._fading.after_step(before, after, lr)
        if self.alignment is not None:
            self.alignment.after_step(lr)
            self.alignment.set(after)
            if self._options.calibrate == "steps" and self._has_risen(step + 1):
                self._calibrate(after)
        if self.average is not None:
            self.average.update_parameters(self.network)

    def _has_risen(self, step: int) -> bool:
        """Return whether to calibrate after this step: after each stair of B, or once an epoch on a smooth rise."""
        # On a smooth rise every step would be followed by a calibration, which costs more than the step.
        stairs = all(rise.course.shape in ("steps", "at-once") for rise in self._options.rises)
        every = 1 if stairs else self._steps_per_epoch
        if self.alignment is None or step % every:
            return False
        return self.alignment.scheduled(step / self._steps) != self.alignment.scheduled((step - every) / self._steps)

    def _calibrate(self, done: float) -> None:
        if self._calibration is None or self._fading is None:
            return
        at_first, later, batches = self._calibration
        calibrate = later if done > 0 else at_first
        left = self._fading.left(done)
        for network in self._networks():
            if isinstance(network, BcosNetwork):
                training = network.training
                calibrate(network.eval(), [batch.to(self.device) for batch in batches], left)
                network.train(training)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and the schedule of its rate by step."""
        options = self._options.optimizer
        learned = [] if self.alignment is None else self.alignment.learned()
        head = None if options.lr_of_head == 1 else last_layer(self.network)
        optimizer = make_optimizer(parameter_groups(self.network, learned, options, head), options)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(step, options, self._steps, self._steps_per_epoch)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip adaptively, all parameters."""
        if self._options.optimizer.clip:
            clip_adaptively_(self.network.parameters(), self._options.optimizer.clip)

    # ------------------------------------------------------------ steps

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        """Seed what the step draws by where it stands, for a resumed run to draw the same."""
        seed_all(derived(self._options.seed, "step", self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        """Return the loss of a batch: (images, labels), or images alone."""
        images, labels = self._parts(batch)
        if labels is None and self._options.needs_labels:
            raise UsageError("the batches hold no labels", hint="give (images, labels), or distil from the original")
        if labels is not None and _are_classes(labels):
            classes = self._classes(images)
            if labels.dim() == 1 and not bool(((labels >= 0) & (labels < classes)).all()):
                raise UsageError(
                    f"labels go from {int(labels.min())} to {int(labels.max())}, and the network has {classes} classes",
                    hint="number classes from 0; a folder, tensors or a Dataset with targets can be given a new head",
                )
        elif labels is not None and (self._options.mixup or self._options.cutmix):
            raise UsageError("mixup and cutmix mix class indices, and the labels are numbers", hint="leave both out")
        if labels is not None and (self._options.mixup or self._options.cutmix):
            images, labels = mixer(self._options.mixup, self._options.cutmix, self._classes(images))(images, labels)
        if self._options.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        outputs, loss = self._outputs_and_loss(images, labels)
        # Before the step, which would make all weights NaN: the layer that broke first can still be found.
        if not bool(torch.isfinite(loss)):
            raise _diverged(self, images)
        self._loss.update(loss.detach(), len(images))
        if labels is not None and _are_classes(labels):
            self._hits.update((outputs.detach().argmax(1) == labels).float())
        return loss

    def _outputs_and_loss(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        options, losses = self._options, self._options.losses_at(self.trainer.global_step / self._steps)
        distils = any(name.startswith("distil-") for name in losses)
        reference = self._reference_network() if distils else None
        outputs: Tensor
        original: Tensor | None = None
        layers: Tensor | None = None
        with _Features(self.network, options.features) as ours, _Features(reference, options.features) as theirs:
            if self._matching is not None and "distil-layers" in losses:
                outputs, original, layers = self._matching(images)
            else:
                outputs = self.__dict__["_run"](images)
            # Layer matching has run the original already, but without the hooks that keep features.
            if reference is not None and (original is None or options.features):
                original = self._original_outputs(images)
        features = (ours.value, theirs.value) if options.features and distils else None
        gathered = None
        # The reference takes no gradients, so its values of all processes can be gathered without a backward pass.
        if options.negatives == "all" and distils and self.trainer.world_size > 1:
            gathered = self._of_all_processes(original if features is None else features[1])
        return outputs, total_loss(losses, outputs, labels, original, features, gathered, layers)

    def _layer_matching(self) -> LayerMatching:
        if not isinstance(self.network, BcosNetwork):
            raise UsageError("distil-layers compares a converted network with its original", hint="convert it first")
        compiled, agreed = self._options.compiled, self._mean_of_processes
        return LayerMatching(self.network, self._reference_network(), compiled=compiled, agreed=agreed)

    def _mean_of_processes(self, values: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return values
        everything: Any = self.all_gather(values)
        mean: Tensor = everything.mean(0)
        return mean

    def _of_all_processes(self, values: Tensor | None) -> tuple[Tensor, int]:
        """Gather the reference's values (n, ...) of all processes, and return where this process's own begin."""
        if values is None:
            raise UsageError("there is no original to gather the outputs of", hint="give original=")
        everything: Any = self.all_gather(values.detach())
        return everything.flatten(0, 1), self.global_rank * len(values)

    def _reference_network(self) -> nn.Module:
        reference: nn.Module | None = self.__dict__["_reference"]
        if reference is None:
            raise UsageError(
                "the test images have no labels, and there is no original to compare answers with",
                hint="give labels, or the original with original=",
            )
        return reference.to(self.device)

    @torch.no_grad()
    def _original_outputs(self, images: Tensor) -> Tensor:
        reference = self._reference_network()
        network = self.network
        if isinstance(network, BcosNetwork) and not isinstance(reference, BcosNetwork):
            images = network.original_input(images)
        outputs: Tensor = reference(images)
        return outputs

    def _parts(self, batch: object) -> tuple[Tensor, Tensor | None]:
        """Return the images and labels of a batch; labels of images whose outputs are not classes mean nothing."""
        images, labels = _parts(batch)
        return images, None if self._options.compares_embeddings else labels

    @torch.no_grad()
    def _classes(self, images: Tensor) -> int:
        if not hasattr(self, "_known_classes"):
            training = self.result.training
            self._known_classes = int(self.result.eval()(images[:1]).shape[1])
            self.result.train(training)
        return self._known_classes

    @torch.no_grad()
    def agree(self) -> None:
        """Give all processes the mean of their buffers: each process's batch norms track its own batches."""
        if self.trainer.world_size > 1:
            for network in self._networks():
                for buffer in network.buffers():
                    # Counters, such as a norm's number of batches, are the same in all processes.
                    if buffer.is_floating_point():
                        torch.distributed.all_reduce(buffer)
                        buffer /= self.trainer.world_size

    def on_validation_start(self) -> None:
        """Test the same network in all processes."""
        self.agree()

    def validation_step(self, batch: object, batch_idx: int) -> None:
        """Count correct predictions; without labels, those that equal the original's; of embeddings, the cosine."""
        images, labels = self._parts(batch)
        if self._options.compares_embeddings:
            theirs = self._original_outputs(images)
            self._test_hits.update(torch.nn.functional.cosine_similarity(self.result(images), theirs, dim=1))
            return
        outputs = self.result(images)
        if labels is None:
            theirs = self._original_outputs(images)
            check_same_classes(outputs.shape[1], theirs.shape[1])
            labels = theirs.argmax(1)
        if _are_classes(labels):
            self._test_hits.update((outputs.argmax(1) == labels).float())
        elif self._options.has_several_labels:
            self._test_hits.update(((outputs > 0) == (labels > 0.5)).float())

    def on_validation_epoch_end(self) -> None:
        """Keep the accuracy (of several labels: the share that is correct), or the cosine; of a regression neither."""
        if not self._test_hits.weight:
            self.tested = (None, None)
            return
        mean = float(self._test_hits.compute())
        self.tested = (None, mean) if self._options.compares_embeddings else (mean, None)
        self._test_hits.reset()

    def epoch_means(self) -> tuple[float, float | None]:
        """Return the epoch's mean loss and share of correct predictions (None without labels), and reset both."""
        loss = float(self._loss.compute())
        hits = float(self._hits.compute()) if self._hits.weight else None
        self._loss.reset()
        self._hits.reset()
        return loss, hits


class _Features:
    """Keeps what a layer puts out; a context."""

    def __init__(self, network: nn.Module | None, path: str) -> None:
        self.value: Any = None
        self._layer = _layer_named(network, path) if network is not None and path else None

    def __enter__(self) -> _Features:
        keep = lambda module, inputs, output: setattr(self, "value", output)  # noqa: E731
        self._handle = None if self._layer is None else self._layer.register_forward_hook(keep)
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            self._handle.remove()


def _layer_named(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        raise UsageError(f"no layer is named {path!r}", hint="features names a layer of both networks") from error


def _averaged(network: nn.Module, decay: float) -> AveragedModel:
    def update(averages: Any, values: Any, count: Any) -> None:
        # A converted network begins at chance: a constant decay would keep those first weights for long.
        step = float(count)
        rule: Any = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))  # type: ignore[no-untyped-call]
        rule(averages, values, count)

    average = AveragedModel(network, multi_avg_fn=update, use_buffers=True)
    average.requires_grad_(False)
    return average


def _parts(batch: object) -> tuple[Tensor, Tensor | None]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping) or not isinstance(batch, Sequence) or not isinstance(batch[0], Tensor):
        raise UsageError(f"a batch is a {type(batch).__name__}", hint="give (images, labels), or images alone")
    return batch[0], batch[1] if len(batch) > 1 else None


def _are_classes(labels: Tensor) -> bool:
    """Return whether labels are one class index per sample, and not several labels or numbers to be met."""
    return labels.dim() == 1 and not labels.is_floating_point()


def _diverged(module: FineTuning, images: Tensor) -> TrainingError:
    where = culprit(module.network, images)
    step = module.trainer.global_step
    return TrainingError(
        f"the loss is not finite any more, at step {step} (epoch {step // module._steps_per_epoch})",
        where=where,
        hint="a lower learning rate, adaptive clipping (clip = 0.01), or bf16 in place of fp16",
    )
