"""finetune(): from a converted network to one that was trained as a B-cos network."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bcos_fx.data.batches import note_enlarged
from bcos_fx.data.datasets import DatasetSource, StreamSource, source_of
from bcos_fx.data.preprocessing import Preprocessing, is_photograph
from bcos_fx.data.sources import ImageSource
from bcos_fx.display import Displayed
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.lazy import check_installed
from bcos_fx.locking import holding
from bcos_fx.network import BcosNetwork
from bcos_fx.seeding import preserved
from bcos_fx.training.calibrating import CalibrationFunction, Calibrations, usual_calibration
from bcos_fx.training.data import Replayable, Samples, images_of, testing_loader, training_loader
from bcos_fx.training.heads import Head, Renumbered
from bcos_fx.training.identity import identity, identity_of, name_of, of_images
from bcos_fx.training.recipe import Training, load_training
from bcos_fx.training.reinitialization import reinitialized
from bcos_fx.training.schedulable_layers import layers_of_phase, synthetic_batch, without_zero_constants
from bcos_fx.training.settings import RunSettings, settings_of, with_former_keywords
from bcos_fx.training.sizing import sized
from bcos_fx.validation import check_module

if TYPE_CHECKING:
    from bcos_fx.training.recording import Epoch

_SHOWN, _CALIBRATED = 6, 1024


@dataclass(frozen=True, repr=False)
class FineTuned(Displayed):
    """What :func:`finetune` returns.

    Attributes:
        network: the trained network, in eval mode; what faded to 0 is out of its graph.
        history: one :class:`~bcos_fx.training.recording.Epoch` per epoch, the first of the network as it came.
        checkpoint: the last one, or None where no folder was named.
        classes: their names, where the data has some and the training reads its labels.
    """

    network: nn.Module
    history: tuple[Epoch, ...]
    checkpoint: Path | None
    classes: tuple[str, ...]

    def brief(self) -> list[str]:
        """Return the network as it came, and its last epoch."""
        checkpoint = [] if self.checkpoint is None else [f"  checkpoint: {self.checkpoint}"]
        return ["Fine-tuned:", *(f"  {epoch}" for epoch in (self.history[0], self.history[-1])), *checkpoint]


@with_former_keywords
def finetune(
    model: nn.Module,
    data: object,
    *,
    recipe: str | Path | Training | None = None,
    validation: object = None,
    original: nn.Module | None = None,
    calibration: CalibrationFunction | None = None,
    head: str = "keep",
    class_names: Sequence[str] | None = None,
    from_scratch: bool = False,
    run: RunSettings | str | Path | None = None,
    **changes: Any,
) -> FineTuned:
    """Train a converted network, by a recipe, with Lightning.

    Args:
        model: what :func:`bcos_fx.bcosify` returned; it is not changed, and its frozen parameters stay frozen. Any
            other module is trained too, for comparison, if the recipe neither raises B nor fades biases.
        data: whatever :func:`bcos_fx.data.datasets.source_of` takes: a path (a folder with a folder per class, an
            .npz, webdataset shards, ...); (images (N, C, H, W) in [0, 1], labels (N,)), or other samples (N, ...), that
            are not augmented, with class indices (N,), several labels (N, C) for the loss ``bce``, or numbers (N, ...)
            for ``mse`` and ``l1``; a Dataset of (image, label). Also a DataLoader, whose batches are then what is
            trained on. Images alone (a folder of them, a tensor) will do where the recipe only distils.
        recipe: a shipped recipe's name, a TOML file, or the training itself. None: the recipe that the network was
            converted by. Where the images are too few for a recipe's epochs and batches, an epoch has smaller batches
            and there are more of them (:mod:`bcos_fx.training.sizing`), unless ``changes`` names them; a training that
            is given itself is kept as it is.
        validation: test images, in any of these forms.
        original: the original network, for recipes that distil, and for calibration to match; a copy of it is used.
        calibration: called where the recipe calibrates, with the network, to be changed in place, batches of images,
            and path of a layer -> the share of its constant that a fade has left. None:
            :func:`bcos_fx.calibration.calibrate_`, matching the original before the first step alone.
        head: ``keep``; ``new``: exchange the last layer for one with as many classes as the data has; or ``subset``:
            keep the network's own rows for the classes of the data, which are named by index, WordNet id or name, as
            :func:`bcos_fx.heads.classes.find_classes` takes them.
        class_names: for ``subset``, names of the network's classes, in order; None: those that it keeps, or those of
            ImageNet-1k where it has 1,000.
        from_scratch: begin with random weights.
        run: where the run writes, when it saves and where it computes; a path is its folder.
        changes: any field of :class:`~bcos_fx.training.recipe.Training` or of its optimizer, such as ``epochs=5`` or
            ``lr=1e-3``, in place of the recipe's.

    Returns:
        The trained network, and its history. The network keeps how it was trained, and the names of its classes where
        the data has some.

    Raises:
        UsageError: an argument, the data or the checkpoint does not fit, or another run uses the folder.
        TrainingError: the loss is not finite any more, or nothing can be written; the last checkpoint is kept.
        MissingExtraError: Lightning is not installed.
        KeyboardInterrupt: the user stopped it; the last checkpoint is kept.
    """
    check_installed("lightning", "train", "fine-tuning")
    from bcos_fx.training.recording import run_of
    from bcos_fx.training.running import Fitting, check_choices

    check_module(model)
    training = _training(model, recipe, changes)
    settings, selected_head = settings_of(run), Head(head, class_names)
    check_choices(settings)
    if training.distils and original is None:
        raise UsageError(
            "the recipe distils, and there is no original to distil from",
            hint="give original= (the network, or what it is converted to with recipe='equivalent')",
        )

    def run_identity(network: nn.Module, source: ImageSource | None) -> dict[str, Any]:
        return identity(
            network,
            training,
            original=original,
            data={
                "training images": identity_of(data) if source is None else source.identity(),
                "test images": identity_of(validation),
            },
            settings={
                "gallery": of_images(settings.gallery),
                "calibration": None if calibration is None else name_of(calibration),
                "processes": settings.processes,
            },
        )

    # The caller's random state is left as it was, and no second run writes into the folder.
    with preserved(), _alone(settings.path):
        source = selected_head.numbered(None if isinstance(data, DataLoader) else source_of(data))
        if source is not None and not isinstance(recipe, Training):
            training = _sized(training, source, changes, settings.log)
        network = _network(model, source, training, from_scratch=from_scratch, head=selected_head)
        preprocessing = _preprocessing(network, source)
        if source is not None and preprocessing is not None:
            note_enlarged(source, preprocessing)
        train = _training_loader(source, data, preprocessing, training, settings.workers)
        test = _testing_loader(validation, source, preprocessing, training, settings.workers)
        shown = settings.gallery if settings.gallery is not None else _first_images(test)
        fitting = Fitting(
            network=network,
            training=training,
            original=original,
            calibration=_calibration(calibration, source, preprocessing, training, original),
            settings=dataclasses.replace(settings, gallery=shown if isinstance(network, BcosNetwork) else None),
            identity={} if settings.folder is None else run_identity(network, source),
            # Without labels, what the network computes need not be classes, or not those of the images.
            classes=source.classes if source is not None and training.needs_labels else (),
        )
        history, checkpoint = fitting.fit(train, test)
    trained = fitting.module.result.cpu().eval()
    for parameter, given in zip(trained.parameters(), network.parameters(), strict=True):
        parameter.requires_grad_(given.requires_grad)  # an average is not trained itself
    if fitting.module.alignment is not None:
        fitting.module.alignment.settle()
    if isinstance(trained, BcosNetwork):
        # The report describes the conversion; its figures of drift do not hold for trained weights.
        trained = _settled(trained, shown, training)
        named = "its own settings" if isinstance(recipe, Training) else Path(recipe or trained.report.recipe).stem
        images = None if source is None else len(source)
        done = run_of(training, named, history, data=data, images=images, validation=validation)
        trained.with_record(training=(*trained.record.training, done))
    return FineTuned(trained, tuple(history), checkpoint, fitting.classes)


def _alone(folder: Path | None) -> AbstractContextManager[None]:
    """Hold the run's folder against other runs; of several processes the first does so for all."""
    rank_zero: Any = importlib.import_module("lightning.pytorch.utilities.rank_zero")
    return nullcontext() if folder is None or rank_zero.rank_zero_only.rank else holding(folder)


