"""The original network in the form in which it is compared with the converted one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.network import InputSpec
from bcos_fx.tracing.inputs import Inputs, part_of


class NormalizedOriginal(nn.Module):
    """The original network behind its own normalisation: what the converted one must be equal to."""

    def __init__(
        self, module: nn.Module, example_run: Inputs, specs: Sequence[InputSpec], output_key: int | str | None
    ) -> None:
        super().__init__()
        self.module, self.example_run = module, example_run
        self.specs = tuple(specs)
        self.output_key = output_key

    def forward(self, *inputs: Any) -> Any:
        """Run the network on what the converted one takes."""
        given = [spec.original(x) for spec, x in zip(self.specs, inputs, strict=True)]
        result = self.example_run.call(self.module, given)
        return result if self.output_key is None else part_of(result, self.output_key)


class EachAlone(nn.Module):
    """A network without a dimension of samples, applied to one whole input after the other and stacked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (N, ...) for inputs (N, ...), each a stack of what the network takes."""
        return torch.stack([self.network(*given) for given in zip(*inputs, strict=True)])
