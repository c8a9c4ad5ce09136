"""What is known about PyTorch's calls by name: how one is written in a graph, and what may not be in one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional

from bcos_fx.tracing.functional import copy_into, fill, set_item
from bcos_fx.tracing.memory import same_memory

# Python code that asks for these gets numbers that follow the input.
SIZE_READS = frozenset({"size", "numel", "nelement"})

GRADIENTS = frozenset({torch.autograd.grad, torch.autograd.backward, torch.Tensor.backward})
# Python code that asks for these would make the graph depend on the values in the input.
DATA_READS = frozenset(
    "item tolist numpy equal allclose is_nonzero __bool__ __int__ __float__ __complex__ __index__ __array__ "
    "__contains__ __dlpack__ __reduce_ex__".split()
)

# Of these, the ones that give one number, which a graph can check when it runs.
NUMBER_READS = frozenset("item __bool__ __int__ __float__ __index__ is_nonzero".split())

# These answer from the form of a tensor, which is the same for every input of its kind.
FORM_READS = frozenset(
    "dim ndimension get_device element_size stride storage_offset data_ptr untyped_storage storage result_type "
    "can_cast promote_types __format__ __repr__ __str__ __hash__ requires_grad_ "
    "has_names is_same_size is_floating_point is_complex is_contiguous is_tensor is_signed is_inference "
    "is_conj is_neg is_coalesced is_pinned is_shared is_set_to".split()
)

# New at every call, even without any argument that follows the input.
RANDOM = frozenset(
    "rand randn randint randperm rand_like randn_like randint_like normal bernoulli poisson multinomial "
    "bernoulli_ uniform_ normal_ random_ exponential_ geometric_ cauchy_ log_normal_".split()
)

# In place on the form only: other aliases of the data keep what they have.
FORM_CHANGES = frozenset({"unsqueeze_", "squeeze_", "transpose_", "t_", "swapaxes_", "swapdims_", "detach_"})

# These give the more tensors the longer a dimension is: unpacking them is a read of a shape.
PIECES = frozenset({"unbind", "split"})

_OPERATORS: dict[str, Any] = {
    name: getattr(operator, name)
    for name in ("add", "sub", "mul", "matmul", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge")
}
_OPERATORS |= {
    name: getattr(operator, name.strip("_") + suffix)
    for suffix, names in {
        "": "__add__ __sub__ __mul__ __matmul__ __pow__ __neg__ __abs__ __pos__ __eq__ __ne__ __lt__ __le__ __gt__ "
        "__ge__ __xor__ __invert__ __floordiv__ __truediv__ __mod__ __lshift__ __rshift__ __getitem__",
        "_": "__and__ __or__",
    }.items()
    for name in names.split()
}
_OPERATORS |= {"div": operator.truediv, "__div__": operator.truediv}

_SWAPPED: dict[str, Any] = {
    "__radd__": operator.add,
    "__rsub__": operator.sub,
    "__rmul__": operator.mul,
    "__rdiv__": operator.truediv,
    "__rtruediv__": operator.truediv,
    "__rfloordiv__": operator.floordiv,
    "__rpow__": operator.pow,
    "__rmod__": operator.mod,
    "__rmatmul__": operator.matmul,
    "__rand__": operator.and_,
    "__ror__": operator.or_,
    "__rxor__": operator.xor,
}

# By identity: some operators are reported by a wrapper whose name is another method's (``__pow__`` says ``pow``).
_METHODS = frozenset(
    method for name in dir(torch.Tensor) if callable(method := getattr(torch.Tensor, name)) and name != "__class__"
)

_REPLACED = {"copy_": copy_into, "fill_": fill, "__setitem__": set_item}

RecordedCall = tuple[str, Any, tuple[Any, ...], dict[str, Any]]


def graph_call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> RecordedCall:
    """Return node kind, target and arguments for a call of a PyTorch function, method or operator.

    Arithmetic on tensors becomes a function of the ``operator`` module however it was written, because PyTorch
    reports ``x + y`` and ``x.add(y)`` alike.
    """
    name = function.__name__
    if not is_method(function):
        return "call_function", function, args, kwargs
    if name in _SWAPPED:
        return "call_function", _SWAPPED[name], (args[1], args[0]), kwargs
    if name in _OPERATORS and not kwargs:
        return "call_function", _OPERATORS[name], args, kwargs
    return "call_method", name, args, kwargs


def torch_level(function: object) -> Any:
    """Return PyTorch's own function or method for an ATen operator, as exported programs call it.

    ``torch.ops.aten.conv2d.default`` is ``torch.conv2d``: one name for one thing. Operators without such a function
    come back as they are. Wherever the two took different arguments the finished graph would not repeat its output,
    which tracing checks.
    """
    if not isinstance(function, OpOverload) or function.namespace != "aten":
        return function
    name = function._schema.name.removeprefix("aten::")
    name = {"sym_size": "size", "sym_numel": "numel"}.get(name, name)
    if name in ("mT", "mH", "T", "H"):
        return getattr(torch.Tensor, name).__get__
    homes = (torch, torch._C._nn, torch.Tensor)
    return next((getattr(home, name) for home in homes if callable(getattr(home, name, None))), function)


def is_method(function: Callable[..., Any]) -> bool:
    """Return whether PyTorch reported a method of a tensor rather than a function."""
    return function in _METHODS


def is_in_place_call(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Return whether a call declares that it changes its first argument: by its name, or by ``inplace=True``."""
    name = function.__name__
    if name.startswith("__"):
        return name == "__setitem__" or (name.startswith("__i") and name not in ("__index__", "__int__", "__invert__"))
    return bool(kwargs.get("inplace")) or name.endswith("_")


def out_of_place(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> RecordedCall | None:
    """Return the call that computes what an in-place call leaves in its first argument; None if none is known."""
    name = function.__name__
    if kwargs.get("inplace"):
        return graph_call(function, args, kwargs | {"inplace": False})
    if name in _REPLACED:
        return "call_function", _REPLACED[name], args, {k: v for k, v in kwargs.items() if k != "non_blocking"}
    if name == "zero_":
        return "call_function", torch.zeros_like, args, kwargs
    plain = plain_form(function)
    return None if plain is None else graph_call(plain, args, kwargs)


def plain_form(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the out-of-place form of an in-place function or method by their names: ``add`` of ``add_``."""
    name = function.__name__
    bare = f"__{name[3:-2]}__" if name.startswith("__i") else name.removesuffix("_")
    homes = (torch.Tensor,) if is_method(function) else (torch, functional, torch._C._nn)
    return next((getattr(home, bare) for home in homes if callable(getattr(home, bare, None))), None)


def writes_itself(tensor: Tensor, index: Any, value: object) -> bool:
    """Return whether ``tensor[index] = value`` changes nothing: ``tensor[index] += 1`` ends with such a call."""
    if not isinstance(value, Tensor) or not same_memory(value, tensor):
        return False
    place = tensor[index]
    form = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in (place, value)]
    return form[0] == form[1]


def reads_form(op: str, target: object, args: tuple[Any, ...]) -> bool:
    """Return whether a node gives a tensor's size or place, and nothing of its values."""
    asked = args[1] if target is getattr else target if op == "call_method" else None
    return asked in SIZE_READS or asked in ("shape", "device", "dtype")
