"""The module side of a recording: our own copy, which modules stay whole, and leaving everything as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from bcos_fx.errors import TraceError
from bcos_fx.tracing.arguments import oddity
from bcos_fx.tracing.closures import rebind
from bcos_fx.tracing.recorder import Recorder
from bcos_fx.tracing.recurrent import write_out
from bcos_fx.tracing.scalars import ForeignScalarError, plain_scalar
from bcos_fx.tracing.whole import Exactly

_CONTAINERS = ("torch.nn.modules.container", "torch.nn.modules.transformer")
_COMPOSITES = (
    *(nn.GLU, nn.MultiheadAttention, nn.Threshold, nn.CosineSimilarity, nn.PairwiseDistance),
    *(nn.LPPool1d, nn.LPPool2d, nn.LPPool3d),
)
_PREPARED = ("torch.ao.quantization.stubs", "torch.ao.nn.intrinsic.modules.fused")
"""Marks of where a network may be quantized, and fused layers, which compute in floating point until it is."""

M = TypeVar("M", bound=nn.Module)

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")

Leaves = Collection[type | str | Exactly]
"""Classes whose instances stay one node: with their subclasses; or exactly one class, or those of a qualified name."""


def own_copy(module: nn.Module) -> nn.Module:
    """Return a deep copy of `module`, in eval mode and without what it cached in eval mode before.

    Raises:
        TraceError: for a module that cannot be copied.
    """
    module = getattr(module, "_orig_mod", module) if type(module).__name__ == "OptimizedModule" else module
    try:
        copied = deep_copy(module)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise TraceError(
            f"the module cannot be copied: {error}", hint="remove what cannot be deep-copied from its attributes"
        ) from error
    _settle_options(copied)
    write_out(copied)
    copied.train()  # levit, tiny_vit and others drop the tensors they cached for eval here
    return copied.eval()


def _settle_options(module: nn.Module) -> None:
    """Turn NumPy's numbers among the options of PyTorch's layers into plain ones, in place."""
    for part in module.modules():
        if type(part).__module__.startswith("torch.nn.modules."):
            for name, value in vars(part).items():
                if type(value).__module__ == "numpy":
                    with suppress(ForeignScalarError):
                        part.__dict__[name] = plain_scalar(value)


def deep_copy(module: M, shared: Mapping[int, Tensor] | None = None) -> M:
    """Return a deep copy of a module; running it leaves no trace in the original.

    Args:
        module: left as it is.
        shared: id of a tensor of the module -> the tensor that the copy holds in its place, itself or another one.

    Tensors that were computed are copied detached, as they are now, wherever the module keeps them: what weight_norm
    and pruning leave in it, or what a forward cached. PyTorch itself copies none that has a gradient history.
    """
    copies: dict[int, Any] = dict(shared or {})
    with _Detached():
        copied = copy.deepcopy(module, copies)
    rebind(copied, copies)
    return silence_graph_modules(copied)


class _Detached(TorchFunctionMode):
    """While this lasts, deep copies of tensors with a gradient history are made without the history."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__ or args[0].is_leaf:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        return memo.setdefault(id(tensor), tensor.detach().clone())


def silence_graph_modules(module: M) -> M:
    """Keep graph modules from printing their code to stderr where they fail, in place, and return the module.

    Whether an input suits a network is found by trying, so failing is not an error. Recompiling a graph undoes this.
    """
    for part in module.modules():
        if isinstance(part, GraphModule):
            type(part).__call__ = nn.Module.__call__  # type: ignore[method-assign]  # a class of this instance alone
    return module


