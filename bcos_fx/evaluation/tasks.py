"""From what a caller gives to what is evaluated."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from bcos_fx.conversion.recorded import recorded_classes
from bcos_fx.data.datasets import source_for
from bcos_fx.data.preprocessing import CLIP, Preprocessing
from bcos_fx.data.sources import ImageSource
from bcos_fx.errors import UsageError
from bcos_fx.evaluation.predictions import EvaluationTask
from bcos_fx.heads.classes import check_same_names
from bcos_fx.methods.zero_shot import ZeroShot
from bcos_fx.network import BcosNetwork
from bcos_fx.validation import check_module
from bcos_fx.verification.original import NormalizedModel


def task_of(
    model: nn.Module,
    dataset: object,
    *,
    original: nn.Module | None = None,
    shape: tuple[int, ...] | None = None,
) -> EvaluationTask:
    """Check model and data, and put them together.

    Args:
        model: takes images in [0, 1]; in eval mode.
        dataset: whatever :func:`bcos_fx.data.datasets.source_of` takes; classes that data and network name are matched.
        original: takes the same images.
        shape: (C, H, W) of one image; None: what the converted network was made for, or of the data set's first tensor.

    Raises:
        UsageError: something is not what it should be.
    """
    for network in (model, original):
        if network is None:
            continue
        check_module(network)
        if network.training:
            raise UsageError("the network is in train mode", hint="call network.eval() first")
    classes = model.record.classes if isinstance(model, BcosNetwork) else ()
    # Agreement of networks with other classes would be a number without meaning.
    if original is not None and classes:
        module = original.module if isinstance(original, NormalizedModel) else original
        recorded = module.record.classes if isinstance(module, BcosNetwork) else recorded_classes(module, len(classes))
        check_same_names(classes, recorded)
    source = source_for(dataset, classes)
    source.check_labeled()
    return EvaluationTask(model, source, preprocessing_of(model, source, shape), original)


def preprocessing_of(model: nn.Module, source: ImageSource, shape: tuple[int, ...] | None = None) -> Preprocessing:
    """Return how images become a network's input: as its file records it, else as is published for its kind.

    Raises:
        UsageError: the shape is not known, or not that of an image.
    """
    tower = model.tower if isinstance(model, ZeroShot) else model
    if isinstance(tower, BcosNetwork):
        spec = tower.record.inputs[0]
        # Towers without records of their own were trained as CLIP was; what a file records counts more.
        usual = CLIP if tower is not model and spec.crop_pct is None else dict[str, Any]()
        return dataclasses.replace(spec.preprocessing(shape), **usual)
    sample_shape = shape if shape is not None else source.own_shape()
    if sample_shape is None:
        raise UsageError("the size to resize the images to is not known", hint="give shape=(3, 224, 224), say")
    return Preprocessing.of(tuple(sample_shape))
