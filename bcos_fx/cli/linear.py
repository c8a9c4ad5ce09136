"""Whether a network is dynamic linear, and its contributions add up, for ``bcos-fx check``. Imports torch."""

from __future__ import annotations

import copy

import torch
from rich.text import Text
from torch import Tensor, nn

from bcos_fx.certification import Certification, certify
from bcos_fx.cli.console import console, echo
from bcos_fx.proofs.samples import imagine
from bcos_fx.rewriting.network import BcosNetwork

_SAMPLES = 4


def certified(network: nn.Module, *, shape: tuple[int, ...] | None = None) -> Certification:
    """Certify a network in float64, on a copy.

    Args:
        network: converted or not.
        shape: of one sample, where the network is not converted and its first layer does not tell.
    """
    exact = copy.deepcopy(network).double().eval()
    if isinstance(network, BcosNetwork):
        return certify(exact, _made_up(network))
    if shape is not None:
        return certify(exact, torch.rand(_SAMPLES, *shape, generator=torch.Generator().manual_seed(0)).double())
    return certify(exact)


def _made_up(network: BcosNetwork) -> list[Tensor] | None:
    """Made-up inputs of a network that takes one input of numbers; None for others."""
    if len(network.record.inputs) != 1:
        return None
    (spec,) = network.record.inputs
    images = imagine(spec.shape[1:], _SAMPLES, seed=0).tensors[0].double()
    return [images if spec.encoded else 2 * images - 1]


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