class Alone(nn.Module):
    """A container for a module that stays one node: a graph calls the parts of its root, never the root itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.layer(*args, **kwargs)


def make_root(module: nn.Module, leaf_modules: Leaves) -> nn.Module:
    """Return a module that a graph can be made of: the module, or a container with the module in it."""
    return Alone(module).eval() if is_leaf("", module, leaf_modules) else module


def check_parts(module: nn.Module) -> None:
    """Check that every part of a module is one that can be traced at all.

    Raises:
        TraceError: for TorchScript and quantized modules, and for parameters that are sparse, quantized or complex.
    """
    for path, part in module.named_modules():
        where = f"module {path!r} ({type(part).__name__})"
        if isinstance(part, torch.jit.ScriptModule):
            raise TraceError(
                "a TorchScript module cannot be traced", where=where, hint="give the Python module it was made from"
            )
        home = type(part).__module__
        in_floating_point = home.startswith(_PREPARED) or type(part).__name__ == "FloatFunctional"
        if home.startswith(("torch.ao.", "torch.nn.quantized", "torch.nn.intrinsic")) and not in_floating_point:
            raise TraceError("a quantized module cannot be traced", where=where, hint="give the floating point module")
        for name, tensor in (*part._parameters.items(), *part._buffers.items()):
            if tensor is None or isinstance(tensor, (UninitializedParameter, UninitializedBuffer)):
                continue
            reason = oddity(tensor) or ("complex" if tensor.is_complex() and name in part._parameters else None)
            if reason is not None:
                raise TraceError(
                    f"the {'parameter' if name in part._parameters else 'buffer'} {name!r} is {reason}",
                    where=where,
                    hint="B-cos layers know dense tensors of real numbers only: rewrite that part with such",
                )


def hooked_backward(module: nn.Module) -> list[str]:
    """Name the parts of a module that have hooks on their backward pass."""
    return [
        f"module {path!r} ({type(part).__name__}), which has a backward hook"
        for path, part in module.named_modules()
        if part._backward_hooks or part._backward_pre_hooks
    ]


def qualified_name(kind: type) -> str:
    """Return the full name of a class, which identifies it without an import."""
    return f"{kind.__module__}.{kind.__qualname__}"


def is_leaf(path: str, module: nn.Module, leaf_modules: Leaves) -> bool:
    """Return whether a module stays one node: a layer of PyTorch or ours, of exactly this class and without hooks.

    Other modules stay whole where ``leaf_modules`` names their class, its qualified name, or a pattern of their name.
    """
    kind = type(module)
    # Hooks and a forward of the instance's own may compute anything, so such a layer is traced through.
    if "forward" in vars(module) or any(getattr(module, hooks) for hooks in _HOOKS):
        return False
    home = kind.__module__
    is_torchs = home.startswith("torch.nn.modules.") and home not in _CONTAINERS and kind not in _COMPOSITES
    patterns = (leaf for leaf in leaf_modules if isinstance(leaf, str))
    exact = qualified_name(kind) in leaf_modules or Exactly(kind) in leaf_modules
    named = exact or any(fnmatchcase(path, pattern) for pattern in patterns)
    classes = tuple(leaf for leaf in leaf_modules if isinstance(leaf, type))
    return is_torchs or named or home.startswith("bcos_fx.nn") or isinstance(module, classes)


@contextmanager
def instrument(root: nn.Module, recorder: Recorder, leaf_modules: Leaves) -> Iterator[None]:
    """While this lasts, every module of `root` reports its calls to `recorder`. `root` must be our own copy."""
    before: list[tuple[nn.Module, Callable[..., Any] | None]] = []
    try:
        for path, module in root.named_modules():
            whole = is_leaf(path, module, leaf_modules)
            before.append((module, vars(module).get("forward")))
            module.forward = _reporting(recorder, path, module, module.forward, whole)
        yield
    finally:
        for module, forward in before:
            del module.forward
            if forward is not None:
                module.forward = forward


def _reporting(
    recorder: Recorder, path: str, module: nn.Module, forward: Callable[..., Any], whole: bool
) -> Callable[..., Any]:
    registered = _identities(module) if whole else []

    def leaf(*args: Any, **kwargs: Any) -> Any:
        # With other tensors in the place of its own (torch.func.functional_call) a layer is what it does to them.
        if _identities(module) != registered:
            return inner(*args, **kwargs)
        return recorder.call_leaf(path, module, forward, args, kwargs)

    def inner(*args: Any, **kwargs: Any) -> Any:
        with recorder.inside(path, type(module).__name__):
            return forward(*args, **kwargs)

    return leaf if whole else inner


def _identities(module: nn.Module) -> list[int]:
    return [id(tensor) for tensor in (*module.parameters(), *module.buffers())]


@contextmanager
def keep_modes(module: nn.Module) -> Iterator[None]:
    """Put every part back into train or eval mode afterwards, without a call of ``train()``, which may do more."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def keep_buffers(module: nn.Module) -> Iterator[None]:
    """Put the buffers back afterwards: the same tensors in the same places with the same values."""
    places = [(part, dict(part._buffers)) for part in module.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for part, buffers in places:
            part._buffers.clear()
            part._buffers.update(buffers)
        for buffer, value in values:
            buffer.detach().copy_(value)
