"""Calls that are short for several others. They are recorded as those others, which rules and analysis speak of."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map

from bcos_fx.tracing.arguments import tensors
from bcos_fx.tracing.attention import PartContext, multi_head_attention
from bcos_fx.tracing.joining import JOINING
from bcos_fx.tracing.recurrent import pack_padded, pad_packed

Composite = Callable[..., Any]


def find(function: Callable[..., Any], part: PartContext, depends: Callable[[Tensor], bool]) -> Composite | None:
    """Return the function that computes what a PyTorch function or method does by several calls; None for others.

    The result of that function is NotImplemented where these arguments are better recorded as the call that they are.

    Args:
        function: what is called.
        part: names a part of a module.
        depends: tells whether a tensor is computed from the input.
    """
    if function is functional.multi_head_attention_forward:
        return functools.partial(multi_head_attention, part)
    if function in _affine():
        return functools.partial(_taken_apart, function, depends)
    if getattr(function, "__name__", None) in _PRODUCTS:
        return functools.partial(_of_two, function)
    return _composites().get(function)


@functools.cache
def _composites() -> dict[Callable[..., Any], Composite]:
    """Return all functions and methods of these names: PyTorch has most in several places, or as a method too."""
    homes = (torch, torch.Tensor, functional, torch.linalg, torch.special, torch._C._nn)
    # No mask fits a nested tensor: an encoder then goes the ordinary way, which computes the same.
    composites: dict[Callable[..., Any], Composite] = {
        torch._nested_tensor_from_mask_left_aligned: lambda input, mask: False
    }
    for name, composite in {**_ARITHMETIC, **JOINING}.items():
        composites |= {getattr(home, name): composite for home in homes if hasattr(home, name)}
    return composites


# ---------------------------------------------------------------- sums and products


@functools.cache
def _affine() -> Mapping[Callable[..., Any], tuple[Mapping[str, int], int | None]]:
    """Return, of each layer's call, the places of a norm's scale and a bias.

    Beside them stands how many dimensions follow theirs; None: all after dimension 1.
    """
    places: dict[str, tuple[Mapping[str, int], int | None]] = {
        f"conv{turned}{rank}d": ({"bias": 2}, rank) for turned in ("", "_transpose") for rank in (1, 2, 3)
    }
    places |= {"linear": ({"bias": 2}, 0), "group_norm": ({"weight": 2, "bias": 3}, None)}
    places |= {"layer_norm": ({"weight": 2, "bias": 3}, 0), "rms_norm": ({"weight": 2}, 0)}
    homes = (torch, functional, torch._C._nn)
    found = {getattr(home, name): place for name, place in places.items() for home in homes if hasattr(home, name)}
    # torch's own functions of these two names take their arguments in another order; functional's call them.
    both = {"weight": 3, "bias": 4}
    return found | {functional.batch_norm: (both, None), functional.instance_norm: (both, None)}


def _taken_apart(function: Composite, depends: Callable[[Tensor], bool], *args: Any, **kwargs: Any) -> Any:
    """Add a bias that is computed from the input as a term of a sum, and multiply by such a scale of a norm."""
    places, after = _affine()[function]
    found = {name: kwargs.get(name, args[at] if at < len(args) else None) for name, at in places.items()}
    if not any(value is not None and depends(value) for value in found.values()):
        return NotImplemented
    kept = [None if at in places.values() else value for at, value in enumerate(args)]
    result: Tensor = function(*kept, **{name: None if name in found else value for name, value in kwargs.items()})
    for name, value in found.items():
        if value is not None:
            each = value[(..., *[None] * (result.dim() - 2 if after is None else after))]
            result = result * each if name == "weight" else result + each
    return result


_PRODUCTS = frozenset(
    "matmul __matmul__ linalg_matmul bmm mm dot vdot linalg_vecdot inner outer ger kron tensordot einsum "
    "bilinear".split()
)


def _of_two(function: Composite, *args: Any, **kwargs: Any) -> Any:
    """Make two values of one that is multiplied with itself, so that one of them can be the other's weight."""
    given, seen = tensors((args, kwargs)), set[int]()
    if len({id(tensor) for tensor in given}) == len(given) or given[0].dtype is torch.bool:
        return NotImplemented

    def named(value: object) -> object:
        if isinstance(value, Tensor) and id(value) in seen:
            return torch.positive(value)
        seen.add(id(value))
        return value

    args, kwargs = tree_map(named, (args, kwargs))
    return function(*args, **kwargs)


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + _scaled(tensor1 * tensor2, value)


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    return input + _scaled(tensor1 / tensor2, value)


