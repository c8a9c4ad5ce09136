"""Running a network that names float32 in float64, by reading float64 where it says float32.

A network that writes ``x.float()`` or makes a state of zeros has one precision: in float64 it raises. In float32 alone
an error of 1e-6 cannot be told from rounding. Inside :class:`Widened` its code runs as it stands, believing that it is
in float32, on float64 numbers. What it makes without the input (a table, zeros) stays the float32 number that it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bcos_fx.tracing.arguments import tensors
from bcos_fx.tracing.operations import is_in_place_call

_FLAG = "_depends_on_the_input"
_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
_WIDE: dict[Any, Callable[..., Any]] = {Tensor.float: Tensor.double}


class Widened(TorchFunctionMode):
    """While this lasts, calls on values of the input compute in float64 and say float32.

    Args:
        inputs: tensors whose values are the input's; integers among them are followed.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        for tensor in inputs:
            _flag(tensor)

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # The forward must go on believing that it is in float32, or it would take another branch.
        if func == _DTYPE:
            return torch.float32 if func(*args) == torch.float64 else func(*args)
        if not any(map(_is_followed, tensors((args, kwargs)))):
            return func(*args, **kwargs)
        # A tensor that is written to keeps its identity; a widened copy would take the change with it.
        written = tensors(args)[:1] if is_in_place_call(func, kwargs) else []
        args, kwargs = _wide(args, written), _wide(kwargs, written)
        result = _WIDE.get(func, func)(*args, **kwargs)
        return result if written and result is written[0] else _followed(result)


def _flag(tensor: Tensor) -> None:
    setattr(tensor, _FLAG, True)


def _is_followed(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float64 or _FLAG in vars(tensor)


def _wide(value: object, written: list[Tensor]) -> Any:
    """Put float64 in the place of float32, in tensors and as a dtype."""
    if isinstance(value, Tensor):
        return (
            value.double() if value.dtype == torch.float32 and not any(value is other for other in written) else value
        )
    if isinstance(value, tuple | list) and type(value) in (tuple, list):
        return type(value)(_wide(item, written) for item in value)
    if isinstance(value, dict):
        return {key: _wide(item, written) for key, item in value.items()}
    named = value is torch.FloatTensor or (isinstance(value, torch.dtype) and value == torch.float32)
    return torch.float64 if named else value


def _followed(value: object) -> Any:
    if isinstance(value, Tensor):
        wide = value.double() if value.dtype == torch.float32 else value
        _flag(wide)
        return wide
    if isinstance(value, tuple | list):
        items = [_followed(item) for item in value]
        return type(value)(items) if type(value) in (tuple, list) else value
    return value
