"""Linear probe: how well a linear classifier on frozen embeddings separates classes (Radford et al., ICML 2021, A.3).

Embeddings are scaled to length 1, and multinomial logistic regression is fitted by scikit-learn with L-BFGS:

    mean over images of the cross-entropy + weight_decay/2 · ‖W‖²

The weight decay is chosen on a part of the training images that is held out, in whole decades and then in halves around
the best, and the classifier is fitted again to all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from bcos_fx.data.batches import Batches
from bcos_fx.data.preprocessing import Preprocessing
from bcos_fx.data.sources import ImageSource
from bcos_fx.errors import UsageError
from bcos_fx.escaping import amount
from bcos_fx.evaluation.clip_benchmark import rates
from bcos_fx.lazy import check_installed

DECADES = tuple(10.0**k for k in range(-7, 2))
_HELD_OUT, _ITERATIONS = 5, 1000

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Embedded:
    """Embeddings of labeled images.

    Attributes:
        features: (N, D), each of length 1.
        labels: (N,).
        unreadable: name -> reason of images that could not be read.
    """

    features: Tensor
    labels: Tensor
    unreadable: Mapping[str, str]


@dataclass(frozen=True)
class Probe:
    """What a linear classifier found in embeddings.

    Attributes:
        metrics: acc1, acc5 (None below five classes) and mean_per_class_recall on the test images, in [0, 1].
        weight_decay: the one that was chosen.
        sweep: weight decay -> accuracy on the held-out images, rising.
        converged: the last fit came to an end within 1000 steps.
        train_images, images: how many it was fitted to, and tested on.
    """

    metrics: Mapping[str, float | None]
    weight_decay: float
    sweep: Mapping[float, float]
    converged: bool
    train_images: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        return {**vars(self), "metrics": dict(self.metrics), "sweep": {f"{k:g}": v for k, v in self.sweep.items()}}


def check_solver() -> None:
    """Check that the solver is there, before hours of work."""
    check_installed("sklearn", "evaluate", "a linear probe", package="scikit-learn")


def embed_images(
    model: nn.Module, source: ImageSource, preprocessing: Preprocessing, *, batch_size: int = 32
) -> Embedded:
    """Embed all images of a source.

    Args:
        model: takes images in [0, 1] and gives (N, D); in eval mode.
        source: labeled images.
        preprocessing: how they become the model's input.
        batch_size: images at once.

    Raises:
        UsageError: the model gives no row of numbers for each image, an image has no label, or none can be read.
    """
    source.check_labeled()
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    reader, features, labels = Batches(source, preprocessing, batch_size), [], list[int]()
    for batch in filter(None, map(reader.read, reader.parts)):
        labels += [source.class_index(s.label, i) for i, s in zip(batch.indices, batch.samples, strict=True)]
        features.append(_embedded(model, batch.images.to(like)))
    reader.check_readable()
    return Embedded(torch.cat(features), torch.tensor(labels), reader.skipped)


def _embedded(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        embeddings = model(images)
    if not isinstance(embeddings, Tensor) or embeddings.dim() != 2:
        shape = tuple(embeddings.shape) if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise UsageError(
            f"the network gives {shape} for {amount(len(images), 'image')}", hint="a probe needs one row for each"
        )
    if not bool(torch.isfinite(embeddings).all()):
        raise UsageError("the network gives NaN or infinity", hint="was it trained with these images, and in [0, 1]?")
    return functional.normalize(embeddings.double(), dim=1).cpu()


def linear_probe(train: Embedded, test: Embedded, *, weight_decays: Sequence[float] = DECADES, seed: int = 0) -> Probe:
    """Fit a linear classifier to embeddings and measure it on others.

    Args:
        train: at least two classes, of each at least two images.
        test: others.
        weight_decays: what is tried first, positive; then the halves of the steps beside the best.
        seed: of the choice of held-out images: a fifth of each class, at least one.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        UsageError: too few classes or images, other sizes, labels that were not trained, or a senseless weight decay.
    """
    check_solver()
    _check_counts(train, test, weight_decays)
    features, labels = train.features.double().numpy(), train.labels.numpy()
    held = _held_out(labels, seed)
    tried: dict[float, float] = {}

    def score(decay: float) -> float:
        if decay not in tried:
            fitted, _ = _fitted(features[~held], labels[~held], decay)
            tried[decay] = float(fitted.score(features[held], labels[held]))
        return tried[decay]

    # Of equally good ones the largest, whose classifier is the simplest.
    ordered = sorted(weight_decays)
    best = max(ordered, key=lambda decay: (score(decay), decay))
    place = ordered.index(best)
    # Halves of the steps on the logarithmic scale: geometric means.
    beside = [(best * ordered[n]) ** 0.5 for n in (place - 1, place + 1) if 0 <= n < len(ordered)]
    best = max([best, *beside], key=lambda decay: (score(decay), decay))
    fitted, converged = _fitted(features, labels, best)
    outputs = fitted.decision_function(test.features.double().numpy())
    # Of two classes scikit-learn gives the score of the second alone.
    scores = np.stack([-outputs, outputs], axis=1) if outputs.ndim == 1 else outputs
    ranked = fitted.classes_[np.argsort(-scores, axis=1)]
    among_five = (ranked[:, :5] == test.labels.numpy()[:, None]).any(axis=1).tolist()
    metrics = rates(test.labels.tolist(), ranked[:, 0].tolist(), among_five, len(fitted.classes_))
    return Probe(metrics, best, dict(sorted(tried.items())), converged, len(labels), len(test.labels))


def _check_counts(train: Embedded, test: Embedded, weight_decays: Sequence[float]) -> None:
    counts = torch.bincount(train.labels)
    counts = counts[counts > 0]
    if len(counts) < 2 or int(counts.min()) < 2:
        raise UsageError(
            f"a probe cannot be fitted to {amount(len(train.labels), 'image')} of {amount(len(counts), 'class')}",
            hint="give at least two classes, and at least two images of each",
        )
    if train.features.shape[1] != test.features.shape[1]:
        raise UsageError(f"{train.features.shape[1]} numbers were trained on, {test.features.shape[1]} are tested")
    unknown = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if unknown:
        raise UsageError(f"class {unknown[0]} is tested and was not trained", hint="train on images of every class")
    if not weight_decays or any(not 0 < decay < float("inf") for decay in weight_decays):
        raise UsageError(f"the weight decays are {tuple(weight_decays)}", hint="give positive numbers")


def _held_out(labels: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    # A part of each class: with few images a class could be missing from one side otherwise.
    held = np.zeros(len(labels), dtype=bool)
    generator = np.random.default_rng(seed)
    for label in np.unique(labels):
        places = generator.permutation(np.flatnonzero(labels == label))
        held[places[: max(1, len(places) // _HELD_OUT)]] = True
    return held


def _fitted(features: Rows, labels: npt.NDArray[np.int64], weight_decay: float) -> tuple[Any, bool]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # scikit-learn weighs the sum of the losses by C; here the mean of them is regularized.
    model = LogisticRegression(C=1 / (weight_decay * len(labels)), max_iter=_ITERATIONS)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        model.fit(features, labels)
    return model, not any(issubclass(item.category, ConvergenceWarning) for item in raised)
