"""When the forward of a view may stand for the network's own, which costs as much again.

What sums are compared with is what the network's own forward returns, and never what its view computes. A view runs the
same layers in the same order, so that the two are equal to the last bit wherever a frozen layer computes its value as
its layer does. Where they were seen to be, for inputs of the same form and with the same code, the view's forward is
the network's own, and the network is not run beside it again. Code of others in it, such as a hook, could tell the two
runs apart, and then both are always made.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def form_of_run(network: nn.Module, inputs: Sequence[Any]) -> Hashable | None:
    """Return what decides which operations a run of a network consists of, for the same graph.

    Args:
        network: in eval mode.
        inputs: that it is run on; their numbers do not matter.

    Returns:
        The code of all parts, autocast, and the form of the inputs; None where hooks, compilation or a forward of one
        module's own take part.
    """
    modules = list(network.modules())
    if any(getattr(torch_module, f"_global{name}") for name in _HOOKS) or any(map(_is_altered, modules)):
        return None
    code = tuple((type(module).__call__, type(module).forward) for module in modules)
    form = tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else type(x) for x in inputs)
    kinds = {x.device.type for x in inputs if isinstance(x, Tensor)}
    return code, form, tuple(sorted((kind, torch.is_autocast_enabled(kind)) for kind in kinds))


def _is_altered(module: nn.Module) -> bool:
    own = vars(module)
    return any(own.get(name) for name in (*_HOOKS, "forward", "_compiled_call_impl"))
