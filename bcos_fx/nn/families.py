"""Families of layers that a recipe can choose B for, beside layers that it names."""

from __future__ import annotations

import fnmatch

from torch import nn

FAMILIES = ("depthwise", "grouped", "pointwise")
"""Convolutions with a group per input channel; with several groups; with a kernel of one position and one group."""


def family_of(layer: nn.Module) -> str | None:
    """Return the family in :data:`FAMILIES` of a convolution, B-cos or plain; None of other layers and kernels."""
    groups, inputs, kernel = (getattr(layer, name, None) for name in ("groups", "in_channels", "kernel_size"))
    if not isinstance(groups, int) or not isinstance(inputs, int) or not isinstance(kernel, tuple):
        return None
    if groups > 1:
        return "depthwise" if groups == inputs else "grouped"
    return "pointwise" if set(kernel) == {1} else None


def fits(pattern: str, path: str, layer: nn.Module) -> bool:
    """Return whether a pattern of module names, or the name of a family, names a layer."""
    return fnmatch.fnmatchcase(path, pattern) or pattern == family_of(layer)
