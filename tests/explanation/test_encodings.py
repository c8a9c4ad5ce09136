"""What is an encoded image, and so has colours and folds back to the input; and what only has as many channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bcos_fx
from bcos_fx.explanation.render.color import signed
from tests.explanation.networks import MEAN, STD, images, normalised


def six_channels() -> nn.Module:
    """An inner layer with as many channels, and the size, of an encoded image."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double().eval()


@pytest.fixture(scope="module")
def network() -> Any:
    return bcos_fx.bcosify(six_channels(), example_inputs=images(2), recipe="equivalent", mean=MEAN, std=STD)


def test_an_inner_layer_of_six_channels_is_no_encoded_image(network: Any) -> None:
    found = bcos_fx.explain(network, images(), 1, source="1")
    assert found.encoded.shape == (3, 6, 12, 12)
    assert found.complete
    assert not found.colors
    assert torch.equal(found.input_weights, found.weights)
    assert bcos_fx.explain(network, images(), 1).colors


def test_weights_of_an_inner_layer_are_the_gradient_there(network: Any) -> None:
    original: Any = six_channels()
    inner = original[:2](normalised(images())).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(original[2:](inner)[:, 1].sum(), inner)
    found = bcos_fx.explain(network, images(), 1, source="1")
    torch.testing.assert_close(found.input_weights, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_the_caller_encoded_has_colours_and_two_frames_have_none(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).to(dtype).eval()
    x = images().to(dtype)
    encoded = bcos_fx.explain(model, torch.cat([x, 1 - x], 1))
    assert encoded.colors
    assert encoded.input_weights.shape == (3, 6, 12, 12)
    frames = bcos_fx.explain(model, torch.cat([x, x.flip(3)], 1))
    assert not frames.colors
    assert frames.image()


@pytest.mark.parametrize("target", [1, [[0, 1]] * 3])
def test_encoded_images_fold_back_wherever_they_are_cut(target: Any, network: Any) -> None:
    found = bcos_fx.explain(network, images(), target)
    axis = 2 if found.several else 1
    straight, inverse = found.weights.chunk(2, dim=axis)
    assert torch.equal(found.input_weights, straight - inverse)
    assert torch.equal(found[1].input_weights, (straight - inverse)[1:2])


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv3d(2, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3, 4)))


@pytest.mark.parametrize("target", [0, [[0, 1], [1, 0]]])
def test_every_place_of_a_volume_has_a_pixel(target: Any) -> None:
    torch.manual_seed(0)
    found = bcos_fx.explain(Volume().double().eval(), torch.rand(2, 2, 3, 4, 5).double(), target)
    assert found.complete
    first = (found.contributions[0, 0] if found.several else found.contributions[0]).float()
    wanted = torch.cat([first[0], torch.zeros(4, 1), first[1], torch.zeros(4, 1), first[2]], dim=1)
    drawn = torch.from_numpy(found.plot().axes[1].images[0].get_array() / 255).permute(2, 0, 1)
    torch.testing.assert_close(drawn.float(), signed(wanted[None])[0], rtol=0, atol=0.01)
