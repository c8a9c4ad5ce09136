"""Converted networks are the published ones: outputs and W(x) of a slow and independent implementation, at B = 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bcos_fx
from bcos_fx.nn import BcosLayer
from bcos_fx.rewriting.core.recipe import find_recipe
from bcos_fx.testing import norm_statistics_from_data_
from tests.rewriting import slow_published as slow

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class SmallCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.first, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.norm(self.stem(x)).relu(), 3, 2, 1)
        y = (self.norm2(self.second(self.norm1(self.first(y)).relu())) + y).relu()
        z: Tensor = self.fc(y.mean((2, 3)))
        return z


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.norm2 = heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.linear1, self.linear2 = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        pieces = self.to_qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in pieces)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        x = self.to_out((weights @ v).transpose(1, 2).flatten(2)) + x
        y: Tensor = self.linear2(F.gelu(self.linear1(self.norm2(x)))) + x
        return y


class SmallVit(nn.Module):
    """As SimpleViT, with a patch embedding of a rearrangement and a Linear, or a convolutional stem before it."""

    def __init__(self, stem: bool = False, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patch = 2 if stem else 4
        self.stem = nn.Conv2d(3, 6, 3, 2, 1) if stem else None
        self.stem_norm = nn.GroupNorm(1, 6) if stem else None
        self.embed = nn.Linear((6 if stem else 3) * self.patch**2, dim)
        self.register_buffer("positions", torch.randn(16, dim))
        self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(2)])
        self.head_norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 7)

    def forward(self, x: Tensor) -> Tensor:
        if self.stem is not None and self.stem_norm is not None:
            x = F.gelu(self.stem_norm(self.stem(x)))
        (n, c, h, w), p = x.shape, self.patch
        patches = x.reshape(n, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, c * p * p)
        x = self.embed(patches) + self.positions
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.head(self.head_norm(x.mean(1)))
        return y


class SmallClip(nn.Module):
    """A convolution and the attention pool of CLIP's ResNets, of all places or of the first alone."""

    def __init__(self, first_alone: bool = True, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, dim, 3, 2, 1, bias=False), nn.BatchNorm2d(dim)
        self.positional_embedding = nn.Parameter(torch.randn(65, dim))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.c_proj, self.heads, self.first_alone = nn.Linear(dim, 9), heads, first_alone

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu().flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x], 0) + self.positional_embedding[:, None, :]
        y, _ = F.multi_head_attention_forward(
            x[:1] if self.first_alone else x, x, x, x.shape[-1], self.heads, None,
            torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]), None, None, False, 0.0,
            self.c_proj.weight, self.c_proj.bias, use_separate_proj_weight=True, need_weights=False,
            training=self.training, q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight,
            v_proj_weight=self.v_proj.weight,
        )  # fmt: skip
        return y[0]


NETWORKS: dict[str, tuple[Any, Any, str]] = {
    "CNN": (SmallCnn, slow.small_cnn, "bcosification"),
    "ViT": (SmallVit, slow.small_vit, "bcosification"),
    "ViT-C": (lambda: SmallVit(stem=True), slow.small_vit, "bcosification"),
    "CLIP's pool": (SmallClip, slow.small_clip, "clip"),
    "CLIP's pool, all places": (lambda: SmallClip(first_alone=False), slow.small_clip, "clip"),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = NETWORKS[name][0]().double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.0 if parameter.dim() > 1 else 0.5, 0.4)
    module.eval()
    norm_statistics_from_data_(module, images() - 0.45)
    return module


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def statistics(name: str) -> tuple[Tensor, Tensor]:
    mean, std = (CLIP_MEAN, CLIP_STD) if NETWORKS[name][2] == "clip" else (MEAN, STD)
    m, s = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (mean, std))
    return m, s


def convert(name: str, **changes: Any) -> bcos_fx.convert.BcosNetwork:
    m, s = statistics(name)
    options = {"recipe": NETWORKS[name][2], "mean": m.flatten().tolist(), "std": s.flatten().tolist()} | changes
    return bcos_fx.bcosify(built(name), example_inputs=images(), **options)


def published(name: str) -> tuple[Tensor, Tensor]:
    """Outputs, and W(x) of the highest of each sample, on e = [x, 1 - x]: that on z, past the fixed map e -> z."""
    (m, s), x = statistics(name), images()
    z = torch.cat([(x - m) / s, -(x - m) / s], 1).requires_grad_()
    outputs = NETWORKS[name][1](built(name), z)
    (gradient,) = torch.autograd.grad(outputs.max(1).values.sum(), z)
    one, other = gradient.chunk(2, 1)
    # x' = ((1 - m) x - m (1 - x)) / s, and -x' with the signs turned.
    return outputs.detach(), torch.cat([(1 - m) / s * (one - other), -m / s * (one - other)], 1)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", list(NETWORKS))
