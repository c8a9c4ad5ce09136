"""Other people's modules for stochastic depth, as :class:`bcos_fx.nn.DropPath`, so that a graph can hold them.

In eval mode they are the identity and leave nothing in a graph; what they do in train mode would be lost. timm,
torchvision, transformers and many others have a class each. They are known by what they do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bcos_fx.errors import FORWARD_ERRORS
from bcos_fx.nn import DropPath
from bcos_fx.seeding import preserved

_SAMPLES, _RUNS = 2048, 128
_DEVIATIONS = 5  # of a binomial share, within which a probability counts as the observed one
_ROUNDING = 1e-5

Mode = Literal["row", "batch"]
_MODES: tuple[Mode, ...] = ("row", "batch")


def replace_drop_paths(module: nn.Module) -> None:
    """Replace modules that drop paths in train mode by our own, in place; the module is in eval mode."""
    replacements: dict[nn.Module, DropPath | None] = {}
    with preserved(()), torch.no_grad():
        for part in module.modules():
            for name, child in part._modules.items():
                if child is None or not _may_drop(child):
                    continue
                if child not in replacements:
                    replacements[child] = _drop_path(child)
                part._modules[name] = replacements[child] or child


def path_of(run: Callable[[Tensor], Tensor], shape: tuple[int, ...], literals: Sequence[Any]) -> DropPath | None:
    """Return what does the same as some code does to tensors of a shape; None where it does something else.

    Args:
        run: the code, which draws random numbers.
        shape: (N, ...) of what it takes.
        literals: what is written down in it, its probability among that.
    """
    # In [1, 2), so that the factor can be read off by a division.
    x = torch.rand(shape) + 1
    try:
        with torch.no_grad():
            by = torch.stack([(run(x) / x).reshape(len(x), -1) for _ in range(2 * _RUNS)])
    except FORWARD_ERRORS:  # the code does not take other inputs, and is traced as it is
        return None
    factors = _one_factor(by)
    at_once = len(x) > 1 and bool((factors == factors[:, :1]).all())
    drawn = factors[:, :1] if at_once else factors
    return _of_factors(_shares(literals), drawn.reshape(1, -1), _MODES[at_once])


def _may_drop(module: nn.Module) -> bool:
    """Return whether a module has no parts, and a probability among its attributes."""
    foreign = not type(module).__module__.startswith(("torch.nn.", "bcos_fx."))
    hooked = "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks
    empty = not (module._modules or module._parameters or module._buffers)
    return foreign and empty and not hooked and bool(_shares(vars(module).values()))


def _shares(values: Iterable[Any]) -> list[float]:
    """Return the probabilities of 0 that some values may give: one may be that to drop a path, or that to keep it."""
    numbers = [value for value in values if isinstance(value, float) and 0 < value < 1]
    return [*numbers, *(1 - value for value in numbers)]


def _drop_path(module: nn.Module) -> DropPath | None:
    """Return what does the same; None where the module does something else."""
    torch.manual_seed(0)
    module.train()
    with suppress(*FORWARD_ERRORS):
        for mode in _MODES:
            # Of several ranks: what drops whole samples of one rank and single elements of another is not a DropPath.
            factors = torch.stack([_factors(module, mode, rank) for rank in (2, 3, 4)])
            layer = _of_factors(_shares(vars(module).values()), factors, mode)
            if layer is not None and _is_identity(module):
                layer.__dict__.update({name: value for name, value in vars(module).items() if name not in vars(layer)})
                return layer.eval()
    module.eval()
    return None


def _factors(module: nn.Module, mode: Mode, rank: int) -> Tensor:
    """Return what a module multiplied samples by, often enough; NaN where it is not one number for a sample."""
    x = torch.rand(_SAMPLES if mode == "row" else 2, *(2, 3, 2)[: rank - 1]) + 1
    if mode == "row":
        by = (module(x) / x).flatten(1)
    else:
        by = torch.stack([(module(x) / x).flatten() for _ in range(_RUNS)])
    return _one_factor(by)


def _one_factor(by: Tensor) -> Tensor:
    """Return the number that is the same along the last dimension, and NaN where there is none."""
    even = (by - by[..., :1]).abs().amax(-1) <= _ROUNDING
    return torch.where(even, by[..., 0], torch.nan)


def _of_factors(shares: Sequence[float], factors: Tensor, mode: Mode) -> DropPath | None:
    """Find which of some shares is the probability, for factors (ranks, draws)."""
    dropped = (factors == 0).double().mean(1)
    deviation = (dropped * (1 - dropped) / factors.shape[1]).sqrt()
    for p in shares:
        for scale in (True, False):
            factor = 1 / (1 - p) if scale else 1.0
            alike = (factors == 0) | ((factors - factor).abs() <= _ROUNDING * factor)
            if bool(alike.all()) and bool(((dropped - p).abs() <= _DEVIATIONS * deviation).all()):
                return DropPath(p, mode, scale_by_keep=scale)
    return None


def _is_identity(module: nn.Module) -> bool:
    x = torch.rand(2, 3, 4)
    return torch.equal(module.eval()(x), x)
