"""How a network is trained, as data: the ``[training]`` table of a recipe file.

    [training]
    epochs = 90
    loss = "off-label-bce"
    [training.optimizer]
    name = "adam"
    lr = 1e-4
    [[training.rise]]          # the first whose `layers` fits a layer decides about it
    shape = "linear"
    end = 0.3
    [[training.fade]]
    shape = "cosine"
    end = 0.7

What is left out has the value that the dataclasses here give it; without a rise every layer keeps its B, without a
fade every bias stays. With several losses (``[training.losses]``) a ``[[training.taper]]`` takes one's weight to 0.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bcos_fx.deprecation import formerly
from bcos_fx.errors import RuleError, UsageError, check_choice, nearest
from bcos_fx.rewriting.core.recipe import find_recipe, recipe_names
from bcos_fx.rewriting.core.toml import Table, read_toml
from bcos_fx.training.schedule import BiasDecay, BSchedule, Course, LossDecay

OPTIMIZERS = ("adam", "adamw", "sgd")
LOSSES = (
    "off-label-bce",
    "bce",
    "cross-entropy",
    "mse",
    "l1",
    "distil-kl",
    "distil-bce",
    "distil-cosine",
    "distil-pairwise",
    "distil-layers",
)
NEGATIVES = ("process", "all")
AUGMENTATIONS = ("none", "flip", "flip-and-shift", "crop-and-flip", "trivial", "rand")
CALIBRATIONS = ("never", "start", "steps")
PRECISIONS = ("32", "bf16", "fp16")


@dataclass(frozen=True)
class Optimizer:
    """What takes the steps.

    Attributes:
        name: ``adam``, ``adamw`` or ``sgd`` (Nesterov).
        lr: learning rate at its highest, > 0.
        weight_decay: of weights; never of B, of norms' parameters or of biases.
        momentum: of SGD.
        warmup: epochs (may be a fraction) in which the rate rises linearly from 0.
        schedule: ``cosine`` (to 0 at the end) or ``constant``.
        clip: adaptive gradient clipping, largest |gradient| / |weight| per unit; 0 for none.
        accumulate: batches whose gradients make one step.
        lr_of_b: learning rate of a learned B, as a multiple of lr.
        lr_of_head: learning rate of the last layer with weights, as a multiple of lr: a new head begins at random,
            and everything before it does not.
    """

    name: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    warmup: float = 0.0
    schedule: str = "cosine"
    clip: float = 0.0
    accumulate: int = 1
    lr_of_b: float = 1.0
    lr_of_head: float = 1.0

    def __post_init__(self) -> None:
        check_choice("optimizer", self.name, OPTIMIZERS)
        check_choice("schedule", self.schedule, ("cosine", "constant"))
        _positive("lr", self.lr)
        _at_least(0, momentum=self.momentum, weight_decay=self.weight_decay, warmup=self.warmup, clip=self.clip)
        _at_least(0, lr_of_b=self.lr_of_b, lr_of_head=self.lr_of_head)
        _at_least(1, accumulate=self.accumulate)


@dataclass(frozen=True)
class Training:
    """How a network is trained.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per batch and process.
        seed: of everything random: the order of images, augmentation, dropout, mixing.
        loss: name of a loss, or name -> weight for a sum of several; see :mod:`bcos_fx.training.losses`. From
            ``distil-layers`` alone the last layer learns nothing: a loss of the outputs belongs beside it.
        features: the layer whose activations ``distil-cosine`` and ``distil-pairwise`` compare; empty for the outputs.
        negatives: what ``distil-pairwise`` contrasts a sample with: those of its ``process``, or of ``all`` processes.
        augment: ``none``, ``flip``, ``flip-and-shift`` (by up to an eighth, as is usual for small images),
            ``crop-and-flip`` (random resized crops), ``trivial`` (TrivialAugmentWide and flips) or ``rand`` (crops and
            flips, then RandAugment: 2 operations of magnitude 10).
        mixup, cutmix: their alpha; 0 for none. Both: one of them by chance for each batch.
        calibrate: ``never``, at the ``start``, or at the start and at every one of the ``steps`` in which B rises
            (where it rises smoothly: at each epoch's beginning while it rises).
        average: decay of an exponential moving average of the weights, which is then tested and returned; 0 for none.
            In step n it is at most (1 + n) / (10 + n), so that the first weights soon drop out of the average.
        precision: ``32``, or automatic mixed precision in ``bf16`` or ``fp16``.
        channels_last: memory format of the convolutions.
        compiled: run the training step through torch.compile.
        optimizer: what takes the steps.
        rises: how B rises.
        fades: how constants go.
        tapers: how the weights of losses go; one loss at least keeps its own.
    """

    epochs: int = 10
    batch_size: int = 128
    seed: int = 0
    loss: str | Mapping[str, float] = "off-label-bce"
    features: str = ""
    negatives: str = "process"
    augment: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    calibrate: str = "never"
    average: float = 0.0
    precision: str = "32"
    channels_last: bool = False
    compiled: bool = False
    optimizer: Optimizer = field(default_factory=Optimizer)
    rises: tuple[BSchedule, ...] = ()
    fades: tuple[BiasDecay, ...] = ()
    tapers: tuple[LossDecay, ...] = ()

    def __post_init__(self) -> None:
        _at_least(1, epochs=self.epochs, batch_size=self.batch_size)
        _at_least(0, seed=self.seed, mixup=self.mixup, cutmix=self.cutmix, average=self.average)
        if self.average >= 1:
            raise UsageError(f"average is {self.average:g}", hint="give a decay below 1, such as 0.999")
        for name, weight in self.losses.items():
            check_choice("losses", name, LOSSES)
            _positive(f"the weight of {name}", weight)
        for taper in self.tapers:
            check_choice("loss", taper.loss, tuple(self.losses))
        if set(self.losses) <= {taper.loss for taper in self.tapers}:
            raise UsageError("all losses taper off, so that nothing is left to learn from", hint="let one stay")
        check_choice("negatives", self.negatives, NEGATIVES)
        check_choice("augment", self.augment, AUGMENTATIONS)
        check_choice("calibrate", self.calibrate, CALIBRATIONS)
        check_choice("precision", self.precision, PRECISIONS)

    @property
    def losses(self) -> dict[str, float]:
        """Name of each loss -> its weight."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss)

    def losses_at(self, done: float) -> dict[str, float]:
        """Return name -> weight of the losses that are left when a share ``done`` of training is over."""
        weights = self.losses
        for taper in self.tapers:
            weights[taper.loss] *= taper.left(done)
        return {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def distils(self) -> bool:
        """Whether a reference network is needed."""
        return any(name.startswith("distil-") for name in self.losses)

    @property
    def compares_embeddings(self) -> bool:
        """Whether outputs are compared with the reference's as embeddings, so that they are not classes."""
        of_outputs = set(self.losses) - {"distil-layers"}
        return not self.features and bool(of_outputs) and of_outputs <= {"distil-cosine", "distil-pairwise"}

    @property
    def has_several_labels(self) -> bool:
        """Whether labels (N, C) may name several classes of one sample."""
        return "bce" in self.losses

    @property
    def needs_labels(self) -> bool:
        """Whether a loss reads labels."""
        return any(not name.startswith("distil-") for name in self.losses)

    @property
    def optimiser(self) -> Optimizer:
        """The former name of :attr:`optimizer`."""
        warnings.warn(".optimiser is now .optimizer", DeprecationWarning, stacklevel=2)
        return self.optimizer

    def with_changes(self, changes: Mapping[str, Any]) -> Training:
        """Return a copy with some fields changed, its own or the optimizer's; None changes nothing.

        Another loss comes without the tapers of those before it.

        Raises:
            UsageError: no field has that name, or the value makes no sense.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        if "optimiser" in given and "optimizer" not in given:
            warnings.warn("optimiser= is now optimizer=", DeprecationWarning, stacklevel=2)
            given["optimizer"] = given.pop("optimiser")
        names, optimizer_names = _names(Training), _names(Optimizer)
        for name in given:
            if name not in (*names, *optimizer_names):
                raise UsageError(f"training has no option {name!r}", hint=nearest(name, (*names, *optimizer_names)))
        if "loss" in given:
            given.setdefault("tapers", ())
        optimizer = given.pop("optimizer", self.optimizer)
        inner = {name: given.pop(name) for name in list(given) if name not in names}
        return dataclasses.replace(self, optimizer=dataclasses.replace(optimizer, **inner), **given)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for a checkpoint to be compared with."""
        return dataclasses.asdict(self)


Training.__init__ = formerly(optimiser="optimizer")(Training.__init__)  # type: ignore[method-assign]


def load_training(recipe: str | Path) -> Training:
    """Read how a recipe trains.

    Args:
        recipe: name of a shipped recipe, or path of a TOML file.

    Raises:
        RuleError: no such recipe, no ``[training]`` in it, or one that is wrong (file, line, nearest known name).
    """
    table = read_toml(find_recipe(recipe))
    if "training" not in table.keys():
        raise RuleError(
            f"the recipe {str(recipe)!r} does not say how to train",
            where=str(find_recipe(recipe)),
            hint=f"add a [training] table, or train by one of {', '.join(recipes_that_train())}",
        )
    return _training(table.table("training"))


def recipes_that_train() -> list[str]:
    """Return the names of the shipped recipes with a ``[training]`` table."""
    return [name for name in recipe_names() if trains(name)]


def trains(recipe: str | Path) -> bool:
    """Return whether a recipe, by name or path, has a ``[training]`` table."""
    return "training" in read_toml(find_recipe(recipe)).keys()


def _training(table: Table) -> Training:
    given = _fields(table, Training)
    given |= _loss(table)
    former = "optimiser" in table.keys()
    if former and "optimizer" in table.keys():
        raise table.error("optimizer and optimiser are the same", "optimiser", "leave this one out")
    if former:
        warnings.warn("[training.optimiser] is now [training.optimizer]", DeprecationWarning, stacklevel=2)
    below = table.table("optimiser" if former else "optimizer")
    given["optimizer"] = _make(below, Optimizer, _fields(below, Optimizer))
    given["rises"] = tuple(_scheduled(entry, BSchedule) for entry in table.tables("rise"))
    given["fades"] = tuple(_scheduled(entry, BiasDecay) for entry in table.tables("fade"))
    given["tapers"] = tuple(_scheduled(entry, LossDecay) for entry in table.tables("taper"))
    return _make(table, Training, given)


def _loss(table: Table) -> dict[str, Any]:
    """Read one loss by name, or several with weights: ``[training.losses]``."""
    below = table.table("losses")
    weights = {name: below.number(name) for name in below.keys()}
    if weights and "loss" in table.keys():
        raise table.error("loss and losses are both given", "loss", "leave one of them out")
    single = {"loss": table.text("loss")} if "loss" in table.keys() else {}
    table.known("loss")
    return {"loss": weights} if weights else single


Made = TypeVar("Made")
S = TypeVar("S", BSchedule, BiasDecay, LossDecay)


def _scheduled(table: Table, kind: type[S]) -> S:
    given = _fields(table, kind)
    course = _fields(table, Course)
    return _make(table, kind, {**given, "course": _make_checked(table, Course, course)})


def _make(table: Table, kind: Callable[..., Made], given: Mapping[str, Any]) -> Made:
    table.finish()
    return _make_checked(table, kind, given)


def _make_checked(table: Table, kind: Callable[..., Made], given: Mapping[str, Any]) -> Made:
    try:
        return kind(**given)
    except UsageError as error:
        raise RuleError(error.what, where=table.where(), hint=error.hint) from error


def _fields(table: Table, kind: type) -> dict[str, Any]:
    """Read the fields of a dataclass that are words, numbers or truth values, as far as the table has them."""
    read: dict[str, Callable[[str], Any]] = {
        "str": table.text,
        "int": table.integer,
        "float": table.number,
        "bool": lambda name: table.flag(name),
    }
    simple = {f.name: read[str(f.type)] for f in dataclasses.fields(kind) if str(f.type) in read}
    for name in simple:  # known, whether given or not
        table.known(name)
    return {name: reader(name) for name, reader in simple.items() if name in table.keys()}


def _names(kind: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{name} is {value!r}", hint="give a positive number")


def _at_least(least: int, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value >= least):
            raise UsageError(f"{name} is {value!r}", hint=f"give a number of at least {least}")
