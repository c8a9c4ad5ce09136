"""Taking off what training wraps around a network or its parts: parallelism, compilation, averages, checkpointing."""

from __future__ import annotations

import copy

from torch import nn

from bcos_fx.errors import UsageError

# Class -> the attribute that holds the module inside. Classes are compared by name: most need no import to be known.
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.optim.swa_utils.AveragedModel": "module",
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": "_fsdp_wrapped_module",
    "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.CheckpointWrapper": "_checkpoint_wrapped_module",
}
_SEGMENTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def unwrap(module: nn.Module) -> nn.Module:
    """Return a network without wrappers around it or its parts, so that its parts have the names they had before.

    Args:
        module: left as it is. Where a part of it is wrapped, the result is a module over the same parameters and
            buffers in which the wrapper is left out; elsewhere it is the module inside, itself.

    Raises:
        UsageError: the module contains itself.
    """
    return _without_wrappers(module, {}, frozenset())


def without_wrappers(name: str) -> str:
    """Return a parameter's name without the parts that wrappers put into it, wherever they stand."""
    return ".".join(part for part in name.split(".") if part not in _SEGMENTS)


def _without_wrappers(module: nn.Module, done: dict[int, nn.Module], above: frozenset[int]) -> nn.Module:
    if id(module) in above:
        raise UsageError("the module contains itself", where=type(module).__name__)
    if id(module) not in done:
        inside = _inside(module)
        below = above | {id(module)}
        if inside is not None:
            done[id(module)] = _without_wrappers(inside, done, below)
        else:
            parts = {
                name: _without_wrappers(part, done, below) for name, part in module._modules.items() if part is not None
            }
            changed = any(part is not module._modules[name] for name, part in parts.items())
            compiled = vars(module).get("_compiled_call_impl") is not None
            done[id(module)] = _with_parts(module, parts) if changed or compiled else module
    return done[id(module)]


def _inside(module: nn.Module) -> nn.Module | None:
    """Return the module that a wrapper holds, or None if the module is not a wrapper."""
    for kind in type(module).__mro__:
        name = _WRAPPERS.get(f"{kind.__module__}.{kind.__qualname__}")
        if name is not None:
            inside = module._modules.get(name)
            return inside if inside is not None else vars(module).get(name)
    return None


def _with_parts(module: nn.Module, parts: dict[str, nn.Module]) -> nn.Module:
    """Return a module of the same class over the same tensors, with other parts, that runs as Python."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules) | parts
    twin.__dict__["_compiled_call_impl"] = None
    return twin