def test_outputs_and_weights_are_the_published_ones(name: str) -> None:
    network = convert(name)
    outputs, weights = published(name)
    assert float(outputs.std()) > 1e-3
    with torch.no_grad():
        assert distance(network(images()), outputs) <= 1e-12
    found = bcos_fx.explain(network, images())
    assert distance(found.weights, weights) <= 1e-12
    assert float(found.residual.abs().max()) <= 1e-12 * float(outputs.abs().max())


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("CNN", {"eps": None}),
        ("ViT", {"eps": 1e-6}),
        ("ViT", {"projections": "value-and-output"}),
        ("CLIP's pool", {"projections": "value-and-output"}),
        ("CLIP's pool", {"positions": "keep"}),
        ("CLIP's pool", {"bias": "strip"}),
        ("ViT", {"classifier": "pooled"}),
        ("ViT", {"without": "first-layer-widened-past-rearrangement"}),
        ("CNN", {"scale": "cosine"}),
    ],
)
def test_a_mutant_is_caught(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Each choice of the publication shows: without it outputs are others, by far more than 1e-12."""
    changes = dict(changes)
    if "without" in changes:
        text = find_recipe("bcosification").read_text(encoding="utf-8")
        mutant = tmp_path / "mutant.toml"
        mutant.write_text(f'without = ["{changes.pop("without")}"]\n{text}', encoding="utf-8")
        changes["recipe"] = mutant
    outputs, _ = published(name)
    with torch.no_grad():
        assert distance(convert(name, **changes)(images()), outputs) > 1e-9


def test_which_layers_are_raised() -> None:
    """Queries, keys and values are plain layers, and so is all of CLIP's pool; nothing that training could raise."""
    vit = {path: type(part).__name__ for path, part in convert("ViT").named_modules()}
    assert vit["blocks.0.to_qkv"] == "Linear"
    assert vit["blocks.0.to_out"] == vit["blocks.0.linear1"] == vit["head"] == vit["embed"] == "BcosLinear"
    clip = convert("CLIP's pool")
    assert [path for path, part in clip.named_modules() if isinstance(part, BcosLayer)] == ["stem"]
    assert not [name for name, _ in clip.named_parameters() if name.endswith("bias")]


def test_explaining_changes_nothing_in_a_network_whose_plain_layer_is_divided() -> None:
    """Explaining takes queries, keys and values apart, in a graph that shares its layers with the network."""
    network = convert("ViT")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    bcos_fx.explain(network, images())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not [path for path, _ in network.named_modules() if path.startswith("blocks.0.to_qkv.")]


@pytest.mark.parametrize("trained", [False, True])
def test_how_the_published_contribution_map_differs(trained: bool) -> None:
    """Theirs is d (x - 1/2)/s + (d1 + d2)/(2 s), with d = d1 - d2 of the weights on [x', -x']; ours d (x - m)/s."""
    (m, s), x = statistics("CNN"), images()
    z = torch.cat([(x - m) / s, -(x - m) / s], 1).requires_grad_()
    net = built("CNN")
    widened, shift = slow.widened, 0.1 if trained else 0.0
    slow_widened = lambda weight: widened(weight) + shift  # as training leaves it: no mirror image  # noqa: E731
    try:
        slow.widened = slow_widened
        outputs = slow.small_cnn(net, z)
    finally:
        slow.widened = widened
    best = outputs.max(1).values - slow.logit_bias(7)
    (gradient,) = torch.autograd.grad(best.sum(), z)
    best, (one, other) = best.detach(), gradient.chunk(2, 1)
    d = one - other
    theirs = (torch.cat([x, 1 - x], 1) * torch.cat([one / s, other / s], 1)).sum(1)
    closed = (d * (x - 0.5) / s + (one + other) / 2 / s).sum(1)
    torch.testing.assert_close(theirs, closed, rtol=1e-10, atol=1e-12)
    if not trained:
        torch.testing.assert_close(theirs, (d * (x - 0.5) / s).sum(1), rtol=1e-10, atol=1e-12)

    ours = bcos_fx.explain(convert("CNN"), x).contributions
    torch.testing.assert_close(ours, (d * (x - m) / s).sum(1), rtol=1e-10, atol=1e-12)
    gap_of_theirs = best - theirs.sum((1, 2))
    torch.testing.assert_close(
        gap_of_theirs, (d * (0.5 - m) / s - (one + other) / 2 / s).sum((1, 2, 3)), rtol=1e-9, atol=1e-12
    )
    assert float((gap_of_theirs / best).abs().min()) > 1e-2
    assert float((best - ours.sum((1, 2))).abs().max()) <= 1e-12 * float(best.abs().max())
