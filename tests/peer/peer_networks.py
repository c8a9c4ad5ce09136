"""Networks of the package ``bcos``, untrained, with norm statistics from data: fresh ones answer everything alike."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from bcos_fx.testing import norm_statistics_from_data_


def images(size: int, count: int = 2) -> Tensor:
    """Encoded images (N, 6, size, size) in float64."""
    x = torch.rand(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.cat([x, 1 - x], 1)


def _small_vit() -> nn.Module:
    from bcos.models.vit import SimpleViT
    from bcos.modules import BcosLinear, LogitLayer, norms
    from bcos.modules.common import BcosSequential

    vit = SimpleViT(
        image_size=32, patch_size=8, num_classes=10, dim=24, depth=2, heads=3, mlp_dim=48,
        linear_layer=BcosLinear, norm_layer=norms.NoBias(norms.DetachableLayerNorm), act_layer=nn.Identity,
    )  # fmt: skip
    network: nn.Module = BcosSequential(vit, LogitLayer(logit_bias=-2.0))
    return network


def peer_network(name: str, size: int, seed: int = 0) -> nn.Module:
    """One network in float64 and eval mode, by the package's own constructors."""
    from bcos.models import pretrained

    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own
        network: nn.Module = _small_vit() if name == "small_vit" else getattr(pretrained, name)(pretrained=False)
    network = network.double().eval()
    if any(isinstance(part, nn.BatchNorm2d) for part in network.modules()):
        norm_statistics_from_data_(network, images(size, 4))
    return network


def logit_bias(network: nn.Module) -> float:
    """The constant that the network adds to all its outputs."""
    last: Any = [part for part in network.modules() if type(part).__name__ == "LogitLayer"][-1]
    return float(last.logit_bias)
