"""Shapes of nodes that rules add."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import bcos_fx


class Cast(nn.Module):
    """A network that casts its images, so that a graph casts them to the dtype of one of its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.AvgPool2d(2, 1), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.float()).mean((2, 3)))


def test_a_cast_of_an_encoded_image_has_a_shape() -> None:
    made = bcos_fx.bcosify(Cast().eval(), example_inputs=torch.rand(2, 1, 5, 7), recipe="equivalent")
    unknown = [
        node.name
        for node in made.graph.nodes
        if node.meta.get("type") not in ("size", "other")
        and node.meta.get("shape") is None
        and node.op == "call_module"
    ]
    assert not unknown
