"""Whether a network is dynamic linear, and its contributions add up, for ``bcos-fx check``. Imports torch."""

from __future__ import annotations

import copy

import torch
from rich.text import Text
from torch import Tensor, nn

from bcos_fx.cli.console import console, echo
from bcos_fx.errors import UsageError
from bcos_fx.explanation.batch_axis import samples_first, under_own_layers
from bcos_fx.explanation.certify import Certification, certify
from bcos_fx.network import BcosNetwork
from bcos_fx.verification.samples import imagine

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
        shape: of one sample, where the network is not converted and its first layer does not tell.
        source: names of what it is explained by; None: the main input.
        batch_axis: the dimension of its input that holds the samples; None: the input is one sample as a whole.

    Raises:
        UsageError: nothing has such a name; or another batch axis than the first is given with a source, or for inputs
            that cannot be made up.
    """
    exact = copy.deepcopy(network).double().eval()
    given = _made_up(network, batch_axis) if isinstance(network, BcosNetwork) else _noise(shape, batch_axis)
    if batch_axis == 0:
        return certify(exact, given, source=source)
    if source is not None:
        raise UsageError(
            "--batch-axis was given with --source, whose values have their samples elsewhere too",
            hint="leave one of the two out",
        )
    if given is None:
        raise UsageError(
            "--batch-axis was given for a network whose inputs cannot be made up",
            hint="give the shape of one sample with --input-shape; or, of several inputs, explain them from Python",
        )
    adapter, moved = samples_first(exact, given, batch_axis)
    return under_own_layers(certify(adapter, moved))


def _made_up(network: BcosNetwork, batch_axis: int | None) -> list[Tensor] | None:
    """Made-up inputs of a network that takes one input of numbers; None for others."""
    if len(network.record.inputs) != 1:
        return None
    (spec,) = network.record.inputs
    rank = len(spec.shape)
    if batch_axis is not None and not -rank <= batch_axis < rank:
        raise UsageError(
            f"--batch-axis is {batch_axis}, the input has {rank} dimensions",
            hint=f"give a number from 0 to {rank - 1}, or none where the input is one sample as a whole",
        )
    sample = [size for axis, size in enumerate(spec.shape) if batch_axis is None or axis != batch_axis % rank]
    images = imagine(sample, 1 if batch_axis is None else _SAMPLES, seed=0).tensors[0].double()
    return [_arranged(images if spec.encoded else 2 * images - 1, batch_axis)]


def _noise(shape: tuple[int, ...] | None, batch_axis: int | None) -> list[Tensor] | None:
    """Made-up samples of a shape; None without a shape."""
    if shape is None:
        return None
    count = 1 if batch_axis is None else _SAMPLES
    return [_arranged(torch.rand(count, *shape, generator=torch.Generator().manual_seed(0)).double(), batch_axis)]


def _arranged(samples: Tensor, batch_axis: int | None) -> Tensor:
    """Samples (N, ...) with N where the network takes it, or the only one without it."""
    return samples[0] if batch_axis is None else samples.movedim(0, batch_axis)


def show(found: Certification) -> None:
    """Print a certification."""
    stdout = console()
    stdout.print(Text(found.to_text(), style="green" if passes(found) else "red"))


def passes(found: Certification) -> bool:
    """Say whether a network may be explained: it is dynamic linear, and nothing measured speaks against it."""
    return found.ok and (found.completeness is None or found.completeness.verdict != "incomplete")


def advise(found: Certification) -> None:
    """Say what to do where the contributions say nothing."""
    if found.completeness is not None and found.completeness.verdict == "not tested":
        echo(
            "The input hardly contributes: raising B took the activations away. Fine-tune the network before you "
            "explain it, or convert with --recipe equivalent."
        )