def _training(model: nn.Module, recipe: str | Path | Training | None, changes: Mapping[str, Any]) -> Training:
    if recipe is None:
        if not isinstance(model, BcosNetwork):
            raise UsageError("which recipe is the network to be trained by?", hint='recipe="bcosification"')
        recipe = model.report.recipe
    training = recipe if isinstance(recipe, Training) else load_training(recipe)
    training = training.with_changes(changes)
    if not isinstance(model, BcosNetwork) and (training.rises or training.fades):
        raise UsageError(
            f"a {type(model).__name__} has no B to raise and no biases that rules could take out",
            hint="convert it first with bcos_fx.bcosify, or train it by a recipe without rises and fades",
        )
    return training


def _sized(training: Training, source: ImageSource, changes: Mapping[str, Any], log: Callable[[str], None]) -> Training:
    """Fit the training's settings to the number of images, and log the result."""
    labels = source.labels if training.needs_labels and source.labels is not None else ()
    numbers = Counter(labels) if source.classes else Counter()
    counts = [numbers[index] for index in range(len(source.classes))]
    sizing = sized(training, len(source), [name for name, value in changes.items() if value is not None], counts)
    log(f"training on {sizing}")
    for line in sizing.notes:
        log(f"note: {line}")
    return sizing.training


def _network(
    model: nn.Module, source: ImageSource | None, training: Training, *, from_scratch: bool, head: Head
) -> nn.Module:
    network = copy.deepcopy(model)
    if isinstance(network, BcosNetwork):
        if head.kind == "subset" or (source is not None and training.needs_labels):
            network = head.fitted(network, source, training.seed)
        if from_scratch:
            network = reinitialized(network, training.seed)
        network = _without_early_constants(network, training)
    elif from_scratch or head.kind != "keep":
        raise UsageError("only a converted network begins from scratch or gets a new head here")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UsageError("all parameters of the network are frozen", hint="network.requires_grad_(True) frees them")
    return network.train()


