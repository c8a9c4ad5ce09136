"""Converted networks on a CUDA device: the same results as on a processor. Skipped where there is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bcos_fx

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
DEVICE = "cuda"


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, stride=8)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0, norm_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


class Steps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(96, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x.permute(0, 2, 1, 3).flatten(2))[0].mean(1))


NETWORKS = {"depthwise": depthwise, "tokens": Tokens, "steps": Steps}


@pytest.fixture(params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[bcos_fx.BcosNetwork, bcos_fx.BcosNetwork, Tensor]:
    """A converted network at B = 2 on the processor, the same on the device, and images."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 32, 32)
    network = bcos_fx.bcosify(NETWORKS[request.param]().eval(), example_inputs=x, b=2.0, verified=False)
    return network, bcos_fx.load(bcos_fx.save(network, request.getfixturevalue("tmp_path") / "a.st"), device=DEVICE), x


def test_forward_and_step(pair: tuple[bcos_fx.BcosNetwork, bcos_fx.BcosNetwork, Tensor]) -> None:
    here, there, x = pair
    torch.testing.assert_close(there(x.to(DEVICE)).cpu(), here(x), rtol=1e-3, atol=1e-4)
    for network, images in ((here, x), (there, x.to(DEVICE))):
        network(images).square().sum().backward()
    for name, parameter in here.named_parameters():
        if parameter.grad is not None:
            found = there.get_parameter(name).grad
            assert found is not None
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(found.cpu(), parameter.grad, rtol=1e-2, atol=1e-3 * scale + 1e-6)


def test_explanation_is_complete(pair: tuple[bcos_fx.BcosNetwork, bcos_fx.BcosNetwork, Tensor]) -> None:
    here, there, x = pair
    found = bcos_fx.explain(there, x.to(DEVICE), 1)
    assert found.complete
    expected = bcos_fx.explain(here, x, 1).contributions
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.contributions.cpu(), expected, rtol=1e-2, atol=1e-3 * scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_autocast(pair: tuple[bcos_fx.BcosNetwork, bcos_fx.BcosNetwork, Tensor], dtype: torch.dtype) -> None:
    here, there, x = pair
    with torch.autocast(DEVICE, dtype=dtype):
        found = there(x.to(DEVICE))
    expected = here(x)
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0.1, atol=0.05 * scale)


def test_compiled(pair: tuple[bcos_fx.BcosNetwork, bcos_fx.BcosNetwork, Tensor]) -> None:
    _, there, x = pair
    images = x.to(DEVICE)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(there)(images), there(images), rtol=1e-3, atol=1e-4)


def test_a_step_keeps_little_memory(pair: tuple[bcos_fx.BcosNetwork, bcos_fx.BcosNetwork, Tensor]) -> None:
    """Nothing of a step is left on the device once its results are gone."""
    _, there, x = pair
    images = x.to(DEVICE)
    there(images).sum().backward()  # libraries allocate what they keep
    there.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    there(images).sum().backward()
    there.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
