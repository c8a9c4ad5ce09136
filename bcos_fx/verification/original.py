"""The original network in the form in which it is compared with the converted one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.network import BcosNetwork, InputSpec
from bcos_fx.tracing.inputs import part_of


def _positional(module: nn.Module, inputs: Sequence[Any]) -> Any:
    return module(*inputs)


class NormalizedModel(nn.Module):
    """A network behind its own normalization: what a converted one is compared with, on the same inputs.

    Args:
        module: the original; it stays in the mode that it is in.
        specs: what the converted network records of its inputs; None: they are passed on as they are.
        output_key: which part of the original's output is returned, as for :func:`bcos_fx.bcosify`; None: all of it.
        call: how the original is called with its inputs in order; by default with positional arguments.
    """

    def __init__(
        self,
        module: nn.Module,
        specs: Sequence[InputSpec] | None = None,
        *,
        output_key: int | str | None = None,
        call: Callable[[nn.Module, Sequence[Any]], Any] = _positional,
    ) -> None:
        super().__init__()
        self.module = module
        self._specs = None if specs is None else tuple(specs)
        self.output_key, self._call = output_key, call
        self.training = module.training

    def forward(self, *inputs: Any) -> Any:
        """Return the original's output for what the converted network takes: images in [0, 1] where it encodes them."""
        given: Sequence[Any] = inputs
        if self._specs is not None:
            given = [spec.original(x) for spec, x in zip(self._specs, inputs, strict=True)]
        result = self._call(self.module, given)
        return result if self.output_key is None else part_of(result, self.output_key)

    @property
    def neutral(self) -> tuple[float, ...]:
        """The color that the original gets as 0 in every channel; where nothing is normalized, black."""
        specs = self.module.record.inputs if isinstance(self.module, BcosNetwork) else self._specs or ()
        spec = specs[0]
        if not spec.encoded:
            return (0.0,) * spec.sizes(spec.shape)[0]
        matrix, offset = (torch.tensor(values, dtype=torch.float64) for values in (spec.matrix, spec.offset))
        solved: Tensor = torch.linalg.solve(matrix, -offset)
        return tuple(solved.tolist())


class EachAlone(nn.Module):
    """A network without a dimension of samples, applied to one whole input after the other and stacked."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (N, ...) for inputs (N, ...), each a stack of what the network takes."""
        return torch.stack([self.network(*given) for given in zip(*inputs, strict=True)])
