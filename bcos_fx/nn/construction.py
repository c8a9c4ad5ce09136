"""How a layer was made: its constructor's arguments, read back from its attributes.

torch.nn's layers and ours keep each constructor argument as an attribute of the same name, or as the presence
of a parameter. That is enough to build the same layer again with one option changed, and to write a layer to a
file as plain data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bcos_fx.errors import UsageError

M = TypeVar("M", bound=nn.Module)

_IGNORED = frozenset({"self", "device", "dtype", "args", "kwargs"})
_PRESENCE: dict[tuple[type[nn.Module], str], Callable[[Any], Any]] = {
    (nn.MultiheadAttention, "bias"): lambda m: m.in_proj_bias is not None,
    (nn.MultiheadAttention, "add_bias_kv"): lambda m: m.bias_k is not None,
    (nn.PairwiseDistance, "p"): lambda m: m.norm,  # kept under another name
}


def constructor_options(module: nn.Module) -> dict[str, Any]:
    """Return the arguments that would construct a layer like this one, in the constructor's order.

    A class of a program's own may have a method ``constructor_options`` that returns them. Otherwise each is read from
    the attribute of its name; where that is one of the layer's tensors, and the argument has a default, it only gave
    the tensor's first values and is left out.

    Raises:
        UsageError: an argument cannot be read back from the layer.
    """
    own = getattr(type(module), "constructor_options", None)
    if callable(own):
        return dict(own(module))
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        superseded = parameter.default is None and not hasattr(module, name)  # an old name of another argument
        if name in _IGNORED or name.startswith("_") or variadic or superseded:
            continue
        value = _option(module, name)
        if isinstance(value, Tensor):
            _check_default(module, parameter)
        else:
            options[name] = value
    return options


def _check_default(module: nn.Module, parameter: inspect.Parameter) -> None:
    if parameter.default is parameter.empty:
        raise UsageError(
            f"{type(module).__name__} keeps a tensor under the name of its constructor's argument {parameter.name!r}, "
            "which has no default",
            hint="give the argument a default, or the class a method constructor_options that returns its arguments",
        )


def _option(module: nn.Module, name: str) -> Any:
    presence = _PRESENCE.get((type(module), name))
    if presence is not None:
        return presence(module)
    if name in ("bias", "gain") and name in module._parameters:
        return module._parameters[name] is not None
    if not hasattr(module, name):
        raise UsageError(
            f"{type(module).__name__} does not keep its constructor's argument {name!r}",
            hint=f"set self.{name} in the constructor, or give the class a method constructor_options",
        )
    return getattr(module, name)


def construct(cls: type[M], options: Mapping[str, Any]) -> M:
    """Construct a layer without allocating or initializing its tensors, where its class allows that."""
    accepted = inspect.signature(cls.__init__).parameters
    placement = {"device": torch.device("meta")} if "device" in accepted else {}
    return cls(**options, **placement)


def rebuilt(module: M, **changes: Any) -> M:
    """Return a layer like ``module`` with some constructor options changed.

    The result shares the Parameters and buffers of ``module`` that it still has; ``module`` stays as it is.
    """
    new = construct(type(module), constructor_options(module) | changes)
    adopt_tensors(new, module)
    return new.train(module.training)


def adopt_tensors(new: nn.Module, old: nn.Module) -> None:
    """Give ``new``, in place, the very Parameters and buffers of ``old`` that bear the same names."""
    for name, present in new._parameters.items():
        if present is not None and old._parameters.get(name) is not None:
            new._parameters[name] = old._parameters[name]
    for name, buffer in new._buffers.items():
        if buffer is not None and name in old._buffers:
            new._buffers[name] = old._buffers[name]
