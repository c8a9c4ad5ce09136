"""Images in whatever form they come: a tensor, batches, a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bcos_fx.data.batches import Batches
from bcos_fx.data.datasets import is_data, source_of
from bcos_fx.data.preprocessing import is_photograph
from bcos_fx.errors import UsageError
from bcos_fx.network import BcosNetwork
from bcos_fx.validation import check_range

_FORMS = "give a tensor (N, ...), whatever evaluate takes as data, or an iterable of batches such as a DataLoader"


@dataclass(frozen=True)
class Batch:
    """Some samples: newly allocated inputs on the network's device and in its dtype, and labels (N,) or None."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None


def read_batches(images: object, network: BcosNetwork, batch_size: int) -> Iterator[Batch]:
    """Yield batches of samples.

    Args:
        images: a tensor (N, ...); for a network of photographs anything that
            :func:`bcos_fx.data.datasets.source_of` takes; a Dataset of samples; or an iterable of batches. A sample or
            a batch is a tensor, or the network's inputs in order, with a label (or labels) behind them.
        network: takes them.
        batch_size: for all but an iterable of batches.

    Raises:
        UsageError: another form, samples that the network does not take, NaN, images beyond [0, 1], or none at all.
    """
    empty = True
    for given in _batches_of(images, network, batch_size):
        batch = _batch(given, network)
        if len(batch.inputs[0]):
            empty = False
            yield batch
    if empty:
        raise UsageError("there are no images to calibrate on", hint="a few hundred are enough; labels are not needed")


def _batches_of(images: object, network: BcosNetwork, batch_size: int) -> Iterable[Any]:
    photographs = len(network.record.inputs) == 1 and is_photograph(network.input_shape)
    if isinstance(images, Tensor) and not (photographs and images.dtype == torch.uint8):
        if images.dim() == 0:
            raise UsageError("images is a single number", hint=_FORMS)
        return torch.split(images, batch_size) if len(images) else ()
    if photographs and is_data(images):
        return Batches(source_of(images), network.preprocessing, batch_size)
    if isinstance(images, Dataset):
        return DataLoader(images, batch_size)
    if isinstance(images, str | bytes | dict) or not isinstance(images, Iterable):
        raise UsageError(f"images is a {type(images).__name__}", hint=_FORMS)
    return images


def _batch(given: object, network: BcosNetwork) -> Batch:
    specs = network.record.inputs
    parts = (given,) if isinstance(given, Tensor) else given
    if not isinstance(parts, tuple | list) or not len(specs) <= len(parts) <= len(specs) + 1:
        names = ", ".join(spec.name for spec in specs)
        raise UsageError(
            f"a batch is a {type(given).__name__}"
            + (f" of {len(parts)}" if isinstance(parts, tuple | list) else "")
            + f", not the network's input ({names}), with or without labels behind",
            hint=_FORMS,
        )
    inputs = tuple(parts[: len(specs)])
    network.check_inputs(inputs)
    for spec, value in zip(specs, inputs, strict=True):
        if not spec.encoded and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UsageError(f"the input {spec.name!r} holds NaN or infinity", hint="leave those samples out")
        if spec.encoded and len(value):
            check_range(value)
    return Batch(tuple(_placed(value, network) for value in inputs), _labels(parts[len(specs) :], len(inputs[0])))


def _placed(value: Tensor, network: BcosNetwork) -> Tensor:
    like = next((t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()), value)
    return value.detach().to(like.device, like.dtype if value.is_floating_point() else value.dtype, copy=True)


def _labels(given: Any, samples: int) -> Tensor | None:
    if not given:
        return None
    labels = torch.as_tensor(given[0]).cpu()
    if labels.is_floating_point() or tuple(labels.shape) != (samples,):
        raise UsageError(
            f"the labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}, "
            f"not {samples} class indices",
            hint="leave them out: calibration needs none",
        )
    return labels