def _added_to(product: Callable[[Tensor, Tensor], Tensor]) -> Composite:
    """Make the function beta * input + alpha * product(first, second)."""

    def add(input: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
        scaled = _scaled(product(first, second), alpha)
        if isinstance(beta, int | float) and beta == 0:  # the input may hold anything then, NaN too
            return scaled
        return _scaled(input, beta) + scaled

    def call(input: Tensor, *args: Tensor, **kwargs: Any) -> Tensor:
        # Each function of this family names its factors differently: addmm(mat1, mat2), addmv(mat, vec), addr(vec1,
        # vec2).
        named = [kwargs.pop(name) for name in _FACTORS if name in kwargs]
        return add(input, *args, *named, **kwargs)

    return call


_FACTORS = ("mat1", "mat", "batch1", "vec1", "mat2", "vec", "batch2", "vec2")


def _multi_dot(tensors: Tensor | Sequence[Tensor], *more: Tensor) -> Tensor:
    factors = (tensors, *more) if isinstance(tensors, Tensor) else tuple(tensors)
    return functools.reduce(torch.matmul, factors)


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    return (functional.normalize(x1, dim=dim, eps=eps) * functional.normalize(x2, dim=dim, eps=eps)).sum(dim)


# ---------------------------------------------------------------- activations


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


def _clamp(input: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Any:
    """Leave a clamp that lets 0 pass; of others, such as ``x.clamp(min=1e-6)``, the bounds are constants."""
    if _is_number_or_none(min) and _is_number_or_none(max) and (min or 0) <= 0 <= (max or 0):
        return NotImplemented
    bounded = input if min is None else torch.where(input < min, min, input)
    return bounded if max is None else torch.where(bounded > max, max, bounded)


def _is_number_or_none(bound: object) -> bool:
    return bound is None or type(bound) in (int, float)


def _fill_diagonal(input: Tensor, fill_value: float, wrap: bool = False) -> Any:
    if wrap or input.dim() != 2:
        return NotImplemented
    return input.masked_fill(torch.eye(*input.shape, dtype=torch.bool, device=input.device), fill_value)


# ---------------------------------------------------------------- statistics and pooling


def _with_mean(name: str) -> Composite:
    """Make the function that gives a statistic of a tensor and its mean."""

    def both(input: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        statistic: Tensor = getattr(input, name)(*args, **kwargs)
        dim = kwargs.get("dim", args[0] if args and not isinstance(args[0], bool) else None)
        return statistic, input.mean(dim, keepdim=kwargs.get("keepdim", False))

    return both


def _lp_pool(pool: Composite, dimensions: int) -> Composite:
    """Make the function (sum over a window of x^p)^(1/p)."""

    def lp_pool(
        input: Tensor, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False
    ) -> Tensor:
        sizes = (kernel_size,) * dimensions if isinstance(kernel_size, int) else tuple(kernel_size)
        averaged: Tensor = pool(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
        scaled: Tensor = averaged.sign() * functional.relu(averaged.abs()) * math.prod(sizes)
        return scaled.pow(1.0 / norm_type)

    return lp_pool


def _upsample(mode: str, align_corners: bool | None) -> Composite:
    def upsample(input: Tensor, size: Any = None, scale_factor: Any = None) -> Tensor:
        return functional.interpolate(input, size, scale_factor, mode=mode, align_corners=align_corners)

    return upsample


def _scaled(value: Tensor, factor: Tensor | float) -> Tensor:
    return value if isinstance(factor, int | float) and factor == 1 else value * factor


_ARITHMETIC: dict[str, Composite] = {
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "addmm": _added_to(torch.matmul),
    "addmv": _added_to(torch.matmul),
    "baddbmm": _added_to(torch.matmul),
    "addbmm": _added_to(lambda first, second: torch.bmm(first, second).sum(0)),
    "addr": _added_to(torch.outer),
    "lerp": lambda input, end, weight: input + weight * (end - input),
    "ldexp": lambda input, other: input * torch.exp2(other),
    "chain_matmul": _multi_dot,
    "multi_dot": _multi_dot,
    "cosine_similarity": _cosine_similarity,
    "glu": _glu,
    "_pack_padded_sequence": pack_padded,
    "_pad_packed_sequence": pad_packed,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda input, min: torch.clamp(input, min=min),
    "clamp_max": lambda input, max: torch.clamp(input, max=max),
    "threshold": lambda input, threshold, value, inplace=False: torch.where(input <= threshold, value, input),
    "fill_diagonal_": _fill_diagonal,
    "var_mean": _with_mean("var"),
    "std_mean": _with_mean("std"),
    "lp_pool1d": _lp_pool(functional.avg_pool1d, 1),
    "lp_pool2d": _lp_pool(functional.avg_pool2d, 2),
    "lp_pool3d": _lp_pool(functional.avg_pool3d, 3),
    "upsample_nearest": _upsample("nearest", None),
    "upsample_bilinear": _upsample("bilinear", True),
}
