"""Networks whose W is known by hand: autograd of the network itself, with its gates held.

A gate is marked in the network itself, by `gate` and `ratio`. These do nothing while the network is converted and
explained; for the reference they detach, so that autograd's gradient of the original is W.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.artifact import from_bytes, to_bytes

_HELD: list[bool] = []


@contextlib.contextmanager
def held() -> Iterator[None]:
    """While this lasts, gates are constants."""
    _HELD.append(True)
    try:
        yield
    finally:
        _HELD.pop()


def holding() -> bool:
    """Whether gates are constants now."""
    return bool(_HELD)


def gate(value: Tensor) -> Tensor:
    return value.detach() if _HELD else value


def ratio(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    return value * (function(value) / value).detach() if _HELD else function(value)


@dataclass(frozen=True)
class Case:
    """A network, and what it is explained by and for; by its first input where no source is named."""

    make: Callable[[], nn.Module]
    inputs: dict[str, Any]
    unit: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    source: str | None = None

    @property
    def start(self) -> str:
        """Name of the input that it is explained by."""
        return self.source or next(iter(self.inputs))

    def explained(self, model: nn.Module) -> bcos_fx.explanation.Explanation:
        """The explanation of a network of this kind."""
        target = self.unit if len(self.unit) > 1 else self.unit[0]
        return bcos_fx.explain(model, self.inputs, target, source=self.source, **self.options)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def built(case: Case) -> nn.Module:
    torch.manual_seed(0)
    module = case.make().double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            width = part.num_features
            part.running_mean, part.running_var = torch.rand(width).double(), torch.rand(width).double() + 0.5
    return module


def chosen(output: Tensor, case: Case) -> Tensor:
    """The explained number of each sample, or of the whole."""
    return output[case.unit][None] if case.options else output[(slice(None), *case.unit)]


def by_hand(module: nn.Module, case: Case) -> Tensor:
    """W, by autograd of the original with its gates held."""
    leaf = case.inputs[case.start].clone().requires_grad_()
    with held():
        chosen(module(**(case.inputs | {case.start: leaf})), case).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def check_equivalent(case: Case) -> None:
    """Compare W of a network, of its conversion at B = 1 and of that in a file with the one by hand."""
    module = built(case)
    output = module(*case.inputs.values()).detach()
    wanted = by_hand(module, case)
    made = bcos_fx.bcosify(module, example_inputs=case.inputs, recipe="equivalent", **case.options)
    assert made.report.figures.verification is not None
    assert {row["verdict"] for row in made.report.figures.verification["comparisons"]} == {"equal"}
    torch.testing.assert_close(made(*case.inputs.values()), output)
    stored = from_bytes(to_bytes(made))
    for model in (module, made, stored):
        found = case.explained(model)
        contributions = wanted * case.inputs[case.start]
        # Of an encoded image, the 1 - x half is weighted by 0.
        shared = contributions.reshape(len(found), -1).sum(1)
        torch.testing.assert_close(found.contributions.reshape(len(found), -1).sum(1), shared)
        if found.weights.numel() == wanted.numel():
            torch.testing.assert_close(found.weights.reshape(wanted.shape), wanted)
        torch.testing.assert_close(found.output, chosen(output, case))
        torch.testing.assert_close(shared + found.constants.total(), chosen(output, case))
        assert found.complete


def check_at_b_2(case: Case) -> None:
    """Check that contributions add up to what a network gives at B = 2."""
    made = bcos_fx.bcosify(built(case), example_inputs=case.inputs, **case.options)
    output = made(*case.inputs.values()).detach()
    found = case.explained(made)
    total = found.contributions.reshape(len(found), -1).sum(1) + found.constants.total()
    torch.testing.assert_close(total, chosen(output, case))
    assert found.complete
