"""Whether a network is dynamic linear, and its contributions add up, for ``bcos-fx check``. Imports torch."""

from __future__ import annotations

import copy

import torch
from rich.text import Text
from torch import Tensor, nn

from bcos_fx.cli import values
from bcos_fx.cli.console import console, echo
from bcos_fx.errors import UsageError
from bcos_fx.explanation.certify import Certification, certify
from bcos_fx.explanation.layout import own_form
from bcos_fx.network import BcosNetwork
from bcos_fx.verification import Verification, verify
from bcos_fx.verification.original import EachAlone
from bcos_fx.verification.samples import synthetic_images

_SAMPLES = 4


def certified(
    network: nn.Module,
    *,
    shape: tuple[int, ...] | None = None,
    source: list[str] | None = None,
    batch_axis: int | None = 0,
) -> Certification:
    """Certify a network in float64, on a copy.

    Args:
        network: converted or not.
        shape: of one sample, where the network is not converted and its first layer does not determine it.
        source: names of what it is explained by; None: the main input.
        batch_axis: the dimension of its input that holds the samples; None: the input is one sample as a whole.
    """
    exact = copy.deepcopy(network).double().eval()
    given = _made_up(network, batch_axis) if isinstance(network, BcosNetwork) else _noise(shape, batch_axis)
    if given is None and batch_axis != 0:
        raise UsageError(
            "--batch-axis was given for a network whose inputs cannot be made up",
            hint="give the shape of one sample with --input-shape; or, of several inputs, explain them from Python",
        )
    return certify(exact, given, source=source, batch_axis=batch_axis)


def compared_whole(original: nn.Module, network: BcosNetwork, batch_axis: int | None, *, encoded: bool) -> Verification:
    """Compare a network with its original on whole inputs, where samples are not the first dimension."""
    given = _made_up(network, batch_axis)
    if given is None:
        raise UsageError(
            "--batch-axis was given for a network whose inputs cannot be made up",
            hint="check it alone; conversion has compared it with the original already",
        )

    def transform(inputs: Tensor) -> Tensor:
        return inputs if encoded else torch.stack([network.original_input(x) for x in inputs])

    pair = EachAlone(original), EachAlone(network)
    return verify(*pair, given[0].unsqueeze(0), batch_sizes=(1, 2), sizes=(), transform=transform)


def _made_up(network: BcosNetwork, batch_axis: int | None) -> list[Tensor] | None:
    """Return random float64 inputs for a network that takes one input; None for others."""
    if len(network.record.inputs) != 1:
        return None
    (spec,) = network.record.inputs
    rank = len(spec.shape)
    batch_axis = values.in_range(batch_axis, rank)
    spec.check_samples(batch_axis)
    sample = [size for axis, size in enumerate(spec.shape) if batch_axis is None or axis != batch_axis % rank]
    images = synthetic_images(sample, 1 if batch_axis is None else _SAMPLES, seed=0).tensors[0].double()
    return [own_form(images if spec.encoded else 2 * images - 1, batch_axis)]


def _noise(shape: tuple[int, ...] | None, batch_axis: int | None) -> list[Tensor] | None:
    """Return random samples of a shape; None without a shape."""
    if shape is None:
        return None
    count = 1 if batch_axis is None else _SAMPLES
    samples = torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).double()
    return [own_form(samples, values.in_range(batch_axis, samples.dim()))]


def show(certification: Certification) -> None:
    """Print a certification."""
    stdout = console()
    stdout.print(Text(certification.to_text(), style="green" if passes(certification) else "red"))


def passes(certification: Certification) -> bool:
    """Return whether a network may be explained: it is dynamic linear, and not measured to be incomplete."""
    completeness = certification.completeness
    return certification.ok and (completeness is None or completeness.verdict != "incomplete")


def advise(certification: Certification) -> None:
    """Print what to do where the input hardly contributes."""
    if certification.completeness is not None and certification.completeness.verdict == "not tested":
        echo(
            "The input hardly contributes: raising B took the activations away. Fine-tune the network before you "
            "explain it, or convert with --recipe equivalent."
        )
