"""Patch embeddings are widened through every way to rearrange pixels, and through nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx

RULE = "first-layer-widened-past-rearrangement"
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
M, S = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))


class Patches(nn.Module):
    """Pixels rearranged, a first layer, and a head on the mean of its outputs."""

    def __init__(self, rearranged: Callable[[Tensor], Tensor], layer: nn.Module) -> None:
        super().__init__()
        self.rearranged, self.layer, self.head = rearranged, layer, nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.rearranged(x))
        pooled = y.mean((2, 3)) if isinstance(self.layer, nn.Conv2d) else y.flatten(1, -2).mean(1)
        z: Tensor = self.head(pooled)
        return z


def by_sizes(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(n, (h // 4) * (w // 4), 16 * c)


def channels_first(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def einops(x: Tensor) -> Tensor:
    rearrange = pytest.importorskip("einops").rearrange
    y: Tensor = rearrange(x, "b c (h p) (w q) -> b h w (p q c)", p=4, q=4)
    return y


def focus(x: Tensor) -> Tensor:
    return torch.cat([x[..., a::4, b::4] for a in range(4) for b in range(4)], 1).flatten(2).transpose(1, 2)


REARRANGEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sizes": by_sizes,
    "channels first": channels_first,
    "einops": einops,
    "channels written down": lambda x: x.reshape(-1, 3, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, 48),
    "channels inferred": lambda x: x.reshape(2, -1, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, -1),
    "unfolded": lambda x: F.unfold(x, 4, stride=4).transpose(1, 2),
    "unfolded, with overlap": lambda x: F.unfold(x, 4, stride=2).mT,
    "unshuffled": lambda x: F.pixel_unshuffle(x, 4).flatten(2).mT,
    "windows": lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3),
    "slices": focus,
    "rows of the image": lambda x: x.permute(0, 2, 3, 1).reshape(x.shape[0], 16, -1),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "flipped": lambda x: by_sizes(x.flip(3)),
    "summed along rows": lambda x: by_sizes(x.cumsum(3)),
}


def built(rearranged: Callable[[Tensor], Tensor], layer: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    made = layer if layer is not None else nn.Linear(rearranged(x).shape[-1], 12)
    return Patches(rearranged, made).double().eval()


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def convert(module: nn.Module, **options: Any) -> bcos_fx.convert.BcosNetwork:
    return bcos_fx.bcosify(module, example_inputs=images(), mean=MEAN, std=STD, **options)


@pytest.mark.parametrize("name", list(REARRANGEMENTS))
def test_a_patch_embedding_is_widened_and_nothing_dead_stays(name: str) -> None:
    module = built(REARRANGEMENTS[name])
    network = convert(module, recipe="equivalent")
    assert RULE in network.report.rule_counts()
    layer: Any = network.get_submodule("layer")
    assert layer.in_features == 2 * module.layer.in_features  # type: ignore[union-attr, operator]
    assert "input_decoding" not in {row.op for row in network.report.nodes}
    assert all(node.users or node.op == "output" for node in network.graph.nodes)
    x = images()
    expected = module((x - M) / S)
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", ["raw", "cosine", "unit"])
def test_the_scale_raw_alone_sees_the_root_of_two(scale: str) -> None:
    """At B = 2 the widened layer is that of w on x', but for raw, whose |[w/2, -w/2]| = |w|/sqrt(2) counts."""
    module = built(by_sizes)
    network = convert(module, recipe="equivalent")
    x = (images() - M) / S
    options: dict[str, Any] = {"b": {"layer": 2.0, "*": 1.0}, "scale": scale, "head": "keep"}
    network = convert(module, recipe="bcosification", bias="keep", eps=None, **options)
    patches, weight, bias = by_sizes(x), module.layer.weight, module.layer.bias  # type: ignore[union-attr]
    product = patches @ weight.mT  # type: ignore[union-attr, operator]
    cosine = product.abs() / patches.norm(dim=-1, keepdim=True)
    cosine = cosine / 2**0.5 if scale == "raw" else cosine / weight.norm(dim=1)  # type: ignore[union-attr, operator]
    expected = module.head((product * cosine + bias).mean(1))  # type: ignore[operator]
    torch.testing.assert_close(network(images()), expected, rtol=1e-12, atol=1e-12)


def test_a_convolution_behind_a_rearrangement_is_widened() -> None:
    module = built(lambda x: F.pixel_unshuffle(x, 2), nn.Conv2d(12, 12, 3, padding=1))
    network = convert(module, recipe="equivalent")
    assert network.report.rule_counts()[RULE] == 1
    assert "input_decoding" not in {row.op for row in network.report.nodes}


class Shared(nn.Module):
    """Two readers of the same patches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(48, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = by_sizes(x)
        y: Tensor = self.head((self.layer(patches) * patches.mean(2, keepdim=True).sigmoid()).mean(1))
        return y


class Sized(nn.Module):
    """The number of features of a patch scales the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(48, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        patches = by_sizes(x)
        y: Tensor = self.head((self.layer(patches) / patches.shape[-1]).mean(1))
        return y


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            lambda: built(lambda x: F.unfold(x.mean(1, keepdim=True), 4, stride=4).mT),
            "not the pixels of the image in another order",
        ),
        (
            lambda: built(lambda x: F.unfold(x[:, :1] + x[:, 1:2], 4, stride=4).mT),
            "not the pixels of the image in another order",
        ),
        (Shared, "reads the rearranged pixels too"),
        (Sized, "reads a size that depends on the number of channels"),
        (lambda: built(lambda x: F.pixel_unshuffle(x, 2), nn.Conv2d(12, 12, 3, groups=3)), "grouped"),
    ],
)
def test_anything_else_is_left_with_its_decoding_and_the_reason(module: Callable[[], nn.Module], words: str) -> None:
    torch.manual_seed(0)
    network = convert(module().double().eval(), recipe="equivalent")
    assert any(miss.rule == RULE and words in miss.reason for miss in network.report.near_misses)
    assert "input_decoding" in {row.op for row in network.report.nodes}
    assert network.report.figures.verification is not None
    assert network.report.figures.verification["ok"]


def test_no_decoding_stays_for_its_metadata() -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x).mean((2, 3)).type(x.dtype).reshape(x.shape[0], -1)
            z: Tensor = self.head(y) * (x.size(-1) / 16)
            return z

    torch.manual_seed(0)
    network = convert(Typed().double().eval(), recipe="equivalent")
    assert "input_decoding" not in {row.op for row in network.report.nodes}
