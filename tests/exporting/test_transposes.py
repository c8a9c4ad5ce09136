"""Each transpose, written by ordinary operations, against the backward pass that PyTorch computes itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bcos_fx.exporting.transposes import decompositions

TABLE = decompositions()


class Replacing(TorchDispatchMode):
    """Computes by the replacements, and notes which it used."""

    def __init__(self) -> None:
        super().__init__()
        self.used: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = TABLE.get(func)
        if replacement is None:
            return func(*args, **(kwargs or {}))
        self.used.add(str(func).removeprefix("aten.").removesuffix("_backward.default"))
        return replacement(*args, **(kwargs or {}))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


LINE, PLANE, SPACE = random(2, 3, 9), random(2, 3, 7, 10), random(2, 3, 5, 6, 7)
CASES: dict[str, list[tuple[Tensor, Callable[[Tensor], Tensor]]]] = {
    "convolution": [
        (PLANE, lambda x: F.conv2d(x, random(4, 3, 3, 2), None, (2, 3), 1, (2, 1))),
        (PLANE, lambda x: F.conv2d(x, random(6, 1, 3, 3), None, 2, 1, groups=3)),
        (PLANE, lambda x: F.conv_transpose2d(x, random(3, 4, 3, 2), None, (2, 3), 1, (1, 0))),
        (LINE, lambda x: F.conv1d(x, random(4, 3, 4), None, 3)),
        (SPACE, lambda x: F.conv3d(x, random(4, 3, 2, 2, 2), None, 2)),
    ],
    "max_pool2d_with_indices": [
        (PLANE, lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True)),
        (LINE, lambda x: F.max_pool1d(x, 3, 1)),
    ],
    "max_pool3d_with_indices": [(SPACE, lambda x: F.max_pool3d(x, 2, 1))],
    "adaptive_max_pool2d": [(PLANE, lambda x: F.adaptive_max_pool2d(x, 3))],
    "adaptive_max_pool3d": [(SPACE, lambda x: F.adaptive_max_pool3d(x, 2))],
    "avg_pool2d": [
        (PLANE, lambda x: F.avg_pool2d(x, 3, 2, 1)),
        (PLANE, lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)),
        (PLANE, lambda x: F.avg_pool2d(x, (2, 3), divisor_override=5)),
        (PLANE[0], lambda x: F.avg_pool2d(x, 2)),
        (LINE, lambda x: F.avg_pool1d(x, 3, 2, 1)),
    ],
    "avg_pool3d": [(SPACE, lambda x: F.avg_pool3d(x, 2, 1, 1, count_include_pad=False))],
    "_adaptive_avg_pool2d": [(PLANE, lambda x: F.adaptive_avg_pool2d(x, (3, 4)))],
    "_adaptive_avg_pool3d": [(SPACE, lambda x: F.adaptive_avg_pool3d(x, 2))],
    "reflection_pad1d": [(LINE, lambda x: F.pad(x, (1, 2), "reflect"))],
    "reflection_pad2d": [(PLANE, lambda x: F.pad(x, (1, 2, 3, 0), "reflect"))],
    "reflection_pad3d": [(SPACE, lambda x: F.pad(x, (1, 2, 3, 0, 1, 1), "reflect"))],
    "replication_pad1d": [(LINE, lambda x: F.pad(x, (1, 2), "replicate"))],
    "replication_pad2d": [(PLANE, lambda x: F.pad(x, (1, 2, 3, 0), "replicate"))],
    "replication_pad3d": [(SPACE, lambda x: F.pad(x, (1, 2, 3, 0, 1, 1), "replicate"))],
    "upsample_nearest1d": [(LINE, lambda x: F.interpolate(x, size=14))],
    "upsample_nearest2d": [(PLANE, lambda x: F.interpolate(x, size=(13, 21)))],
    "upsample_nearest3d": [(SPACE, lambda x: F.interpolate(x, size=(7, 8, 3)))],
    "upsample_linear1d": [(LINE, lambda x: F.interpolate(x, size=14, mode="linear"))],
    "upsample_bilinear2d": [
        (PLANE, lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear")),
        (PLANE, lambda x: F.interpolate(x, size=(4, 13), mode="bilinear", align_corners=True)),
    ],
    "upsample_trilinear3d": [(SPACE, lambda x: F.interpolate(x, size=(7, 8, 3), mode="trilinear"))],
    "upsample_bicubic2d": [(PLANE, lambda x: F.interpolate(x, size=(9, 5), mode="bicubic", align_corners=True))],
    "_upsample_nearest_exact1d": [(LINE, lambda x: F.interpolate(x, size=14, mode="nearest-exact"))],
    "_upsample_nearest_exact2d": [(PLANE, lambda x: F.interpolate(x, size=(13, 21), mode="nearest-exact"))],
    "_upsample_nearest_exact3d": [(SPACE, lambda x: F.interpolate(x, size=(7, 8, 3), mode="nearest-exact"))],
    "_upsample_bilinear2d_aa": [(PLANE, lambda x: F.interpolate(x, size=(4, 5), mode="bilinear", antialias=True))],
    "_upsample_bicubic2d_aa": [(PLANE, lambda x: F.interpolate(x, size=(4, 5), mode="bicubic", antialias=True))],
}


def test_every_replacement_has_a_case() -> None:
    replaced = {str(operation).removeprefix("aten.").removesuffix("_backward.default") for operation in TABLE}
    assert replaced == set(CASES)


@pytest.mark.parametrize(
    ("name", "x", "function"),
    [
        pytest.param(name, *case, id=f"{name}-{place}")
        for name, cases in CASES.items()
        for place, case in enumerate(cases)
    ],
)
def test_a_transpose_is_the_backward_pass(name: str, x: Tensor, function: Callable[[Tensor], Tensor]) -> None:
    leaf = x.clone().requires_grad_()
    value = function(leaf)
    gradient = random(*value.shape)
    (expected,) = torch.autograd.grad(value, leaf, gradient, retain_graph=True)
    with Replacing() as mode:
        (found,) = torch.autograd.grad(value, leaf, gradient)
    assert mode.used == {name}
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
