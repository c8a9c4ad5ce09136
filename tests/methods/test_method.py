"""Ways of explaining have one shape."""

from __future__ import annotations

import torch
from torch import nn

from bcos_fx.methods.method import dynamic_linear


def test_the_networks_own_map_is_weight_times_input() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images, targets = torch.rand(2, 3, 5, 6), torch.tensor([[0, 3], [1, 1]])
    found = dynamic_linear(network, batch_size=1).maps(images, targets)
    weight = network[0].weight.detach()[:, :, 0, 0]
    expected = torch.einsum("nkc,nchw->nkhw", weight[targets], images) / 30
    torch.testing.assert_close(found, expected)
