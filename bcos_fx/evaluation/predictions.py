"""One pass over all images: the predictions of the network, and of the original."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx import artifact
from bcos_fx.data.batches import Batches
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.data.sources import ImageSource
from bcos_fx.errors import UsageError, check_count
from bcos_fx.escaping import amount
from bcos_fx.evaluation.runner import Runner
from bcos_fx.evaluation.selection import Prediction
from bcos_fx.identity import digest_of_data, structure_of, values_of
from bcos_fx.methods.checks import class_outputs
from bcos_fx.methods.zero_shot import ZeroShot
from bcos_fx.network import BcosNetwork
from bcos_fx.validation import check_same_classes
from bcos_fx.version import __version__


@dataclass(frozen=True)
class EvaluationTask:
    """A network, and the images that it is evaluated on.

    Attributes:
        model: takes images in [0, 1], (N, C, H, W), and gives one output per class; in eval mode.
        source: the labeled images.
        preprocessing: how they become the network's input.
        original: what ``model`` was made from, as a function of the same images; None: no comparison.
    """

    model: nn.Module
    source: ImageSource
    preprocessing: Preprocessing
    original: nn.Module | None = None

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""
        return next((p for p in self.model.parameters() if p.is_floating_point()), torch.zeros(()))

    def header(self, kind: str, settings: Mapping[str, object]) -> dict[str, object]:
        """Return the header of a results file, which identifies what the results were computed from."""
        like = self.like
        # Rounding differs between precisions and kinds of device, and so may results.
        computed = {"images": str(self.preprocessing), "dtype": str(like.dtype), "device": like.device.type}
        return {
            "bcos-fx": __version__,
            "kind": kind,
            "model": fingerprint(self.model),
            "original": None if self.original is None else fingerprint(self.original),
            "data": self.source.identity(),
            "settings": computed | dict(settings),
        }

    def read(self, indices: Sequence[int]) -> Tensor:
        """Read images (N, C, H, W), on the model's device."""
        images = [self.source.read(index, self.preprocessing).image for index in indices]
        return torch.stack(images).to(self.like)


@dataclass(frozen=True)
class Predictions:
    """What the pass over all images found, and name -> reason of those that could not be read."""

    predictions: tuple[Prediction, ...]
    unreadable: Mapping[str, str]


def fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 that identifies a network.

    A converted network's is that of its file, a zero-shot classifier's of its tower and texts, another's of its layers
    and state.
    """
    if isinstance(model, BcosNetwork):
        # The file is the same for the same network, whatever process made it.
        return hashlib.sha256(artifact.to_bytes(model)).hexdigest()
    if isinstance(model, ZeroShot):
        texts = (model.texts.names, model.texts.vectors.tolist(), model.scale, model.likeness.location)
        return hashlib.sha256(f"{fingerprint(model.tower)} {texts}".encode()).hexdigest()
    return digest_of_data([structure_of(model), values_of(model)])


def predict(task: EvaluationTask, runner: Runner, *, batch_size: int = 32) -> Predictions:
    """Run the network, and the original where there is one, over all images.

    Images are read in batches; of each, a few numbers are kept. Results are written as they come.

    Args:
        task: network and images.
        runner: how the work is done.
        batch_size: images at once. Results hold for it: rounding depends on what is computed together.

    Raises:
        UsageError: the network gives no row of class scores, a label is not among its classes, or no image is readable.
    """
    check_count("batch_size", batch_size)
    total = len(task.source)
    if not total:
        raise UsageError("there are no images to evaluate on")
    # Batches are fixed by the size alone, and not by what is left to do: what is computed together is the same in
    # a resumed run, and so is its rounding.
    batches = [range(first, min(first + batch_size, total)) for first in range(0, total, batch_size)]
    header = task.header("predictions", {"batch_size": batch_size})
    results = runner.run(
        "predictions",
        header,
        [len(batch) for batch in batches],
        lambda number: _of_batch(task, batches[number]),
        "predicting",
    )
    predictions = tuple(Prediction(*row) for part in results for row in part["rows"])
    unreadable = {name: reason for part in results for name, reason in part["unreadable"].items()}
    if not predictions:
        raise UsageError(f"of {amount(total, 'image')} none can be read", where=next(iter(unreadable.values())))
    return Predictions(predictions, unreadable)


def _of_batch(task: EvaluationTask, indices: range) -> dict[str, Any]:
    reader = Batches(task.source, task.preprocessing, len(indices))
    readable = reader.read(indices)
    if readable is None:
        return {"rows": [], "unreadable": reader.skipped}
    read, batch = readable.indices, readable.images.to(task.like)
    outputs = _judged_outputs(task.model, batch)
    classes = outputs.shape[1]
    task.source.check_classes(classes)
    # Labels of a stream are known only now, so each is checked where it is read.
    labels = [
        task.source.class_index(sample.label, index, classes)
        for index, sample in zip(read, readable.samples, strict=True)
    ]
    originals = None
    if task.original is not None:
        theirs = _judged_outputs(task.original, batch)
        check_same_classes(classes, theirs.shape[1])
        originals = theirs.argmax(1).tolist()
    return {"rows": _rows(outputs, read, labels, originals), "unreadable": reader.skipped}


def _rows(outputs: Tensor, read: list[int], labels: list[int], originals: list[int] | None) -> list[list[Any]]:
    """Return the fields of a :class:`Prediction` for each image."""
    logits, predicted = outputs.max(1)
    # Only the numbers that protocols and figures read are kept: all outputs of a million images would not fit.
    probabilities = outputs.softmax(1).gather(1, predicted.unsqueeze(1)).squeeze(1)
    five = outputs.topk(min(5, outputs.shape[1]), dim=1).indices
    # A label is compared with all five at once: (N, 5) against (N, 1).
    among = (five == torch.tensor(labels, device=five.device).unsqueeze(1)).any(1)
    columns: list[Sequence[Any]] = [t.tolist() for t in (predicted, logits, probabilities, among)]
    columns.append([None] * len(read) if originals is None else originals)
    return [list(row) for row in zip(read, labels, *columns, strict=True)]


def _judged_outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Return the outputs (N, classes) for images (N, C, H, W).

    Raises:
        UsageError: there is no row of at least two class outputs for each image, or an output is NaN or infinite.
    """
    with torch.no_grad():
        outputs = class_outputs(model, images)
    if outputs.shape[1] < 2:
        raise UsageError(
            f"the network gives {tuple(outputs.shape)} for {amount(len(images), 'image')}",
            hint="evaluation needs a classifier: (N, classes), of at least two classes",
        )
    if not bool(torch.isfinite(outputs).all()):
        raise UsageError("the network gives NaN or infinity", hint="was it trained with these images, and in [0, 1]?")
    return outputs