def _without_early_constants(network: BcosNetwork, training: Training) -> BcosNetwork:
    """Take constants out at once where the recipe has them gone from the beginning."""
    from bcos_fx.training.fading import Fading

    gone = [fade for fade in training.fades if fade.left(0.0) == 0]
    if not gone or not layers_of_phase(network, "bias"):
        return network
    Fading([network], training.fades).begin()
    return without_zero_constants(network, synthetic_batch(network))


def _preprocessing(network: nn.Module, source: ImageSource | None) -> Preprocessing | None:
    """Return how images become the network's input; None where samples are taken as they are."""
    if isinstance(network, BcosNetwork):
        return network.preprocessing if is_photograph(network.input_shape) else None
    if source is None or isinstance(source, DatasetSource | StreamSource):
        return None
    first = source.load(0).image
    shape = tuple(first.shape) if isinstance(first, Tensor) else (3, first.height, first.width)
    return Preprocessing.of(shape, in_unit_range=False) if is_photograph(shape) else None


def _training_loader(
    source: ImageSource | None, data: Any, preprocessing: Preprocessing | None, training: Training, workers: int
) -> Replayable:
    if source is None:
        if not len(data):
            raise UsageError("the DataLoader has no batches")
        return Replayable(data, training.seed)
    samples = Samples(source, preprocessing, training.augment, training.seed)
    return training_loader(samples, training.batch_size, training.seed, workers)


def _testing_loader(
    validation: object,
    trained: ImageSource | None,
    preprocessing: Preprocessing | None,
    training: Training,
    workers: int,
) -> Iterable[Any] | None:
    if validation is None or isinstance(validation, DataLoader):
        return validation
    source = source_of(validation)
    if isinstance(trained, Renumbered):
        source = Renumbered(source, trained.indices)
    if trained is not None and trained.classes and source.classes and trained.classes != source.classes:
        odd = sorted(set(trained.classes) ^ set(source.classes))
        raise UsageError(
            f"training and test images have other classes: {', '.join(odd[:5]) or 'their order differs'}",
            hint="the same folders in both",
        )
    samples = Samples(source, preprocessing, "none", training.seed)
    return testing_loader(samples, max(training.batch_size, 128), workers)


def _first_images(test: Iterable[Any] | None) -> Tensor | None:
    if test is None:
        return None
    batch = next(iter(test))
    images = batch if isinstance(batch, Tensor) else batch[0]
    return images[:_SHOWN].clone()


def _calibration(
    calibration: CalibrationFunction | None,
    source: ImageSource | None,
    preprocessing: Preprocessing | None,
    training: Training,
    original: nn.Module | None,
) -> Calibrations | None:
    """Return the calibrations before the first step and for later ones, and a few batches of training images.

    Only what was not trained yet is matched to the original: pulling a trained network back to it undoes its training
    (docs/finetuning.md has the figures), so later norms take their statistics again and that is all.
    """
    if training.calibrate == "never":
        return None
    if source is None:
        raise UsageError("calibration needs images by number", hint="give a folder, an .npz, tensors or a Dataset")
    # Statistics are those of test images, so nothing is augmented; evenly spread, for sources are in order of class.
    samples = Samples(source, preprocessing, "none", training.seed)
    count = min(_CALIBRATED, len(samples))
    chosen = torch.linspace(0, len(samples) - 1, count).long().tolist()
    images = images_of(samples, chosen)
    at_first, later = calibration or usual_calibration(original), calibration or usual_calibration(None)
    return at_first, later, torch.split(images, training.batch_size)


def _settled(network: BcosNetwork, images: Tensor | None, training: Training) -> BcosNetwork:
    """Return the trained network without constants that reached 0, with a report that describes it as it is now."""
    if training.fades:
        like = next(network.parameters())
        network = without_zero_constants(network, synthetic_batch(network) if images is None else images.to(like))
    pressures = {path: m.b for path, m in network.named_modules() if isinstance(getattr(m, "b", None), float)}
    b: Any = pressures if len(set(pressures.values())) > 1 else next(iter(pressures.values()), 1.0)
    epochs = amount(training.epochs, "epoch")
    note = f"fine-tuned for {epochs}: weights, and figures of drift, are not those of the conversion"
    notes = (*(n for n in network.report.notes if not n.startswith("fine-tuned for")), note)
    report = network.report
    figures = dataclasses.replace(report.figures, trained=report.figures.trained + 1)
    return network.with_report(
        dataclasses.replace(report, options={**report.options, "b": b}, notes=notes, figures=figures)
    )
