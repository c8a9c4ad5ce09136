"""An image and its own mask as sources at once: the mask is a weight, and the image carries the value."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bcos_fx

MASKED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "second factor": lambda h, m: h * m,
    "first factor": lambda h, m: m * h,
    "reshaped": lambda h, m: h * m.flatten(2).unflatten(2, (6, 6)),
    "expanded": lambda h, m: m.expand(-1, 4, -1, -1).mul(h),
    "divided by its sum": lambda h, m: h * m / m.sum((2, 3), keepdim=True),
}


class Masked(nn.Module):
    """An image, and a mask of what a layer made of it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.masked = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), MASKED[name]
        self.double().eval()

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.fc(self.masked(self.conv(image).relu(), mask).sum((2, 3)))


@pytest.mark.parametrize("order", [["image", "mask"], ["mask", "image"]], ids=["image first", "mask first"])
@pytest.mark.parametrize("name", MASKED)
def test_the_image_has_it_all(name: str, order: list[str]) -> None:
    network = Masked(name)
    image, mask = torch.rand(2, 3, 8, 8).double(), (torch.rand(2, 1, 6, 6) > 0.4).double()
    leaf = image.clone().requires_grad_()
    value = network(leaf, mask)[:, 1]
    value.sum().backward()
    found = bcos_fx.explain(network, {"image": image, "mask": mask}, 1, source=order)
    torch.testing.assert_close(found["image"].weights, leaf.grad)
    assert not found["mask"].weights.any()
    torch.testing.assert_close(found.totals["image"] + found.constants.total(), value.detach())
    assert found.complete


def test_a_mask_alone_is_explained_as_before() -> None:
    network = Masked("second factor")
    image, mask = torch.rand(2, 3, 8, 8).double(), torch.rand(2, 1, 6, 6).double()
    leaf = mask.clone().requires_grad_()
    network(image, leaf)[:, 1].sum().backward()
    found = bcos_fx.explain(network, {"image": image, "mask": mask}, 1, source="mask")
    torch.testing.assert_close(found.weights, leaf.grad)
